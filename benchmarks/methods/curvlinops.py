"""curvlinops: its operators with SciPy's eigsh and its Lanczos, as its documentation combines them.

`check_deterministic=False` everywhere: the safeguard costs two products and is not what is measured. eigsh works in
float32, as the operator does, to a tolerance at which its eigenvalues are as exact as float32 allows.
"""

from __future__ import annotations

import numpy as np
import torch
from curvlinops import GGNLinearOperator, HessianLinearOperator
from curvlinops._torch_base import PyTorchLinearOperator
from curvlinops.papyan2020traces.spectrum import approximate_boundaries, fast_lanczos
from scipy.sparse.linalg import eigsh
from torch import Tensor

from methods import Answer, Method, Problem, deflated_measure, largest

__all__ = ["METHODS", "operator"]

STEPS = 128
TOLERANCE = 1e-4


def operator(problem: Problem) -> HessianLinearOperator | GGNLinearOperator:
    """The curvature matrix of the model's parameters."""
    kind = HessianLinearOperator if problem.matrix == "Hessian" else GGNLinearOperator
    return kind(problem.model, problem.loss, problem.parameters, problem.data, check_deterministic=False)


class Deflated(PyTorchLinearOperator):
    """A - V diag(values) V^T on flat vectors, which counts products with A; without values it is A."""

    SELF_ADJOINT = True

    def __init__(self, problem: Problem) -> None:
        super().__init__([(problem.size,)], [(problem.size,)])
        self._operator, self.products = operator(problem), 0
        self.values, self.vectors = torch.zeros(0), torch.zeros(problem.size, 0)

    @property
    def device(self) -> torch.device:
        """Of the operator."""
        return self._operator.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the operator."""
        return self._operator.dtype

    def _matmat(self, columns: list[Tensor]) -> list[Tensor]:
        (matrix,) = columns
        self.products += matrix.shape[1]
        return [self._operator @ matrix - self.vectors @ (self.values[:, None] * (self.vectors.T @ matrix))]


def eigsh_and_lanczos(problem: Problem, seed: int, steps: int) -> list[Answer]:
    """Outliers by eigsh, the range of the rest by eigsh, the density of the rest by Lanczos.

    Left to look for the least eigenvalue of a Gauss-Newton matrix, eigsh takes thousands of products: it is told 0.
    """
    torch.manual_seed(seed)
    matrix = Deflated(problem)
    start = np.random.default_rng(seed).standard_normal(problem.size).astype(np.float32)
    values, vectors = eigsh(matrix.to_scipy(np.float32), k=problem.classes, which="LM", v0=start, tol=TOLERANCE)
    matrix.values, matrix.vectors = torch.from_numpy(values), torch.from_numpy(vectors)
    approximate_boundaries(matrix, boundaries=None if problem.matrix == "Hessian" else (0.0, None))
    nodes, basis = fast_lanczos(matrix, steps)
    outliers, weights = values.astype(float), basis[0].double().numpy() ** 2
    measure = deflated_measure(outliers, nodes.double().numpy(), weights, problem.size)
    return [Answer(*measure, largest(outliers), matrix.products)]


def lanczos(problem: Problem, seed: int) -> list[Answer]:
    """Its Lanczos alone; it does not reorthogonalise."""
    torch.manual_seed(seed)
    matrix = Deflated(problem)
    nodes, basis = fast_lanczos(matrix, STEPS)
    nodes, weights = nodes.double().numpy(), basis[0].double().numpy() ** 2
    return [Answer(nodes, weights / weights.sum(), largest(nodes), matrix.products)]


METHODS = [
    Method(
        ("curvlinops: eigsh for outliers and range, deflated Lanczos(64)",),
        lambda problem, seed: eigsh_and_lanczos(problem, seed, STEPS // 2),
    ),
    Method(
        ("curvlinops: eigsh for outliers and range, deflated Lanczos(128)",),
        lambda problem, seed: eigsh_and_lanczos(problem, seed, STEPS),
    ),
    Method(("curvlinops: fast_lanczos(128)",), lanczos),
]
