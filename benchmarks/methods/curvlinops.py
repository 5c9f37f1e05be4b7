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

from methods import Answer, Candidate, Method, Problem, deflated_measure, largest, quadrature

__all__ = ["METHODS", "SCANS", "operator"]

STEPS = 128
TOLERANCE = 1e-4
# Number of outliers as a multiple of C, tolerance and number of Lanczos vectors (None: SciPy's) of eigsh.
SCAN_EIGSH = (
    (1, 1e-3, None), (1, 1e-2, None), (1, 1e-1, None), (1, 1e-2, 40),
    (2, 1e-2, None), (2, 1e-1, None), (2, 1e-1, 30), (3, 1e-2, None), (3, 1e-1, None),
)  # fmt: skip
SCAN_STEPS = (*range(2, 41, 2), 48, 64, 96)


def operator(problem: Problem) -> HessianLinearOperator | GGNLinearOperator:
    """The curvature matrix of the model's parameters."""
    kind = HessianLinearOperator if problem.matrix == "Hessian" else GGNLinearOperator
    return kind(problem.model, problem.loss, problem.parameters, problem.data, check_deterministic=False)


class Deflated(PyTorchLinearOperator):
    """A - V diag(values) V^T on flat vectors, which counts products with A; without values it is A."""

    SELF_ADJOINT = True

    def __init__(self, matrix: HessianLinearOperator | GGNLinearOperator | Tensor) -> None:
        size = matrix.shape[0]
        super().__init__([(size,)], [(size,)])
        self._operator, self.products = matrix, 0
        self.values, self.vectors = torch.zeros(0), torch.zeros(size, 0)

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
    matrix = Deflated(operator(problem))
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
    matrix = Deflated(operator(problem))
    nodes, basis = fast_lanczos(matrix, STEPS)
    nodes, weights = nodes.double().numpy(), basis[0].double().numpy() ** 2
    return [Answer(nodes, weights / weights.sum(), largest(nodes), matrix.products)]


def scan(problem: Problem, seed: int) -> list[Candidate]:
    """`eigsh_and_lanczos` with looser tolerances, more outliers and fewer steps, and without the range.

    The range is for smoothing, and the measure is scored before that.
    """
    return [
        candidate
        for multiple, tolerance, vectors in SCAN_EIGSH
        for candidate in deflations(problem, seed, multiple, tolerance, vectors, ranged=False)
    ]


def documented(problem: Problem, seed: int) -> list[Candidate]:
    """`eigsh_and_lanczos` as it is, with other numbers of steps."""
    return deflations(problem, seed, 1, TOLERANCE, None, ranged=True)


def deflations(
    problem: Problem, seed: int, multiple: int, tolerance: float, vectors: int | None, *, ranged: bool
) -> list[Candidate]:
    """One deflation, and a Lanczos process whose leading blocks are the processes of fewer steps."""
    torch.manual_seed(seed)
    start = np.random.default_rng(seed).standard_normal(problem.size).astype(np.float32)
    matrix, count = Deflated(problem.dense), multiple * problem.classes
    values, columns = eigsh(matrix.to_scipy(np.float32), k=count, which="LM", v0=start, tol=tolerance, ncv=vectors)
    matrix.values, matrix.vectors = torch.from_numpy(values), torch.from_numpy(columns)
    if ranged:
        approximate_boundaries(matrix, boundaries=None if problem.matrix == "Hessian" else (0.0, None))
    spent = matrix.products
    nodes, basis = (part.double().numpy() for part in fast_lanczos(matrix, max(SCAN_STEPS)))
    tridiagonal = basis @ np.diag(nodes) @ basis.T
    more = ("" if vectors is None else f", ncv={vectors}") + ("), range" if ranged else ")")
    candidates = []
    for steps in SCAN_STEPS:
        alpha, beta = np.diag(tridiagonal)[:steps], np.diag(tridiagonal, 1)[: steps - 1]
        measure = deflated_measure(values.astype(float), *quadrature(alpha, beta), problem.size)
        settings = f"eigsh(k={count}, tol={tolerance:g}{more}, deflated fast_lanczos({steps})"
        candidates.append(Candidate(settings, *measure, spent + steps))
    return candidates


SCANS = {"curvlinops": scan, "curvlinops, as documented and with exact outliers": documented}

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
