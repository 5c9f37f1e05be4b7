"""Products in bfloat16 on a CPU: their time against float32, their error, and what is left of a spectrum.

    python benchmarks/lower_precision.py [--quick]

Products are those of one thread, in processor seconds, interleaved. Spectra are of trained networks whose exact
eigenvalues are known: what the bounds say with each precision, and the errors that there really are.

Prints the tables, and writes them into benchmarks/README.md. `--quick` has few images, and writes nothing.
"""

from __future__ import annotations

import os
import statistics
import time

import numpy as np
import scipy.stats
import torch
from torch import nn

import hesspec
from _exact import load_network
from _matvecs import real_problem
from _tables import Block, arguments, console, publish, ratios, spread
from hesspec.study.networks import GPT

PRECISIONS = ("full", "bfloat16")
REPEATS, STEPS = 7, 48
# Of the small language model: vocabulary, length of a sequence, sequences.
WORDS, LENGTH, SEQUENCES = 2048, 128, 4


def language(sequences: int) -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A GPT of four layers on random words."""
    torch.manual_seed(0)
    words = torch.randint(WORDS, (sequences, LENGTH + 1))
    model = GPT(WORDS, LENGTH, layers=4, heads=4, width=256).eval()
    return model, [(words[:, :-1], words[:, 1:])]


def products(images: int, sequences: int, repeats: int) -> Block:
    """Time and error of products."""
    vgg, rows = real_problem("vgg11_bn", images, "Hessian"), []
    problems = (
        (f"VGG11-BN, {images} images", vgg.model, vgg.loss, vgg.data),
        (f"GPT, {sequences} × {LENGTH} words", language(sequences)[0], nn.CrossEntropyLoss(), language(sequences)[1]),
    )
    for name, model, loss, data in problems:
        for matrix in ("Hessian", "GaussNewton"):
            operators = {
                precision: getattr(hesspec, matrix)(model, loss, data, precision=precision, mode="traced")
                for precision in PRECISIONS
            }
            vector = torch.randn(operators["full"].shape[0], generator=torch.Generator().manual_seed(0))
            full, lower = (operator @ vector for operator in operators.values())
            seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
            for _ in range(repeats):
                for precision, operator in operators.items():
                    start = time.process_time()
                    _ = operator @ vector
                    seconds[precision].append(time.process_time() - start)
            error = float((lower - full).norm() / full.norm())
            rows.append(
                (
                    f"{name}, p = {len(vector):,}, {matrix}",
                    *(f"{statistics.median(taken):.3f}" for taken in seconds.values()),
                    spread(ratios(seconds["full"], seconds["bfloat16"]), "{:.2f}"),
                    f"{error:.1e}",
                )
            )
            console.print(*rows[-1], style="dim")
    return Block(
        "Products",
        f"Processor seconds of one thread, medians of {repeats}; error: of a product in bfloat16 against one in "
        "float32, relative, random vector.",
        ("product", "float32", "bfloat16", "times as fast", "error"),
        rows,
    )


def spectra(networks: tuple[str, ...]) -> Block:
    """What bounds say, and what errors there are."""
    rows = []
    for network in networks:
        make, eigenvalues = load_network(network)
        for matrix in ("Hessian", "GaussNewton"):
            problem, exact = make(matrix), np.sort(eigenvalues[matrix])
            mean = np.abs(exact).mean()
            for precision in PRECISIONS:
                operator = getattr(hesspec, matrix)(problem.model, problem.loss, problem.data, precision=precision)
                found = hesspec.spectrum(operator, steps=STEPS, seed=0)
                # Ritz values have bounds whether they are resolved or not.
                apart = np.abs(exact[None] - found.ritz_values[:, None]).min(1)
                w1 = scipy.stats.wasserstein_distance(found.nodes, exact, found.weights)
                rows.append(
                    (
                        f"{network}, {matrix}",
                        {"full": "float32"}.get(precision, precision),
                        f"{found.norm:.3g}",
                        f"{mean:.2e}",
                        f"{found.rounding / found.norm:.1e}",
                        f"{found.rounding / mean:.2g}",
                        f"{len(found.eigenvalues)}",
                        f"{(apart / found.ritz_bounds).max():.2f}",
                        f"{np.abs(found.ritz_values.max() - exact[-1]) / exact[-1]:.1e}",
                        f"{w1 / mean:.3f}",
                    )
                )
                console.print(*rows[-1], style="dim")
    return Block(
        "Spectra",
        f"{STEPS} steps. Rounding: the part of every bound that arithmetic and noise of products make up. Error over "
        "bound: the largest of all Ritz values, at most 1 where bounds hold. W1: true distance of the measures.",
        (
            "matrix", "precision", "norm", "mean abs. λ", "rounding / norm", "rounding / mean abs. λ", "resolved",
            "error over bound", "error of the largest, relative", "W1 / mean abs. λ",
        ),
        rows,
    )  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__, "few images; the README stays as it is").parse_args()
    torch.set_num_threads(1)
    start, load = time.perf_counter(), os.getloadavg()[0]
    images, sequences, repeats = (2, 1, 1) if options.quick else (64, SEQUENCES, REPEATS)
    blocks = [products(images, sequences, repeats), spectra(("fashion-cnn", "fashion-plain"))]
    publish("lower_precision", "One thread", blocks, load, start, write=not options.quick)


if __name__ == "__main__":
    main()
