"""PyHessian's algorithm, re-implemented: its release on PyPI calls `torch.eig`, which PyTorch no longer has.

As in its repository: a double-backward graph of the one batch is kept for all products; `density(iter=100, n_v=1)` is
Lanczos from a Rademacher vector, each new vector made orthogonal to all earlier ones in one Gram-Schmidt sweep;
`eigenvalues(top_n=10)` is power iteration in the complement of those found, for each at most 100 products or until two
estimates in a row differ by 0.1%. Vectors are divided by their norm plus 1e-6 there, and here. Flat vectors in place of
lists, and a symmetric eigensolver in place of `eig`. It has the Hessian only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.autograd import grad

from methods import LARGEST, Answer, Array, Candidate, Counted, CountedDense, Method, Problem, largest, quadrature

__all__ = ["METHODS", "SCANS", "operator"]

STEPS, ITERATIONS, TOLERANCE = 100, 100, 1e-3
TINY = 1e-6
SCAN_STEPS, SCAN_RUNS = (16, 32, 64), (1, 2, 5, 10)


def operator(problem: Problem) -> Callable[[Tensor], Tensor]:
    """v -> Hess v from a double-backward graph that is built here, once."""
    parameters = problem.parameters
    sizes, shapes = [p.numel() for p in parameters], [p.shape for p in parameters]
    ((inputs, targets),) = problem.data
    gradient = grad(problem.loss(problem.model(inputs), targets), parameters, create_graph=True)

    def multiply(vector: Tensor) -> Tensor:
        v = [part.view(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)]
        return torch.cat([part.flatten() for part in grad(gradient, parameters, v, retain_graph=True)])

    return multiply


def normalised(v: Tensor, others: list[Tensor]) -> Tensor:
    """One Gram-Schmidt sweep against the others, then nearly unit length."""
    for other in others:
        v = v - (v @ other) * other
    return v / (v.norm() + TINY)


def tridiagonal(multiply: Callable[[Tensor], Tensor], size: int, steps: int) -> tuple[Array, Array]:
    """Diagonal and off-diagonal of a run."""
    basis = [normalised(torch.randint(2, (size,)) * 2.0 - 1, [])]
    alpha, beta = np.zeros(steps), np.zeros(steps - 1)
    for j in range(steps):
        w = multiply(basis[j])
        alpha[j] = w @ basis[j]
        w = w - alpha[j] * basis[j]
        if j:
            w = w - beta[j - 1] * basis[j - 1]
        if j < steps - 1:
            beta[j] = w.norm()
            basis.append(normalised(w, basis))
    return alpha, beta


def eigenvalues(multiply: Callable[[Tensor], Tensor], size: int) -> Array:
    """The ten largest by power iteration."""
    found: list[float] = []
    vectors: list[Tensor] = []
    for _ in range(LARGEST):
        v, value = normalised(torch.randn(size), []), float("nan")
        for _ in range(ITERATIONS):
            v = normalised(v, vectors)
            w = multiply(v)
            estimate = float(w @ v)
            v = normalised(w, [])
            if abs(value - estimate) / (abs(value) + TINY) < TOLERANCE:
                break
            value = estimate
        found.append(value)
        vectors.append(v)
    return np.array(found)


def both(problem: Problem, seed: int) -> list[Answer]:
    """Density and eigenvalues, from one graph."""
    torch.manual_seed(seed)
    multiply = Counted(operator(problem))
    nodes, weights = quadrature(*tridiagonal(multiply, problem.size, STEPS))
    top = largest(eigenvalues(multiply, problem.size))
    return [Answer(nodes, weights / weights.sum(), top, multiply.calls)]


def scan(problem: Problem, seed: int) -> list[Candidate]:
    """`density` with fewer steps and more runs; a run of many steps has the shorter ones in it."""
    torch.manual_seed(seed)
    multiply = CountedDense(problem.dense)
    runs = [tridiagonal(multiply, problem.size, max(SCAN_STEPS)) for _ in range(max(SCAN_RUNS))]
    candidates = []
    for steps in SCAN_STEPS:
        pairs = [quadrature(alpha[:steps], beta[: steps - 1]) for alpha, beta in runs]
        for count in SCAN_RUNS:
            nodes, weights = (np.concatenate(parts) for parts in zip(*pairs[:count], strict=True))
            settings = f"density(iter={steps}, n_v={count})"
            candidates.append(Candidate(settings, nodes, weights / weights.sum(), count * steps))
    return candidates


SCANS = {"PyHessian (re-implemented)": scan}

METHODS = [Method(("PyHessian (re-implemented): density(100), eigenvalues(10)",), both, ("Hessian",))]
