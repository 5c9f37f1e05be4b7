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

from methods import LARGEST, Answer, Array, Counted, Method, Problem, largest

__all__ = ["METHODS", "operator"]

STEPS, ITERATIONS, TOLERANCE = 100, 100, 1e-3
TINY = 1e-6


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


def density(multiply: Callable[[Tensor], Tensor], size: int) -> tuple[Array, Array]:
    """Nodes and weights."""
    basis = [normalised(torch.randint(2, (size,)) * 2.0 - 1, [])]
    alpha, beta = np.zeros(STEPS), np.zeros(STEPS - 1)
    for j in range(STEPS):
        w = multiply(basis[j])
        alpha[j] = w @ basis[j]
        w = w - alpha[j] * basis[j]
        if j:
            w = w - beta[j - 1] * basis[j - 1]
        if j < STEPS - 1:
            beta[j] = w.norm()
            basis.append(normalised(w, basis))
    nodes, vectors = np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))
    return nodes, vectors[0] ** 2


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
    nodes, weights = density(multiply, problem.size)
    top = largest(eigenvalues(multiply, problem.size))
    return [Answer(nodes, weights / weights.sum(), top, multiply.calls)]


METHODS = [Method(("PyHessian (re-implemented): density(100), eigenvalues(10)",), both, ("Hessian",))]
