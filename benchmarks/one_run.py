"""Compare ways to measure a spectrum, and matvecs, on a trained network whose exact spectrum is known.

    python benchmarks/one_run.py [--network NAME] [--seeds 3] [--quick]

Every house (`benchmarks/methods`) gets the same model, the same single batch of the same data, float32 and the same
threads, in one process. Seeds are repeats; in each of them all methods run once, in a random order, so that a change in
the machine's speed hits all. A method's seconds are everything from the model to the answer: building the operator,
tracing, all products, orthogonalisation. Only what belongs to a process rather than to a measurement is kept out of
them: imports and the first use of each matvec, which have a column of their own. Answers are scored in float64 against
eigenvalues of the dense matrix: Wasserstein-1 distance of the measure, relative error of the ten eigenvalues of largest
absolute value. Where a library smooths its density, its quadrature before smoothing is scored, which is the more exact.

Prints the tables, and writes them into benchmarks/README.md. `--quick` has one seed and the Hessian only, and writes
nothing.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import wasserstein_distance
from torch import nn

from methods import LARGEST, MATRICES, Answer, Array, Matrix, Method, Problem, largest

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import exact_networks

ROOT = Path(__file__).parents[1]
README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- table -->", "<!-- /table -->"
PEERS = {"curvlinops": "curvlinops-for-pytorch", "hessian_eigenthings": "hessian-eigenthings"}
HOUSES = ("papers", "pyhessian", "eigenthings", "curvlinops", "mixed", "hesspec")
MATVECS = {
    "hesspec": "hesspec, traced",
    "curvlinops": "curvlinops",
    "eigenthings": "hessian-eigenthings",
    "papers": "reverse over reverse (DeepnetHessian)",
    "pyhessian": "kept double-backward graph (PyHessian)",
}
CALLS = 5
BUSY = 0.3

console = Console(width=160)


@dataclass(frozen=True)
class Sample:
    """One run of one method, scored."""

    seconds: float
    matvecs: int
    distance: float
    error: float


@dataclass(frozen=True)
class Block:
    """A table with its heading and what is to be known of it."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def house(name: str) -> Any:
    """A module of `methods`, imported where it is first used so that a first use can be timed."""
    return importlib.import_module(f"methods.{name}")


# Spectra ----------------------------------------------------------------------------------------------------------


def score(answer: Answer, exact: Array, seconds: float) -> Sample:
    """Distances of an answer to the exact spectrum."""
    true, given = np.sort(largest(exact)), np.sort(answer.largest)
    if len(given) < LARGEST or not np.isclose(answer.weights.sum(), 1, atol=1e-3):
        raise ValueError(
            f"An answer with {len(given)} of {LARGEST} eigenvalues and a total weight of {answer.weights.sum()}."
        )
    return Sample(
        seconds=seconds,
        matvecs=answer.matvecs,
        distance=float(wasserstein_distance(answer.nodes, exact, answer.weights)),
        error=float((np.abs(given - true) / np.abs(true)).max()),
    )


def compare(problem: Problem, exact: Array, seeds: int) -> dict[str, list[Sample]]:
    """Every method once for each seed, in a random order."""
    methods: list[Method] = [method for name in HOUSES for method in house(name).METHODS]
    methods = [method for method in methods if problem.matrix in method.matrices]
    samples: dict[str, list[Sample]] = {label: [] for method in methods for label in method.labels}
    for seed in range(seeds):
        for method in random.Random(seed).sample(methods, len(methods)):  # noqa: S311
            mine = problem.fresh()
            gc.collect()
            start = time.perf_counter()
            answers = method.run(mine, seed)
            seconds = time.perf_counter() - start
            console.print(f"{problem.matrix}, seed {seed}: {method.labels[0]}, {seconds:.2f} s", style="dim")
            for label, answer in zip(method.labels, answers, strict=True):
                samples[label].append(score(answer, exact, seconds))
    return samples


def spectra(problem: Problem, exact: Array, seeds: int) -> Block:
    """The table of the comparison."""
    samples = compare(problem, exact, seeds)
    reference = samples[house("hesspec").REFERENCE]
    rows = []
    for label, runs in samples.items():
        pairs = list(zip(runs, reference, strict=True))
        rows.append(
            (
                label,
                spread((run.matvecs for run in runs), "{:,.0f}"),
                spread((run.seconds for run in runs), "{:.2f}"),
                spread((run.seconds / other.seconds for run, other in pairs), "{:.1f}"),
                spread((run.distance for run in runs), "{:.1e}"),
                spread((run.distance / other.distance for run, other in pairs), "{:.1f}"),
                spread((run.error for run in runs), "{:.0e}"),
            )
        )
    images = sum(len(targets) for _, targets in problem.data)
    note = (
        f"p = {problem.size:,}, {images:,} images in one batch; largest |λ| {np.abs(exact).max():.3g}, mean |λ| "
        f"{np.abs(exact).mean():.2e}. Median (least–greatest) of {counted(seeds, 'seed')}; ×: ratio to hesspec at "
        "64 steps, seed by seed."
    )
    columns = ("method", "matvecs", "seconds", "× seconds", "W1", "× W1", f"error of the {LARGEST} largest")
    return Block(f"Spectrum: {problem.matrix}", note, columns, rows)


# Matvecs ----------------------------------------------------------------------------------------------------------


def first_use(name: str, problem: Problem) -> float:
    """Seconds from before the import of a house to its first product."""
    vector = torch.randn(problem.size)
    start = time.perf_counter()
    multiply(house(name).operator(problem), vector)
    return time.perf_counter() - start


def multiply(operator: Any, vector: torch.Tensor) -> torch.Tensor:
    """A house's operator times a vector, whether it is called or has @."""
    product: torch.Tensor = operator @ vector if hasattr(operator, "__matmul__") else operator(vector)
    return product


def matvecs(problem: Problem, network: str, repeats: int) -> Block:
    """The table of products alone; it also checks that every house multiplies with the same matrix."""
    names = [name for name in MATVECS if name != "pyhessian" or problem.matrix == "Hessian"]
    vector = torch.randn(problem.size, generator=torch.Generator().manual_seed(0))
    true = house("papers").operator(problem.fresh(torch.float64))(vector.double())
    operators, built, errors = {}, {}, {}
    for name in names:
        # The process's first use is not this one: it is timed in a process of its own.
        multiply(house(name).operator(problem.fresh()), vector)
        mine = problem.fresh()
        start = time.perf_counter()
        operators[name] = house(name).operator(mine)
        product = multiply(operators[name], vector)
        built[name] = time.perf_counter() - start
        errors[name] = float((product - true).norm() / true.norm())
        if errors[name] > 1e-3:
            raise ValueError(f"The product of {MATVECS[name]} is off by {errors[name]:.1e}: it is of another matrix.")
    times: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in random.Random(repeat).sample(names, len(names)):  # noqa: S311
            start = time.perf_counter()
            for _ in range(CALLS):
                multiply(operators[name], vector)
            times[name].append((time.perf_counter() - start) / CALLS)
    mode = operators["hesspec"].attributes["mode"]
    if mode != "traced":
        raise ValueError(
            f"hesspec's matvec is not traced but {mode!r} here: {operators['hesspec'].attributes['mode_reason']}"
        )
    rows = [
        (
            MATVECS[name],
            spread((1e3 * seconds for seconds in times[name]), "{:.2f}"),
            spread((mine / other for mine, other in zip(times[name], times["hesspec"], strict=True)), "{:.2f}"),
            f"{built[name]:.2f}",
            f"{first(name, network, problem.matrix):.2f}",
            f"{errors[name]:.0e}",
        )
        for name in names
    ]
    note = (
        f"Median (least–greatest) of {repeats} interleaved repeats of {CALLS} products; ×: ratio to hesspec, repeat by "
        "repeat; error: of one product, relative, against float64."
    )
    columns = ("matvec", "ms", "×", "build and first product, s", "the same in a new process with imports, s", "error")
    return Block(f"Matvec: {problem.matrix}", note, columns, rows)


def first(name: str, network: str, matrix: Matrix) -> float:
    """`first_use` in a new process, in which PyTorch, the model and the data are there already."""
    command = [sys.executable, __file__, "--network", network, "--threads", str(torch.get_num_threads())]
    done = subprocess.run(  # noqa: S603
        [*command, "--first-use", name, matrix], check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


# Tables -----------------------------------------------------------------------------------------------------------


def spread(values: Iterable[float], form: str) -> str:
    """Median and, where they are not all the same, least and greatest."""
    numbers = list(values)
    middle, low, high = (form.format(f(numbers)) for f in (statistics.median, min, max))
    return middle if low == high else f"{middle} ({low}–{high})"


def counted(number: int, noun: str) -> str:
    """One seed, two seeds: in figures, with an s where one is due."""
    return f"{number} {noun}" + "s" * (number != 1)


def show(block: Block) -> None:
    """Print a table."""
    table = Table(*block.columns, title=block.title, caption=block.note, title_justify="left", caption_justify="left")
    bold = (house("hesspec").REFERENCE, MATVECS["hesspec"])
    for row in block.rows:
        table.add_row(*row, style="bold" if row[0] in bold else None)
    console.print(table)


def markdown(block: Block) -> str:
    """A table for the README."""
    rows = [block.columns, ("---", *["---:"] * (len(block.columns) - 1)), *block.rows]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"### {block.title}\n\n{block.note}\n\n{lines}\n"


def surroundings(network: str, seeds: int, load: float) -> str:
    """Machine, versions, data: what the numbers depend on."""
    packages = ("hesspec", *PEERS.values(), "torch", "numpy", "scipy")
    text = (
        f"Network `{network}`, float32, {processor()}, {os.cpu_count()} cores, "
        f"{counted(torch.get_num_threads(), 'thread')}, {platform.system()}, Python {platform.python_version()}, "
        + ", ".join(f"{package} {version(package)}" for package in packages)
        + f"; {counted(seeds, 'seed')}, {time.strftime('%Y-%m-%d')}."
    )
    if load > BUSY * (os.cpu_count() or 1):
        text += f" **Other processes were running (load average {load:.1f}): the times are too long and scatter.**"
    return text


def processor() -> str:
    """Name of the processor."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def rewrite(text: str) -> None:
    """Put the tables between the markers of the README."""
    before, found, rest = README.read_text().partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{README} has no {BEGIN} followed by {END} to write the table between.")
    README.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


# Command line -----------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--network", choices=exact_networks.NAMES, default="digits-cnn", help="default digits-cnn")
    parser.add_argument("--seeds", type=int, default=3, help="repeats of each method (default 3)")
    parser.add_argument("--quick", action="store_true", help="one seed, the Hessian only; the README stays as it is")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    parser.add_argument("--first-use", nargs=2, metavar=("HOUSE", "MATRIX"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; at least one is needed.")
    return options


def load_network(name: str) -> tuple[Callable[[Matrix], Problem], dict[str, Array]]:
    """Problems of a network by matrix, and its exact eigenvalues."""
    file = exact_networks.FOLDER / f"{name}.safetensors"
    if not file.exists():
        raise SystemExit(
            f"There is no {file.relative_to(ROOT)}: `python tests/data/make_exact_spectra.py {name}` makes it."
        )
    network = exact_networks.load(name)
    return lambda matrix: Problem(network.model, network.data, matrix, nn.CrossEntropyLoss()), network.eigenvalues


def main() -> None:
    """Measure, print, write."""
    options = arguments()
    missing = [package for module, package in PEERS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SystemExit(f"The comparison needs {' and '.join(missing)}: pip install hesspec[bench]")
    if options.threads:
        torch.set_num_threads(options.threads)
    problem, eigenvalues = load_network(options.network)
    if options.first_use:
        name, matrix = options.first_use
        print(first_use(name, problem(matrix)))
        return
    begin, load = time.perf_counter(), os.getloadavg()[0]
    seeds, repeats, matrices = (1, 5, MATRICES[:1]) if options.quick else (options.seeds, 30, MATRICES)
    blocks: list[Block] = []
    for matrix in matrices:
        # Matvecs first: they are the warm-up of what the methods build on.
        alone = matvecs(problem(matrix), options.network, repeats)
        blocks += [spectra(problem(matrix), eigenvalues[matrix], seeds), alone]
    heading = surroundings(options.network, seeds, load)
    console.print(f"\n{heading.replace('**', '')}\n", markup=False)
    for block in blocks:
        show(block)
    console.print(f"{time.perf_counter() - begin:.0f} s in all.")
    if not options.quick:
        rewrite("\n".join([heading, "", *map(markdown, blocks)]))
        console.print(f"The tables are in {README.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
