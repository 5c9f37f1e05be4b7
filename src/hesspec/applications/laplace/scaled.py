r"""The low-rank posterior in coordinates in which the prior is N(0, I): D^{1/2} theta, for the prior N(0, D^{-1}).

There the precision is I + M, M = D^{-1/2} A D^{-1/2}, and M_k = W W^T, W = D^{-1/2} V a^{1/2}, has eigenpairs (s, U).
Let the eigenvalues of A in the complement of V be at most a_r, R the residuals of the pairs, and x = a_r / min D. As
I + M_k >= I, the resolvent identity gives, for B = (I + M_k)^{-1} and B' the same with the rest of A,

.. math:: 0 \preceq B - B' \preceq \frac{x}{1 + x} I, \qquad
          B - B' \preceq a_r \, B D^{-1/2} (I - V V^\top) D^{-1/2} B ,

plus at most 2 ||R||_2 / min D for the residuals. With one precision the first bound holds with the projection on the
complement of V in place of I, and the residuals count as in `hesspec.applications.laplace.low_rank`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hesspec.applications.laplace.jacobian import Network, products_of_rows
from hesspec.applications.laplace.low_rank import LowRank
from hesspec.krylov.preconditioning import SpectralPreconditioner

__all__ = ["ScaledPairs"]


class ScaledPairs:
    """Eigenpairs of M_k, and what the error of covariances is bounded by.

    Parameters
    ----------
    pairs : LowRank
    scale : float
        Factor of the loss, A = scale G.
    prior : float or Tensor (p,)
        Precision of the prior, of all or of each parameter.

    Attributes
    ----------
    root : float or Tensor (p,)
        Square root of the precision.
    vectors : Tensor (p, k)
    squares : float64 Tensor (k,)
        Eigenvectors U and eigenvalues s of M_k.
    smallest : float
        Smallest precision.
    rest, residual : float
        Bounds x/(1 + x), and that for the residuals.
    """

    def __init__(self, pairs: LowRank, scale: float, prior: float | Tensor) -> None:
        self._pairs, self._scale = pairs, scale
        a = scale * pairs.values.clamp(min=0)
        self.smallest = float(prior.min()) if isinstance(prior, Tensor) else float(prior)
        self.root: float | Tensor = prior.sqrt() if isinstance(prior, Tensor) else math.sqrt(prior)
        if isinstance(self.root, Tensor):
            half = pairs.vectors * a.sqrt().to(pairs.vectors.dtype) / self.root[:, None]
            squares, turn = torch.linalg.eigh((half.T @ half).double())
            self.squares = squares.clamp(min=torch.finfo(torch.float64).tiny)
            self.vectors = half @ (turn / self.squares.sqrt()).to(half.dtype)
            self.residual = 2 * scale * pairs.residual_norm / self.smallest
        else:
            self.squares, self.vectors = a / self.smallest, pairs.vectors
            self.residual = pairs.residual_error(scale, self.smallest) * self.smallest
        self.rest = pairs.rest_error(scale, self.smallest) * self.smallest

    @property
    def error(self) -> float:
        """Bound on ||Psi_k - Psi||_2."""
        return (self.rest + self.residual) / self.smallest

    def scaled(self, rows: Tensor) -> Tensor:
        """Rows (n, p) of a Jacobian in these coordinates."""
        return rows / self.root

    def inverse(self) -> SpectralPreconditioner:
        """I + M_k, to be solved with."""
        return SpectralPreconditioner(self.vectors, 1 + self.squares, 1.0)

    def covariance(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Covariance (n, n), and the bound of its error, of rows (n, p) of a Jacobian, float64."""
        if not isinstance(self.root, Tensor):
            # Products are scaled, as the rows of one input may take as much memory as C models.
            return self._from_products(*products_of_rows(rows, self.vectors), self.root)
        rows = self.scaled(rows)
        gram, seen = products_of_rows(rows, self.vectors)
        weights, total = self._weights, gram.trace()
        solved = rows - (seen * weights).to(rows.dtype) @ self.vectors.T
        back = solved / self.root
        outside = (back.square().sum() - (back @ self._pairs.vectors).square().sum()).clamp(min=0)
        inside = torch.minimum(total * self.rest, outside.double() * self._scale * self._pairs.rest)
        return gram - (seen * weights) @ seen.T, inside + total * self.residual

    def covariances(self, network: Network, inputs: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield outputs (b, C), their covariances (b, C, C) and bounds (b,) of their errors, of blocks of inputs."""
        if isinstance(self.root, Tensor):
            for mean, rows in network.rows(inputs, overwritten=True):
                value, error = self.covariance(rows)
                yield mean[None], value[None], error[None]
        else:
            for mean, gram, seen in network.products(inputs, self.vectors):
                yield mean, *self._from_products(gram, seen, self.root)

    @property
    def _weights(self) -> Tensor:
        weights: Tensor = self.squares / (1 + self.squares)
        return weights

    def _from_products(self, gram: Tensor, seen: Tensor, root: float) -> tuple[Tensor, Tensor]:
        """Covariances (..., n, n) and bounds (...), from J J^T and J V, for one precision."""
        gram, seen = gram / root**2, seen / root
        total = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        # The trace of the part outside the span bounds its norm.
        inside = (total - seen.square().sum((-2, -1))).clamp(min=0) * self.rest
        return gram - (seen * self._weights) @ seen.mT, inside + total * self.residual

    def sampled(self, normal: Tensor) -> Tensor:
        """Product of a square root of Psi_k with standard normal columns (p, n)."""
        moved = self.inverse().root(normal)
        return moved / self.root[:, None] if isinstance(self.root, Tensor) else moved / self.root
