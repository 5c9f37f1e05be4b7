"""hesspec: one Krylov run, and the plain stochastic Lanczos quadrature that the same run contains."""

from __future__ import annotations

from typing import Literal

from torch import nn

import hesspec
from hesspec import Spectrum
from methods import Answer, Candidate, Method, Problem, largest

__all__ = ["METHODS", "REFERENCE", "SCANS", "operator"]

REFERENCE = "hesspec: one run, 64 steps"
SCAN_STEPS = (*range(8, 65, 2), 80, 96)


def operator(problem: Problem) -> hesspec.Hessian | hesspec.GaussNewton:
    """The curvature matrix of the model's parameters; its first product traces it."""
    kind = hesspec.Hessian if problem.matrix == "Hessian" else hesspec.GaussNewton
    return kind(problem.model, nn.CrossEntropyLoss(), problem.data)


def resolved(spectrum: Spectrum) -> Answer:
    """The measure of the result; nodes of the bulk fill up where fewer than ten eigenvalues are resolved."""
    return Answer(spectrum.nodes, spectrum.weights, largest(spectrum.nodes), spectrum.matvecs)


def plain(spectrum: Spectrum) -> Answer:
    """Ritz values and weights of the run as they came."""
    return Answer(spectrum.ritz_values, spectrum.ritz_weights, largest(spectrum.ritz_values), spectrum.matvecs)


def one_run(problem: Problem, seed: int, steps: int | Literal["auto"]) -> list[Answer]:
    """The answer of the run, and the plain quadrature's."""
    spectrum = hesspec.spectrum(operator(problem), steps=steps, seed=seed)
    return [resolved(spectrum), plain(spectrum)]


def scan(problem: Problem, seed: int) -> list[Candidate]:
    """One run of every length, each by itself."""
    spectra = [hesspec.spectrum(problem.dense, steps=steps, seed=seed) for steps in SCAN_STEPS]
    return [
        Candidate(f"{steps} steps", spectrum.nodes, spectrum.weights, spectrum.matvecs)
        for steps, spectrum in zip(SCAN_STEPS, spectra, strict=True)
    ]


SCANS = {"hesspec": scan}

METHODS = [
    Method((REFERENCE.replace("64", "32"),), lambda problem, seed: one_run(problem, seed, 32)[:1]),
    Method(
        (REFERENCE, "plain Lanczos quadrature, 64 steps (the same run)"),
        lambda problem, seed: one_run(problem, seed, 64),
    ),
    Method(
        (REFERENCE.replace("64", "128"), "plain Lanczos quadrature, 128 steps (the same run)"),
        lambda problem, seed: one_run(problem, seed, 128),
    ),
    Method(('hesspec: one run, steps="auto"',), lambda problem, seed: one_run(problem, seed, "auto")[:1]),
]
