"""Compare ways to measure a spectrum, timed, on a trained network whose exact spectrum is known.

    python benchmarks/one_run.py [--network NAME] [--repeats 1] [--threads N] [--quick]

Answers are scored in float64 against the eigenvalues of the dense matrix: Wasserstein-1 distance of the measure,
relative error of the ten eigenvalues of largest absolute value. Where a library smooths its density, its quadrature
before smoothing is scored, which is the more exact.

Every method at fixed settings, on its own matvec. Every house (`benchmarks/methods`) gets the same model, the same
single batch of the same data, float32 and the same threads, in one process. Repeats are seeds; in each of them all
methods run once, in a random order, so that a change in the machine's speed hits all. A method's seconds are everything
from the model to the answer: building the operator, tracing, all products, orthogonalisation. Only what belongs to a
process rather than to a measurement is kept out of them: imports and the first use of each matvec, which have a column
in the second table, that of the matvecs alone.

Prints the tables, and writes them into benchmarks/README.md. `--quick` has the Hessian only, and no method but hesspec
in the first table; it writes nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import wasserstein_distance

from _exact import NETWORKS, load_network, relative_error
from _matvecs import LABELS, house, multiply, time_houses
from _tables import Block, arguments, begin, console, counted, publish, ratios, spread
from methods import LARGEST, MATRICES, Answer, Array, Matrix, Method, Problem

HOUSES = ("papers", "pyhessian", "eigenthings", "curvlinops", "mixed", "hesspec")
CALLS = 5


@dataclass(frozen=True)
class Sample:
    """One run of one method, scored."""

    seconds: float
    matvecs: int
    distance: float
    error: float


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
            spread((1e3 * seconds for seconds in timed.kept[name]), "{:.2f}"),
            spread(ratios(timed.kept[name], timed.kept["hesspec"]), "{:.2f}"),
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
    kept = "memory kept for all: ms"
    columns = ("matvec", "ms", "×", kept, "×", "build, s", "first product in a new process, with imports, s", "error")
    return Block(f"Matvec: {problem.matrix}", note, columns, rows, (LABELS["hesspec"],))


def first(name: str, network: str, matrix: Matrix) -> float:
    """`first_use` in a new process, in which PyTorch, the model and the data are there already."""
    command = [sys.executable, __file__, "--network", network, "--threads", str(torch.get_num_threads())]
    done = subprocess.run(  # noqa: S603
        [*command, "--first-use", name, matrix], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout.split()[-1])


# Command line -----------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, "the Hessian only; the README stays as it is")
    parser.add_argument("--network", choices=NETWORKS, default="digits-cnn", help="default: digits-cnn")
    parser.add_argument("--repeats", type=int, default=1, help="timed repeats of each method (default 1)")
    parser.add_argument("--first-use", nargs=2, metavar=("HOUSE", "MATRIX"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; it has to be at least 1.")
    begin(options.threads)
    problem, eigenvalues = load_network(options.network)
    if options.first_use:
        name, matrix = options.first_use
        print(first_use(name, problem(matrix)))
        return
    start, load = time.perf_counter(), os.getloadavg()[0]
    matrices, houses, calls = (MATRICES[:1], ("hesspec",), 3) if options.quick else (MATRICES, HOUSES, 10)
    blocks: list[Block] = []
    for matrix in matrices:
        # Matvecs first: they are the warm-up of what the methods build on.
        alone = matvecs(problem(matrix), options.network, calls)
        blocks += [spectra(problem(matrix), eigenvalues[matrix], options.repeats, houses), alone]
    publish("one_run", f"Trained network `{options.network}`", blocks, load, start, write=not options.quick)


if __name__ == "__main__":
    main()
