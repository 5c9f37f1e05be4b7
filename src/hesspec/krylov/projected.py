"""Operators projected on the complement of a few vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesspec.backend.algebra import Composable, SymmetricOperator, expect_products
from hesspec.krylov.basis import KrylovBasis

__all__ = ["ProjectedOperator"]


class ProjectedOperator(Composable):
    """Projected operator P A P with P = I - Q Q^T, for a symmetric operator A and orthonormal vectors Q.

    Parameters
    ----------
    operator : SymmetricOperator
        Operator A, (p, p).
    basis : KrylovBasis
        Vectors Q. The multiplicity of the eigenvalue 0 of P A P is at least their number.
    """

    def __init__(self, operator: SymmetricOperator, basis: KrylovBasis) -> None:
        self._operator, self._basis = operator, basis
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of A, and the number of vectors that were projected out."""
        return {**getattr(self._operator, "attributes", {}), "projected_out": len(self._basis)}

    def expect_products(self, number: int | None) -> None:
        """Tell A how many products will follow."""
        expect_products(self._operator, number)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Product with a vector (p,) or the columns of a matrix (p, k)."""
        columns = [vectors] if vectors.dim() == 1 else list(vectors.T)
        inside = [column.clone() for column in columns]
        for column in inside:
            self._basis.orthogonalise(column)
        products = self._operator @ (inside[0] if vectors.dim() == 1 else torch.stack(inside, dim=1))
        outside = [products] if vectors.dim() == 1 else [column.contiguous() for column in products.T]
        for column in outside:
            self._basis.orthogonalise(column)
        return outside[0] if vectors.dim() == 1 else torch.stack(outside, dim=1)
