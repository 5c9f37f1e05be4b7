"""Products of curvature matrices with vectors at real sizes: hesspec, curvlinops, hessian-eigenthings, plain autograd.

    python benchmarks/products.py [--threads N] [--quick]

One process, all cores, float32, all images in one batch, networks as they are initialised. In each repeat every house
multiplies once, in a random order; ratios are taken within a repeat. Each product is timed twice: with memory as in a
process with that library alone, and with freed memory kept for everybody, as hesspec's operators keep it. Before
anything is timed, each house's product is compared with one by plain reverse mode.

Two more tables: what the set-up costs when the data come in 20 batches instead of 1, and streamed products, where
nothing is kept and the vectors of a pass share its primal pass.

Prints the tables, and writes them into benchmarks/README.md. `--quick` has few images and one repeat, and writes
nothing.
"""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
from dataclasses import dataclass, replace

import torch

import hesspec
from _matvecs import LABELS, house, interleaved, real_problem, time_houses
from _tables import Block, Target, arguments, begin, console, publish, ratios, spread, targets
from methods import Matrix, Problem

COLUMNS, PASSES, BATCHES = 8, 2, 20


@dataclass(frozen=True)
class Case:
    """A matrix of a network, who multiplies with it, and how many times as fast as whom hesspec has to be.

    `kept`: whether that is to hold where freed memory is kept for everybody.
    """

    name: str
    network: str
    images: int
    matrix: Matrix
    houses: tuple[str, ...]
    wanted: dict[str, float]
    repeats: int = 3
    float64: bool = False
    kept: bool = False

    @property
    def small(self) -> Case:
        """For a smoke run."""
        return replace(self, images=8, repeats=1)


ALL, PEERS = ("hesspec", "curvlinops", "eigenthings", "papers"), ("hesspec", "curvlinops", "eigenthings")
CASES = (
    Case("VGG11-BN", "vgg11_bn", 256, "Hessian", PEERS, {"curvlinops": 2.2, "eigenthings": 2.2}),
    Case("VGG11-BN", "vgg11_bn", 256, "GaussNewton", PEERS, {"curvlinops": 1.5}),
    Case("ResNet18", "resnet18", 64, "Hessian", PEERS, {"curvlinops": 1.5, "eigenthings": 1.4}),
    Case("ResNet18", "resnet18", 64, "GaussNewton", PEERS, {"curvlinops": 1.3}),
    Case("DenseNet-40", "densenet40", 64, "Hessian", PEERS, {"curvlinops": 2.4, "eigenthings": 1.6}),
    Case(
        "small CNN", "small_cnn", 1000, "Hessian", ALL, {"curvlinops": 2.5, "eigenthings": 2.5},
        repeats=5, float64=True, kept=True,
    ),
    Case(
        "small CNN", "small_cnn", 1000, "GaussNewton", PEERS, {"curvlinops": 2.5, "eigenthings": 2.5},
        repeats=5, float64=True, kept=True,
    ),
)  # fmt: skip


# Products ---------------------------------------------------------------------------------------------------------


def products(case: Case) -> tuple[Block, list[Target]]:
    """The table of a case, and its targets."""
    problem = real_problem(case.network, case.images, case.matrix)
    timed = time_houses(problem, case.houses, case.repeats, float64=case.float64)
    where = f"{case.name}, {case.matrix}"
    title = f"{where}: p = {problem.size:,}, {case.images:,} images"
    console.print(title, {name: round(statistics.median(times), 3) for name, times in timed.seconds.items()})
    note = (
        f"Median (least–greatest) of {case.repeats} interleaved repeats; ×: ratio to hesspec, repeat "
        f"by repeat; build: what the first product took longer; error: relative, against plain reverse mode in "
        f"{'float64' if case.float64 else 'float32, which has an error of its own'}. hesspec's mode: {timed.mode}."
    )
    rows = [
        (
            LABELS[name],
            spread(timed.seconds[name], "{:.3f}"),
            spread(ratios(timed.seconds[name], timed.seconds["hesspec"]), "{:.2f}"),
            spread(timed.kept[name], "{:.3f}"),
            spread(ratios(timed.kept[name], timed.kept["hesspec"]), "{:.2f}"),
            f"{timed.built[name]:.2f}",
            f"{timed.errors[name]:.0e}",
        )
        for name in case.houses
    ]
    columns = ("matvec", "seconds", "×", "memory kept for all: seconds", "×", "build, s", "error")
    given = timed.kept if case.kept else timed.seconds
    words = ", memory kept for all" if case.kept else ""
    wanted = [
        Target(f"{where}{words}, times as fast as {LABELS[name]}", factor, faster(given, name))
        for name, factor in case.wanted.items()
    ]
    return Block(title, note, columns, rows, (LABELS["hesspec"],)), wanted


def faster(seconds: dict[str, list[float]], name: str) -> float:
    """How many times as fast as a house hesspec is: median of the repeats' ratios."""
    return statistics.median(ratios(seconds[name], seconds["hesspec"]))


# Set-up -----------------------------------------------------------------------------------------------------------


def operator(problem: Problem, size: int, memory: int | None = None) -> hesspec.Hessian:
    """hesspec's Hessian of the same data in batches of this size, within so many bytes."""
    return hesspec.Hessian(problem.model, problem.loss, problem.split(size).data, memory=memory)


def nothing_kept(problem: Problem, kept: hesspec.Hessian, size: int) -> hesspec.Hessian:
    """The same operator with memory for one pass at work and not for one that is kept beside it.

    `kept` has multiplied and keeps everything. The result has multiplied, too: it has its trace.
    """
    known = kept.attributes
    one = int(known["kept_bytes"]) / int(known["kept_batches"])
    budget = int(known["predicted_peak_bytes"]) - int(known["kept_bytes"]) + int(1.5 * one)
    streamed = operator(problem, size, budget)
    _ = streamed @ torch.randn(problem.size)
    if streamed.attributes["kept_batches"]:
        raise ValueError(f"Primal passes are kept with a budget of {budget:,} bytes: {streamed.attributes}.")
    return streamed


def set_up(problem: Problem, size: int) -> float:
    """Seconds from the model to the first product, less a second product."""
    gc.collect()
    vector = torch.randn(problem.size)
    start = time.perf_counter()
    matrix = operator(problem, size)
    _ = matrix @ vector
    middle = time.perf_counter()
    _ = matrix @ vector
    return max(0.0, middle - start - (time.perf_counter() - middle))


def batches(images: int, repeats: int) -> tuple[Block, list[Target]]:
    """Set-up with 1 batch and with 20, one trace, and the primal passes, each of them measured by itself."""
    problem = real_problem("small_cnn", images, "Hessian")
    one = problem.first(images // BATCHES)
    vector = torch.randn(problem.size)
    kept = operator(problem, images // BATCHES)
    _ = kept @ vector
    streamed = nothing_kept(problem, kept, images // BATCHES)
    calls = {
        "one batch": lambda: set_up(problem, images),
        "batches": lambda: set_up(problem, images // BATCHES),
        "trace": lambda: set_up(one, images // BATCHES),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats):
        for name in random.Random(repeat).sample(list(calls), len(calls)):  # noqa: S311
            seconds[name].append(calls[name]())
    times = interleaved({"kept": lambda: kept @ vector, "streamed": lambda: streamed @ vector}, repeats + 2)
    primal = [late - early for late, early in zip(times["streamed"], times["kept"], strict=True)]
    # One batch's primal pass is in the trace's seconds already.
    beyond = [(many - single) for many, single in zip(seconds["batches"], seconds["trace"], strict=True)]
    passes = statistics.median(primal) * (BATCHES - 1) / BATCHES
    title = f"Set-up: small CNN, Hessian, {images:,} images, {BATCHES} batches instead of 1"
    note = (
        f"Seconds, median (least–greatest) of {repeats} interleaved repeats; set-up: first product less second. Primal "
        "passes: a product with nothing kept less one with all kept, which is one pass more over the data."
    )
    rows = [
        ("set-up, 1 batch", spread(seconds["one batch"], "{:.2f}")),
        (f"set-up, {BATCHES} batches", spread(seconds["batches"], "{:.2f}")),
        ("set-up, one of these batches alone: a trace and a primal pass", spread(seconds["trace"], "{:.2f}")),
        (f"difference of the last two: {BATCHES - 1} more batches", spread(beyond, "{:.2f}")),
        (f"{BATCHES - 1} primal passes", spread((x * (BATCHES - 1) / BATCHES for x in primal), "{:.2f}")),
    ]
    target = Target(
        f"set-up of {BATCHES} batches beyond one trace, in primal passes of all of them (with a fifth for scatter)",
        1.2,
        statistics.median(beyond) / passes,
        above=False,
    )
    return Block(title, note, ("what", "seconds"), rows), [target]


# Streamed ---------------------------------------------------------------------------------------------------------


def streamed(images: int, columns: int) -> tuple[Block, list[Target]]:
    """hesspec with nothing kept against curvlinops, on a matrix of several columns."""
    problem = real_problem("vgg11_bn", images, "Hessian")
    size = images // PASSES
    vectors = torch.randn(problem.size, columns)
    kept = operator(problem, size)
    _ = kept @ vectors[:, 0].contiguous()
    mine = nothing_kept(problem, kept, size)
    del kept
    theirs = house("curvlinops").operator(problem.fresh().split(size))
    _ = house("curvlinops").operator(problem.first(2)) @ vectors
    times = interleaved({"hesspec": lambda: mine @ vectors, "curvlinops": lambda: theirs @ vectors}, 1)
    each = {name: [seconds / columns for seconds in times[name]] for name in times}
    title = f"Streamed: VGG11-BN, Hessian, {images:,} images, {columns} vectors in a pass"
    note = (
        f"Seconds for each vector, once, the images in {PASSES} batches. hesspec keeps nothing and repeats the primal "
        f"passes, once for all vectors: {mine.attributes['mode_reason']}."
    )
    ratio = ratios(each["curvlinops"], each["hesspec"])[0]
    rows = [
        ("hesspec, streamed", f"{each['hesspec'][0]:.3f}", "1.00"),
        (f"curvlinops, a matrix of {columns} columns", f"{each['curvlinops'][0]:.3f}", f"{ratio:.2f}"),
    ]
    wanted = Target("VGG11-BN, Hessian, streamed, times as fast as curvlinops' matmat", 1.4, ratio)
    return Block(title, note, ("matvec", "seconds per vector", "×"), rows, ("hesspec",)), [wanted]


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, "few images, one repeat; the README stays as it is")
    options = parser.parse_args()
    begin(options.threads)
    start, load = time.perf_counter(), os.getloadavg()[0]
    cases = [case.small for case in CASES] if options.quick else CASES
    parts = [products(case) for case in cases]
    parts.append(batches(BATCHES if options.quick else 1000, 1 if options.quick else 3))
    parts.append(streamed(8 if options.quick else 128, 2 if options.quick else COLUMNS))
    blocks = [targets([target for _, wanted in parts for target in wanted]), *(block for block, _ in parts)]
    publish("products", "Networks as they are initialised", blocks, load, start, write=not options.quick)


if __name__ == "__main__":
    main()
