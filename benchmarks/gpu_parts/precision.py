"""Lower precision: its time, the error that the operator states, and whether bounds hold against float64."""

from __future__ import annotations

import statistics

import numpy as np
import torch
from torch import nn

import hesspec
from _turns import in_turn
from gpu_parts import Given, synchronised
from gpu_parts.ceilings import rate
from gpu_parts.networks import eigenvalues, small, vgg
from gpu_parts.products import operations

TITLE = "Precision"
NOTE = (
    "Times are of VGG11-BN, 2,048 images; share: operations over those of a large matrix product of that precision in "
    "the same time; the error is that of one product against float64. The others are of a "
    "small network: rounding that the spectrum measured, relative to its norm, and the largest error of a resolved "
    "eigenvalue over its bound, against exact ones in float64; at most 1 where bounds hold."
)
COLUMNS = ("matrix", "precision", "ms", "times", "share of peak", "error", "measured rounding", "error over bound")


def run(given: Given) -> None:
    """Measure."""
    cuda, loss, size = given.device.type == "cuda", nn.CrossEntropyLoss(), 512 if given.quick else 8192
    peaks = {
        "full": rate(given.device, torch.float32, size),
        "bfloat16": rate(given.device, torch.bfloat16, size),
        **({"tf32": rate(given.device, torch.float32, size, tf32=True)} if cuda else {}),
    }
    torch.manual_seed(0)
    model, samples = vgg().eval().to(given.device), 4 if given.quick else 2048
    inputs, targets = (
        torch.randn(samples, 3, 32, 32, device=given.device),
        torch.arange(samples, device=given.device) % 10,
    )
    for matrix in ("Hessian", "GaussNewton"):
        # One trace for all precisions.
        kind, operators, traces = getattr(hesspec, matrix), {}, hesspec.GraphCache()
        double = kind(model.double(), loss, [(inputs.double(), targets)])
        vector = torch.randn(double.shape[0], device=given.device)
        truth = double @ vector.double()
        del double
        model.float()
        for precision in ("full", "tf32", "bfloat16") if cuda else ("full", "bfloat16"):
            with given.step(f"{matrix}, {precision}"):
                operators[precision] = kind(model, loss, [(inputs, targets)], precision=precision, graphs=traces)
                operators[precision] @ vector
        calls = {name: synchronised(lambda o=o, v=vector: o @ v, given.device) for name, o in operators.items()}
        taken = in_turn(calls, 3 if given.quick else 5, 0.0 if given.quick else 2.0)
        for precision, operator in operators.items():
            with given.step(f"{matrix}, {precision}"):
                error = float((operator @ vector - truth).norm() / truth.norm())
                times = [a / b for a, b in zip(taken["full"], taken[precision], strict=True)]
                given.keep(
                    matrix,
                    precision,
                    f"{1e3 * statistics.median(taken[precision]):.2f}",
                    f"{statistics.median(times):.2f}",
                    f"{operations(calls[precision]) / statistics.median(taken[precision]) / peaks[precision]:.0%}",
                    f"{error:.1e}",
                    *worst(given, matrix, precision),
                )


def worst(given: Given, matrix: str, precision: str) -> tuple[str, str]:
    """Rounding that a spectrum measured, over its norm; and the largest error of an eigenvalue over its bound."""
    truth = eigenvalues(matrix)
    model, data = small(given.device, torch.float32)
    operator = getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), data, precision=precision, mode="traced")
    found = hesspec.spectrum(operator, steps=40, seed=0)
    nearest = np.abs(truth[None] - found.eigenvalues[:, None]).min(1)
    share = float((nearest / (found.error_bounds + found.rounding)).max(initial=0.0))
    return f"{found.rounding / found.norm:.1e}", f"{share:.2f}"
