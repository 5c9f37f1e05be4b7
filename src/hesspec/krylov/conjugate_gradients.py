"""Block conjugate gradients for positive definite systems."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hesspec.krylov.preconditioning import SpectralPreconditioner
from hesspec.krylov.vectors import inner, norm

__all__ = ["Multiply", "Solved", "column_norms", "conjugate_gradients"]

Multiply = Callable[[Tensor], Tensor]


class Solved(NamedTuple):
    """Solution of B X = F.

    Attributes
    ----------
    x : Tensor (p, n)
        Solution X.
    residual : Tensor (p, n)
        F - B X, computed from X.
    iterations : int
        Number of iterations; each took n products.
    converged : bool
        Whether the recurrence for the residual reached the tolerance. The residual itself may be larger by rounding.
    smallest : float
        Estimate of the smallest absolute eigenvalue of B from above; nan if the method gives none.
    """

    x: Tensor
    residual: Tensor
    iterations: int
    converged: bool
    smallest: float = float("nan")


def conjugate_gradients(
    multiply: Multiply,
    rhs: Tensor,
    *,
    preconditioner: SpectralPreconditioner | None = None,
    tolerance: float,
    max_iterations: int,
) -> Solved:
    """Solve B X = F with a positive definite matrix B, for all columns of F (p, n) at once.

    This is the block method of O'Leary (1980) in the form BCGrQ of Dubrulle (2001), which keeps residuals orthonormal,
    so that linearly dependent columns do no harm; for one column it is the method of Hestenes and Stiefel (1952). It
    runs on M^{-1/2} B M^{-1/2} with M the preconditioner.

    Parameters
    ----------
    multiply : callable
        Maps columns (p, n) to B times these.
    rhs : Tensor (p, n)
        Right-hand sides F.
    preconditioner : SpectralPreconditioner, optional
        M. Without it, M = I.
    tolerance : float
        Tolerance of each column's residual, relative to its right-hand side.
    max_iterations : int
        Largest number of iterations.

    Returns
    -------
    Solved

    Raises
    ------
    ValueError
        If v^T B v is not positive for some v.
    """

    def weighted(columns: Tensor) -> Tensor:
        return columns if preconditioner is None else preconditioner.root(columns)

    def remaining() -> bool:
        if preconditioner is not None:
            return bool((preconditioner.norms(residual @ lengths) > target).any())
        norms = torch.linalg.vector_norm(lengths, dim=0, dtype=torch.float64)
        return bool((norms > target).any())

    target = tolerance * column_norms(rhs)
    residual, lengths = _orthonormal(weighted(rhs))
    search, found, iterations = residual, torch.zeros_like(rhs), 0
    while (unfinished := remaining()) and iterations < max_iterations:
        image = weighted(multiply(weighted(search)))
        curvature = _products(search, image)
        _refuse_negative(curvature, search)
        gram = _products(residual, residual)
        step = gram / curvature if gram.numel() == 1 else torch.linalg.solve(curvature, gram)
        found = torch.addmm(found, search, step @ lengths)
        residual, factor = _orthonormal(torch.addmm(residual, image, step, alpha=-1))
        search = torch.addmm(residual, search, factor.T)
        lengths = factor @ lengths
        iterations += 1
    x = weighted(found)
    return Solved(x, rhs - multiply(x), iterations, not unfinished)


def column_norms(columns: Tensor) -> Tensor:
    """Norms of columns (p, n), accumulated in float64: (n,)."""
    return columns.square().sum(0, dtype=torch.float64).sqrt()


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (n, n) of columns; accumulated in float64 for one column, which may be long."""
    if a.shape[1] > 1:
        return a.T @ b
    return a.new_full((1, 1), inner(a[:, 0], b[:, 0]))


def _orthonormal(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q (p, n) and R (n, n) with Q R the columns; Q is zero for a single column that is zero."""
    if columns.shape[1] > 1:
        found = torch.linalg.qr(columns)
        return found.Q, found.R
    length = norm(columns[:, 0])
    return columns / length if length > 0 else columns, columns.new_full((1, 1), length)


def _refuse_negative(curvature: Tensor, search: Tensor) -> None:
    smallest = float(curvature) if curvature.numel() == 1 else float(torch.linalg.eigvalsh(curvature.double()).min())
    if not smallest > 0:
        along = smallest / float(column_norms(search).max()) ** 2
        raise ValueError(
            f"Along a unit vector v, v·Bv = {along:.3g} is not positive, with B the matrix of the system "
            "(preconditioned, if it is): B is not positive definite, or too nearly singular for the accuracy "
            "of products. Increase the damping, use float64, or use MINRES for an indefinite matrix."
        )
