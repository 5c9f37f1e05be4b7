"""Block conjugate gradients for the precision matrix of the posterior, preconditioned with the resolved eigenpairs."""

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
    residual : Tensor (p, n)
        B - (A + t I) X, computed from X.
    iterations : int
        Each took n products.
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

    The block method of O'Leary (1980) in the form of Dubrulle (2001), BCGrQ, whose residuals are kept orthonormal, so
    that dependent columns do no harm. It runs on W (A + t) W with W the square root of the low-rank posterior
    covariance: its condition number is (a_{k+1} + t)/t in place of (a_1 + t)/t.

    Parameters
    ----------
    operator : G
    rhs : Tensor (p, n)
    scale, prior : float
    pairs : LowRank, optional
        Without them there is no preconditioner.
    tolerance : float
        Of each column's residual in the preconditioned norm, relative to its right-hand side.
    max_iterations : int
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
