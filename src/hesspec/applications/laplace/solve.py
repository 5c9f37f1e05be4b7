"""Block conjugate gradients for the posterior precision matrix, preconditioned by the resolved eigenpairs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hesspec.algebra import SymmetricOperator
from hesspec.applications.laplace.low_rank import LowRank

__all__ = ["Solved", "solve"]


class Solved(NamedTuple):
    """Solution of (A + t I) X = B.

    Attributes
    ----------
    x : Tensor (p, n)
        Solution X.
    residual : Tensor (p, n)
        B - (A + t I) X, computed from X.
    iterations : int
        Number of iterations; each took n products.
    """

    x: Tensor
    residual: Tensor
    iterations: int


def solve(
    operator: SymmetricOperator,
    rhs: Tensor,
    *,
    scale: float,
    prior: float,
    pairs: LowRank | None,
    tolerance: float,
    max_iterations: int,
) -> Solved:
    """Solve (scale G + prior I) X = B for all columns of B (p, n) at once.

    This is the block method of O'Leary (1980) in the form BCGrQ of Dubrulle (2001), which keeps residuals orthonormal,
    so that linearly dependent columns do no harm. It runs on W (A + t I) W with W the square root of the low-rank
    posterior covariance, whose condition number is (a_{k+1} + t)/t instead of (a_1 + t)/t.

    Parameters
    ----------
    operator : SymmetricOperator
        The Gauss-Newton matrix G.
    rhs : Tensor (p, n)
        Right-hand sides B.
    scale, prior : float
        Factor of G, and prior precision t.
    pairs : LowRank, optional
        Eigenpairs for the preconditioner. Without them there is none.
    tolerance : float
        Tolerance of each column's residual in the preconditioned norm, relative to its right-hand side.
    max_iterations : int
        Largest number of iterations.
    """

    def weighted(columns: Tensor) -> Tensor:
        return columns if pairs is None else pairs.root(columns, scale, prior)

    def multiplied(columns: Tensor) -> Tensor:
        product: Tensor = scale * (operator @ columns)
        return product + prior * columns

    start = weighted(rhs)
    sizes = start.norm(dim=0)
    residual, lengths = torch.linalg.qr(start)
    search, found, iterations = residual, torch.zeros_like(rhs), 0
    while iterations < max_iterations and bool((lengths.norm(dim=0) > tolerance * sizes).any()):
        image = weighted(multiplied(weighted(search)))
        step = torch.linalg.solve(search.T @ image, residual.T @ residual)
        found = found + search @ (step @ lengths)
        residual, factor = torch.linalg.qr(residual - image @ step)
        search = residual + search @ factor.T
        lengths = factor @ lengths
        iterations += 1
    x = weighted(found)
    return Solved(x, rhs - multiplied(x), iterations)
