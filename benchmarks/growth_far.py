"""How hesspec's time grows further: to 124 million parameters, 50,000 images, 512 steps; slopes beside the formulas.

    python benchmarks/growth_far.py [--quick]

Hessians as in `growth.py`, float32, one thread, processor seconds, which other work on a machine changes less than wall
clock. Images are in batches of 500. A spectrum is everything from the operator to the answer without the first product,
which traces. Needs 12 GB of memory.

Prints the tables, and writes them into benchmarks/README.md. `--quick` has small curves, and writes nothing.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable
from itertools import pairwise

import torch

import hesspec
from _matvecs import real_problem
from _tables import Block, arguments, console, publish
from growth import vgg

FEW_STEPS, BATCH = 8, 500


def processor_seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measured(
    model: torch.nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]], steps: int | None
) -> tuple[int, float, float | None]:
    """Parameters, seconds of a product, and of a spectrum of so many steps."""
    operator = hesspec.Hessian(model.eval(), torch.nn.CrossEntropyLoss(), data)
    vector = torch.randn(operator.shape[0])
    _ = operator @ vector
    product = processor_seconds(lambda: operator @ vector)
    spectrum = None if steps is None else processor_seconds(lambda: hesspec.spectrum(operator, steps=steps))
    console.print(f"p = {operator.shape[0]:,}: product {product:.3f} s, spectrum {spectrum}", style="dim")
    gc.collect()
    return operator.shape[0], product, spectrum


def slopes(sizes: list[int], seconds: list[float]) -> list[str]:
    """Of the logarithms, from each point to the next; the first has none."""
    ends = zip(pairwise(sizes), pairwise(seconds), strict=True)
    return ["", *(f"{math.log(t / s) / math.log(y / x):.2f}" for (x, y), (s, t) in ends)]


def parameters(widths: tuple[float, ...], steps: int) -> Block:
    """Of VGG11-BN of any width."""
    found = []
    for width in widths:
        problem = vgg(width)
        found.append(measured(problem.model, problem.data, steps))
    sizes = [p for p, _, _ in found]
    rows = zip(
        (f"{p:,}" for p in sizes),
        (f"{product:.3f}" for _, product, _ in found),
        slopes(sizes, [product for _, product, _ in found]),
        (f"{spectrum:.2f}" for _, _, spectrum in found),
        slopes(sizes, [spectrum or 0.0 for _, _, spectrum in found]),
        strict=True,
    )
    return Block(
        f"Parameters (VGG11-BN of any width, 8 images, {steps} steps)",
        "Operations and vectors are proportional to p: slope 1.",
        ("number of parameters p", "product, s", "slope", "spectrum, s", "slope"),
        list(rows),
    )


def samples(counts: tuple[int, ...]) -> Block:
    """Of the small CNN."""
    found = []
    for count in counts:
        problem = real_problem("small_cnn", count, "Hessian")
        ((inputs, labels),) = problem.data
        batches = list(zip(torch.split(inputs, BATCH), torch.split(labels, BATCH), strict=True))
        found.append(measured(problem.model, batches, None))
    seconds = [product for _, product, _ in found]
    rows = zip(
        (f"{count:,}" for count in counts),
        (f"{each:.3f}" for each in seconds),
        slopes(list(counts), seconds),
        strict=True,
    )
    return Block(
        f"Samples (small CNN, p = {found[0][0]:,})",
        "Operations are proportional to N: slope 1; passes that do not fit into memory are repeated.",
        ("number of images N", "product, s", "slope"),
        list(rows),
    )


def steps(lengths: tuple[int, ...]) -> Block:
    """Of the small CNN."""
    problem, rows, seconds, parts = real_problem("small_cnn", 32, "Hessian"), [], [], []
    for length in lengths:
        p, product, spectrum = measured(problem.model, problem.data, length)
        seconds.append(spectrum or 0.0)
        parts.append(product * (length + 1))
    for length, total, part, slope in zip(lengths, seconds, parts, slopes(list(lengths), seconds), strict=True):
        rows.append((f"{length:,}", f"{total:.2f}", slope, f"{part:.2f}"))
    return Block(
        f"Lanczos steps (small CNN, p = {p:,}, 32 images)",
        "Products are proportional to m, full reorthogonalisation to m²: the slope goes from 1 to 2.",
        ("Lanczos steps m", "spectrum, s", "slope", "as many products, s"),
        rows,
    )


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__, "small curves; the README stays as it is").parse_args()
    torch.set_num_threads(1)
    start, load = time.perf_counter(), os.getloadavg()[0]
    few = options.quick
    blocks = [
        steps((4, 8) if few else (32, 128, 512)),
        parameters((1 / 32, 1 / 16) if few else (1 / 4, 1 / 2, 1, 2.1), 2 if few else FEW_STEPS),
        samples((8, 16) if few else (500, 5_000, 50_000)),
    ]
    publish("growth_far", "Networks as they are initialised", blocks, load, start, write=not few)


if __name__ == "__main__":
    main()
