"""The whole measurement at 28.2 million parameters: VGG11-BN on 256 FashionMNIST images, Hessian, 64 steps.

    python benchmarks/scale.py [--bases half full] [--threads N] [--quick]

Each basis has a process of its own, so that its peak memory is the operating system's count of it. Seconds are
everything from the model to the answer: reading the data once, tracing, all products, orthogonalisation. What a
product takes is measured around the operator's @; what of the first one is tracing and primal passes, the operator says
itself. The slow sides, the papers' procedure and the best other library, are timed over a few interleaved products each
and multiplied by the number of products that they need for the same accuracy, counted by `accuracy.py` on a trained
network whose exact spectrum is known. Nothing is added for their own orthogonalisation.

Prints the tables, and writes them into benchmarks/README.md. `--quick` has few images and steps, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor

import hesspec
from _matvecs import LABELS, house, interleaved, multiply, real_problem
from _tables import Block, Target, arguments, begin, console, publish, ratios, spread, targets

NETWORK, IMAGES, STEPS, REPEATS = "vgg11_bn", 256, 64, 2
# Products for W1 at most that of the papers' procedure: its own, the best of the other libraries, hesspec. From the
# table of accuracy.py in README.md (fashion-cnn, Hessian, mean over 10 seeds); of hesspec's runs 26 steps are the first
# to reach it, and all even numbers of them from 38 to 48 do.
PAPERS, BEST_PEER, OURS = 1472, 44, 38
PEER = "curvlinops: eigsh(k=20, tol=0.1, ncv=30) and deflated fast_lanczos(10)"
GIGABYTE = 1e9


class Watched:
    """An operator that says when each product began and ended."""

    def __init__(self, operator: hesspec.Hessian) -> None:
        self._operator = operator
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device
        self.times: list[tuple[float, float]] = []

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the operator."""
        return self._operator.attributes

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The product."""
        start = time.perf_counter()
        product = self._operator @ vectors
        self.times.append((start, time.perf_counter()))
        return product


def child(basis: str, images: int, steps: int) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    problem = real_problem(NETWORK, images, "Hessian")
    ended: list[float] = []
    start = time.perf_counter()
    operator = Watched(house("hesspec").operator(problem))
    spectrum = hesspec.spectrum(
        operator, steps=steps, basis=basis, on_step=lambda *_: ended.append(time.perf_counter() - start)
    )
    seconds = time.perf_counter() - start
    built = float(operator.attributes["build_seconds"])
    matvecs = [end - begin for begin, end in operator.times]
    return {
        "seconds": seconds,
        "built": built,
        "matvecs": sum(matvecs) - built,
        "matvec": statistics.median(matvecs),
        "ended": ended,
        "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "size": spectrum.dimension,
        "resolved": len(spectrum.eigenvalues),
        "mode": operator.attributes["mode"],
    }


def planned(basis: str, images: int, steps: int) -> dict[str, Any]:
    """What `hesspec.plan` says of the same measurement."""
    plan = hesspec.plan(house("hesspec").operator(real_problem(NETWORK, images, "Hessian")), steps=steps, basis=basis)
    return {"seconds": plan.seconds, "peak": plan.peak_bytes, "matvec": plan.seconds_matvec}


def apart(what: str, basis: str, images: int, steps: int) -> dict[str, Any]:
    """A "run" (`child`) or a "plan" (`planned`) in a new process."""
    command = [sys.executable, __file__, "--threads", str(torch.get_num_threads())]
    done = subprocess.run(  # noqa: S603
        [*command, "--child", what, basis, str(images), str(steps)], check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    console.print(
        f"{what}, basis {basis}: {result['seconds']:.0f} s, peak {result['peak'] / GIGABYTE:.2f} GB", style="dim"
    )
    return result


def whole(runs: dict[str, dict[str, Any]], plans: dict[str, dict[str, Any]], steps: int) -> Block:
    """The table of hesspec's runs, and of what was planned beforehand."""
    size = next(iter(runs.values()))["size"]
    rows = [
        (
            f"basis {basis}",
            f"{run['seconds']:.0f}",
            f"{run['built']:.1f}",
            f"{run['matvecs']:.0f}",
            f"{run['seconds'] - run['built'] - run['matvecs']:.1f}",
            f"{100 * rest(run):.1f}%",
            f"{run['matvec']:.2f}",
            f"{run['peak'] / GIGABYTE:.2f}",
        )
        for basis, run in runs.items()
    ]
    rows += [
        (
            f"planned, basis {basis}",
            f"{plan['seconds']:.0f}",
            *("" for _ in range(4)),
            f"{plan['matvec']:.2f}",
            f"{plan['peak'] / GIGABYTE:.2f}",
        )
        for basis, plan in plans.items()
    ]
    note = (
        f"p = {size:,}, {steps} steps, one run each; build: trace and primal passes; rest: data, orthogonalisation, "
        "everything else; peak: resident memory of the whole process, with PyTorch, model and data."
    )
    columns = (
        "hesspec", "seconds", "build", "matvecs", "rest", "all but matvecs", "a matvec (median)", "peak memory, GB"
    )  # fmt: skip
    return Block("The whole run", note, columns, rows)


def sides(run: dict[str, Any], images: int, repeats: int) -> tuple[Block, list[Target]]:
    """The slow sides, multiplied, against the run up to the step of the same accuracy."""
    problem = real_problem(NETWORK, images, "Hessian")
    vector = torch.randn(problem.size)
    products = {name: house(name).operator(problem.fresh()) for name in ("papers", "curvlinops")}
    for product in (house(name).operator(problem.first(2)) for name in products):
        multiply(product, vector)
    calls = {name: lambda product=product: multiply(product, vector) for name, product in products.items()}
    times = interleaved(calls, repeats)
    steps = min(OURS, len(run["ended"]))
    # The end of the run, from the last step to the answer, would come after that step as well.
    ours = run["ended"][steps - 1] + run["seconds"] - run["ended"][-1]
    totals = {
        name: [count * seconds for seconds in times[name]]
        for name, count in (("papers", PAPERS), ("curvlinops", BEST_PEER))
    }
    rows = [(f"hesspec, {steps} steps, everything included", f"{steps}", "measured", f"{ours:.0f}", "1.0")]
    rows += [
        (
            label,
            f"{count:,}",
            spread(times[name], "{:.2f}"),
            spread(totals[name], "{:,.0f}"),
            spread(ratios(totals[name], [ours] * repeats), "{:.1f}"),
        )
        for name, label, count in (
            ("papers", "papers' procedure, " + LABELS["papers"], PAPERS),
            ("curvlinops", PEER, BEST_PEER),
        )
    ]
    note = (
        "Products: what W1 of the papers' procedure takes (accuracy.py); hesspec's seconds are those of the run above, "
        f"to that step. Of the others {repeats} interleaved products were timed and multiplied; their own "
        "orthogonalisation is left out. Median (least–greatest)."
    )
    columns = ("method", "products", "seconds per product", "seconds in all", "×")
    wanted = [
        Target(
            "spectrum of Hess, VGG11-BN, times as fast as the papers' procedure", 40,
            statistics.median(totals["papers"]) / ours, "{:.1f}",
        ),
        Target(
            "the same, times as fast as the best peer", 7, statistics.median(totals["curvlinops"]) / ours, "{:.1f}"
        ),
    ]  # fmt: skip
    return Block("Wall clock at the accuracy of the papers' procedure", note, columns, rows, ("hesspec",)), wanted


def rest(run: dict[str, Any]) -> float:
    """Share of a run that is not matvecs; the trace and the primal passes are not matvecs."""
    return 1 - float(run["matvecs"]) / float(run["seconds"])


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, "few images and steps; the README stays as it is")
    parser.add_argument("--bases", nargs="+", choices=("half", "full"), default=["half"], help="default: half")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    begin(options.threads)
    if options.child:
        what, basis, images, steps = options.child
        print(json.dumps({"run": child, "plan": planned}[what](basis, int(images), int(steps))))
        return
    start, load = time.perf_counter(), os.getloadavg()[0]
    images, steps, repeats = (4, 6, 1) if options.quick else (IMAGES, STEPS, REPEATS)
    plans = {basis: apart("plan", basis, images, steps) for basis in options.bases}
    runs = {basis: apart("run", basis, images, steps) for basis in options.bases}
    fastest = min(runs.values(), key=lambda run: run["seconds"])
    block, wanted = sides(fastest, images, repeats)
    wanted.append(
        Target(f"everything but matvecs in {steps} steps, % of the run", 10, 100 * rest(fastest), "{:.1f}", above=False)
    )
    if "half" in runs:
        peak = runs["half"]["peak"] / GIGABYTE
        wanted.append(Target("peak memory with the half-width basis on the host, GB", 10, peak, above=False))
    wanted += [
        Target(
            f"hesspec.plan, basis {basis}: {name} off by, %",
            25,
            100 * abs(plan[key] / runs[basis][key] - 1),
            "{:.0f}",
            above=False,
        )
        for basis, plan in plans.items()
        for name, key in (("seconds", "seconds"), ("peak memory", "peak"))
    ]
    what = f"VGG11-BN as it is initialised, {images} images in one batch"
    publish("scale", what, [targets(wanted), whole(runs, plans, steps), block], load, start, write=not options.quick)


if __name__ == "__main__":
    main()
