"""The published procedure: the code released with arXiv 1811.07062 ("DeepnetHessian"), re-implemented.

The release is a script for one GPU, not a package. What follows is its algorithm step by step: reverse-over-reverse
products (for the Gauss-Newton matrix by the double-backward trick), subspace iteration with classical Gram-Schmidt, in
which an eigenvalue is the norm of A q, Lanczos without reorthogonalisation on A - V diag(values) V^T. It works on flat
vectors, which is faster than the lists of the release. Steps: 64 for the range of the spectrum, 128 subspace iterations
for C vectors, 128 Lanczos steps, 1,472 products for C = 10; the notebook in the release now takes 256 in the last step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import grad

from methods import (
    Answer,
    Array,
    Candidate,
    Counted,
    CountedDense,
    Method,
    Problem,
    deflated_measure,
    largest,
    quadrature,
)

__all__ = ["METHODS", "SCANS", "operator"]

RANGE_STEPS, ITERATIONS, STEPS = 64, 128, 128


def operator(problem: Problem) -> Callable[[Tensor], Tensor]:
    """v -> M v by plain reverse mode; nothing is kept from one product to the next."""
    parameters = problem.parameters
    sizes, shapes = [p.numel() for p in parameters], [p.shape for p in parameters]
    ((inputs, targets),) = problem.data

    def hessian(v: list[Tensor]) -> tuple[Tensor, ...]:
        gradient = grad(problem.loss(problem.model(inputs), targets), parameters, create_graph=True)
        return grad(gradient, parameters, v)

    def gauss_newton(v: list[Tensor]) -> tuple[Tensor, ...]:
        outputs = problem.model(inputs)
        dummy = torch.ones_like(outputs, requires_grad=True)
        (tangent,) = grad(grad(outputs, parameters, dummy, create_graph=True), dummy, v)
        (slope,) = grad(problem.loss(outputs, targets), outputs, create_graph=True)
        (image,) = grad(slope, outputs, tangent)
        return grad(outputs, parameters, image)

    product = hessian if problem.matrix == "Hessian" else gauss_newton

    def multiply(vector: Tensor) -> Tensor:
        parts = product([part.view(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)])
        return torch.cat([part.flatten() for part in parts])

    return multiply


def lanczos(multiply: Callable[[Tensor], Tensor], size: int, steps: int) -> tuple[Array, Array]:
    """Nodes and weights of Lanczos without reorthogonalisation from a Gaussian vector."""
    v = torch.randn(size)
    v, previous = v / v.norm(), torch.zeros(size)
    alpha, beta = torch.zeros(steps), torch.zeros(steps)
    for j in range(steps):
        w = multiply(v)
        if j:
            w = w - beta[j - 1] * previous
        alpha[j] = w @ v
        w = w - alpha[j] * v
        beta[j] = w.norm()
        previous, v = v, w / beta[j]
    return quadrature(alpha.double().numpy(), beta[:-1].double().numpy())


def orthonormal(rows: Tensor) -> Tensor:
    """Classical Gram-Schmidt, once."""
    basis = torch.empty_like(rows)
    for j, row in enumerate(rows):
        v = row - basis[:j].T @ (basis[:j] @ row)
        basis[j] = v / v.norm()
    return basis


def procedure(multiply: Counted, size: int, classes: int, seed: int) -> Answer:
    """Top eigenspace by subspace iteration, then the range and the density of the rest."""
    torch.manual_seed(seed)
    basis = orthonormal(torch.randn(classes, size))
    for _ in range(ITERATIONS):
        images = multiply.rows(basis)
        values = images.norm(dim=1)
        basis = orthonormal(images)

    def deflated(v: Tensor) -> Tensor:
        return multiply(v) - basis.T @ (values * (basis @ v))

    lanczos(deflated, size, RANGE_STEPS)
    outliers = values.double().numpy()
    measure = deflated_measure(outliers, *lanczos(deflated, size, STEPS), size)
    return Answer(*measure, largest(outliers), multiply.calls)


def scan(problem: Problem, seed: int) -> list[Candidate]:
    """The procedure, whose settings are the papers'."""
    answer = procedure(CountedDense(problem.dense), problem.size, problem.classes, seed)
    return [Candidate("as published", answer.nodes, answer.weights, answer.matvecs)]


SCANS = {"papers' procedure": scan}

METHODS = [
    Method(
        ("papers' procedure (DeepnetHessian, re-implemented)",),
        lambda problem, seed: [procedure(Counted(operator(problem)), problem.size, problem.classes, seed)],
    )
]
