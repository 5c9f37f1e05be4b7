"""Compare ways to measure a spectrum on a trained network whose exact spectrum is known.

    python benchmarks/one_run.py [--networks NAME ...] [--seeds 10] [--timed 1] [--network NAME] [--threads N] [--quick]

Answers are scored in float64 against the eigenvalues of the dense matrix: Wasserstein-1 distance of the measure,
relative error of the ten eigenvalues of largest absolute value. Where a library smooths its density, its quadrature
before smoothing is scored, which is the more exact.

First table, for each matrix: the smallest number of products at which the mean W1 over the seeds is at most that of the
papers' procedure. Every house is scanned over its settings. As products are counted here and not timed, all houses
multiply with the same dense float32 matrix, made of the network once; its trace and norm are compared with the exact
ones.

Second table: every method at fixed settings, timed on its own matvec. Every house (`benchmarks/methods`) gets the same
model, the same single batch of the same data, float32 and the same threads, in one process. Seeds are repeats; in each
of them all methods run once, in a random order, so that a change in the machine's speed hits all. A method's seconds
are everything from the model to the answer: building the operator, tracing, all products, orthogonalisation. Only what
belongs to a process rather than to a measurement is kept out of them: imports and the first use of each matvec, which
have a column in the third table, that of the matvecs alone.

Prints the tables, and writes them into benchmarks/README.md. `--quick` has one seed, the Hessian only, and no method
but hesspec in the second table; it writes nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import nn

from _matvecs import LABELS, house, multiply, time_houses
from _tables import ROOT, Block, Target, arguments, begin, console, counted, publish, ratios, spread, targets
from methods import LARGEST, MATRICES, Answer, Array, Candidate, Matrix, Method, Problem, largest

sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "data"))

import make_exact_spectra

import exact_networks

NETWORKS = exact_networks.NAMES + exact_networks.FASHION
HOUSES = ("papers", "pyhessian", "eigenthings", "curvlinops", "mixed", "hesspec")
SCANNED = ("papers", "hesspec", "curvlinops", "eigenthings", "pyhessian")
PAPERS, OURS = "papers' procedure", "hesspec"
CALLS = 5


@dataclass(frozen=True)
class Sample:
    """One run of one method, scored."""

    seconds: float
    matvecs: int
    distance: float
    error: float


@dataclass(frozen=True)
class Setting:
    """Means over the seeds of one setting of one house."""

    settings: str
    matvecs: float
    distance: float
    error: float


def relative_error(given: Array, exact: Array) -> float:
    """The greatest of the ten eigenvalues of largest absolute value."""
    true = np.sort(largest(exact))
    return float((np.abs(np.sort(given) - true) / np.abs(true)).max())


# Matvecs needed ---------------------------------------------------------------------------------------------------


def dense(problem: Problem, exact: Array) -> torch.Tensor:
    """All entries in float32: the Gauss-Newton matrix of Jacobians, the Hessian of products with unit vectors."""
    if problem.matrix == "GaussNewton":
        matrix = make_exact_spectra.gauss_newton(problem.model, problem.data[0][0])
    else:
        operator = house("hesspec").operator(problem)
        matrix = torch.stack([operator @ unit for unit in torch.eye(problem.size)])
        matrix = (matrix + matrix.T) / 2
    norm, trace = float(matrix.double().norm()), float(matrix.double().trace())
    if not np.allclose([norm, trace], [np.linalg.norm(exact), exact.sum()], rtol=1e-4):
        raise ValueError(f"Norm {norm} and trace {trace} of the dense matrix are not those of its exact eigenvalues.")
    return matrix


def means(runs: list[list[Candidate]], exact: Array) -> list[Setting]:
    """By setting, in order of products."""
    found = []
    for same in zip(*runs, strict=True):
        scores = [
            (
                run.matvecs,
                wasserstein_distance(run.nodes, exact, run.weights),
                relative_error(largest(run.nodes), exact),
            )
            for run in same
        ]
        found.append(Setting(same[0].settings, *map(float, np.mean(scores, axis=0))))
    return sorted(found, key=lambda setting: setting.matvecs)


def needed(problem: Problem, exact: Array, network: str, seeds: int) -> tuple[Block, list[Target]]:
    """The table of products needed for the accuracy of the papers' procedure, and its targets."""
    problem = replace(problem, entries=dense(problem, exact))

    def scanned(label: str, scan: Callable[[Problem, int], list[Candidate]]) -> list[Setting]:
        start = time.perf_counter()
        found = means([scan(problem, seed) for seed in range(seeds)], exact)
        console.print(f"{network}, {problem.matrix}: {label}, {time.perf_counter() - start:.0f} s", style="dim")
        return found

    houses = [house(name) for name in SCANNED]
    scans = {
        label: scan
        for module in houses
        if problem.matrix in module.METHODS[0].matrices
        for label, scan in module.SCANS.items()
    }
    settings = {label: scanned(label, scan) for label, scan in scans.items()}
    (papers,) = settings[PAPERS]
    enough = {
        label: next((setting for setting in found if setting.distance <= papers.distance), None)
        for label, found in settings.items()
    }
    ours = enough[OURS]
    rows = []
    for label, found in settings.items():
        reached, most = enough[label], max(setting.matvecs for setting in found)
        shown = reached or min(found, key=lambda setting: setting.distance)
        rows.append(
            (
                label,
                shown.settings,
                f"{reached.matvecs:,.0f}" if reached else f"not reached up to {most:,.0f}",
                f"{reached.matvecs / ours.matvecs:.1f}" if reached and ours else "–",
                f"{shown.distance:.2e}",
                f"{shown.error:.0e}" if shown.error < 1 else "–",
            )
        )
    # A house that does not get there counts with all products that it was given.
    rivals = [
        reached.matvecs if reached else max(setting.matvecs for setting in settings[label])
        for label, reached in enough.items()
        if label not in {OURS, PAPERS}
    ]
    wanted = [
        Target(
            f"{network}, {problem.matrix}: products of {what}, times hesspec's",
            factor,
            count / ours.matvecs if ours else None,
            "{:.1f}",
        )
        for what, factor, count in (("the papers' procedure", 20, papers.matvecs), ("the best peer", 3.5, min(rivals)))
    ]
    note = (
        f"p = {problem.size:,}; largest |λ| {np.abs(exact).max():.3g}, mean |λ| {np.abs(exact).mean():.2e}. Smallest "
        f"number of products at which the mean W1 over {counted(seeds, 'seed')} is at most that of the papers' "
        "procedure, and the setting, chosen with the exact spectrum known; where that is not reached, the best one. "
        "–: copies are among the largest nodes. Settings scanned: "
        + ", ".join(f"{len(found)} of {label}" for label, found in settings.items())
        + "."
    )
    columns = ("house", "setting", "products", "× products", "mean W1", f"mean error of the {LARGEST} largest")
    return Block(f"Products needed: {network}, {problem.matrix}", note, columns, rows, (OURS,)), wanted


# Spectra ----------------------------------------------------------------------------------------------------------


def score(answer: Answer, exact: Array, seconds: float) -> Sample:
    """Distances of an answer to the exact spectrum."""
    if len(answer.largest) < LARGEST or not np.isclose(answer.weights.sum(), 1, atol=1e-3):
        raise ValueError(
            f"An answer with {len(answer.largest)} of {LARGEST} eigenvalues, total weight {answer.weights.sum()}."
        )
    distance = float(wasserstein_distance(answer.nodes, exact, answer.weights))
    return Sample(seconds, answer.matvecs, distance, relative_error(answer.largest, exact))


def compare(problem: Problem, exact: Array, seeds: int, houses: tuple[str, ...]) -> dict[str, list[Sample]]:
    """Every method once for each seed, in a random order."""
    methods: list[Method] = [method for name in houses for method in house(name).METHODS]
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


def spectra(problem: Problem, exact: Array, seeds: int, houses: tuple[str, ...]) -> Block:
    """The table of the comparison."""
    samples = compare(problem, exact, seeds, houses)
    reference = samples[house("hesspec").REFERENCE]
    rows = []
    for label, runs in samples.items():
        rows.append(
            (
                label,
                spread((run.matvecs for run in runs), "{:,.0f}"),
                spread((run.seconds for run in runs), "{:.2f}"),
                spread(ratios((r.seconds for r in runs), (r.seconds for r in reference)), "{:.1f}"),
                spread((run.distance for run in runs), "{:.1e}"),
                spread(ratios((r.distance for r in runs), (r.distance for r in reference)), "{:.1f}"),
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
    return Block(f"Spectrum: {problem.matrix}", note, columns, rows, (house("hesspec").REFERENCE,))


# Matvecs ----------------------------------------------------------------------------------------------------------


def first_use(name: str, problem: Problem) -> float:
    """Seconds from before the import of a house to its first product."""
    vector = torch.randn(problem.size)
    start = time.perf_counter()
    multiply(house(name).operator(problem), vector)
    return time.perf_counter() - start


def matvecs(problem: Problem, network: str, repeats: int) -> Block:
    """The table of products alone; it also checks that every house multiplies with the same matrix."""
    names = tuple(name for name in LABELS if name != "pyhessian" or problem.matrix == "Hessian")
    timed = time_houses(problem, names, repeats, CALLS)
    rows = [
        (
            LABELS[name],
            spread((1e3 * seconds for seconds in timed.seconds[name]), "{:.2f}"),
            spread(ratios(timed.seconds[name], timed.seconds["hesspec"]), "{:.2f}"),
            f"{timed.built[name]:.2f}",
            f"{first(name, network, problem.matrix):.2f}",
            f"{timed.errors[name]:.0e}",
        )
        for name in names
    ]
    note = (
        f"Median (least–greatest) of {repeats} interleaved repeats of {CALLS} products; ×: ratio to hesspec, repeat by "
        "repeat; build: what the first product took longer; error: of one product, relative, against float64. "
        f"hesspec's mode: {timed.mode}."
    )
    columns = ("matvec", "ms", "×", "build, s", "first product in a new process, with imports, s", "error")
    return Block(f"Matvec: {problem.matrix}", note, columns, rows, (LABELS["hesspec"],))


def first(name: str, network: str, matrix: Matrix) -> float:
    """`first_use` in a new process, in which PyTorch, the model and the data are there already."""
    command = [sys.executable, __file__, "--network", network, "--threads", str(torch.get_num_threads())]
    done = subprocess.run(  # noqa: S603
        [*command, "--first-use", name, matrix], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout.split()[-1])


# Command line -----------------------------------------------------------------------------------------------------


def options_given() -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__, "one seed, the Hessian only; the README stays as it is")
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=["fashion-cnn"], help="for the products needed: fashion-cnn"
    )
    parser.add_argument("--seeds", type=int, default=10, help="seeds of the products needed (default 10)")
    parser.add_argument("--network", choices=NETWORKS, default="digits-cnn", help="for what is timed: digits-cnn")
    parser.add_argument("--timed", type=int, default=1, help="timed repeats of each method (default 1; 0: none)")
    parser.add_argument("--first-use", nargs=2, metavar=("HOUSE", "MATRIX"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.seeds < 1 or options.timed < 0:
        parser.error(f"--seeds is {options.seeds}, --timed is {options.timed}; they have to be at least 1 and 0.")
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
    options = options_given()
    begin(options.threads)
    if options.first_use:
        name, matrix = options.first_use
        print(first_use(name, load_network(options.network)[0](matrix)))
        return
    start, load = time.perf_counter(), os.getloadavg()[0]
    seeds, timed, repeats = (1, 1, 3) if options.quick else (options.seeds, options.timed, 10)
    matrices, houses = (MATRICES[:1], ("hesspec",)) if options.quick else (MATRICES, HOUSES)
    blocks: list[Block] = []
    wanted: list[Target] = []
    for network in ["digits-cnn"] if options.quick else options.networks:
        problem, eigenvalues = load_network(network)
        for matrix in matrices:
            block, goals = needed(problem(matrix), eigenvalues[matrix], network, seeds)
            blocks.append(block)
            wanted += goals
    problem, eigenvalues = load_network(options.network)
    for matrix in matrices if timed else ():
        # Matvecs first: they are the warm-up of what the methods build on.
        alone = matvecs(problem(matrix), options.network, repeats)
        blocks += [spectra(problem(matrix), eigenvalues[matrix], timed, houses), alone]
    what = f"Trained networks, products needed from {counted(seeds, 'seed')}, timed on `{options.network}`"
    publish("one_run", what, [targets(wanted), *blocks], load, start, write=not options.quick)


if __name__ == "__main__":
    main()
