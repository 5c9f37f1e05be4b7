"""Preconditioner of a symmetric system from eigenpairs of its matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["SpectralPreconditioner"]


class SpectralPreconditioner:
    r"""Positive definite matrix M with given eigenvectors, and one eigenvalue in their complement.

    .. math:: M = V \operatorname{diag}(m) V^\top + c (I - V V^\top)

    With the eigenvectors of a symmetric matrix B and m the absolute values of its eigenvalues, the matrix
    :math:`M^{-1/2} B M^{-1/2}` has the eigenvalues 1 and -1 along V, and those of B/c elsewhere.

    Parameters
    ----------
    vectors : Tensor (p, k)
        V, orthonormal columns.
    values : float64 Tensor (k,)
        m, positive.
    complement : float
        c, positive.
    """

    def __init__(self, vectors: Tensor, values: Tensor, complement: float) -> None:
        self._vectors, self._values, self._complement = vectors, values, complement
        # 1 - sqrt(c / m), without cancellation where m is close to c.
        difference = (values - complement) / values
        self._share = (difference / (1 + torch.sqrt(complement / values))).to(vectors.dtype)
        self._excess = (values - complement).to(torch.float64)

    @property
    def rank(self) -> int:
        """Number of eigenvectors k."""
        return self._vectors.shape[1]

    @property
    def root_norm(self) -> float:
        """Norm of M^{-1/2}."""
        return 1 / math.sqrt(min(self._complement, float(self._values.min())))

    def root(self, columns: Tensor) -> Tensor:
        """Product of M^{-1/2} with columns (p, n)."""
        seen = self._vectors.T @ columns
        return (columns - self._vectors @ (self._share[:, None] * seen)) / math.sqrt(self._complement)

    def norms(self, columns: Tensor) -> Tensor:
        """Norms of M^{1/2} times the columns (p, n): (n,), float64."""
        seen = (self._vectors.T @ columns).double().square()
        whole = columns.square().sum(0, dtype=torch.float64)
        return (self._complement * whole + self._excess @ seen).clamp(min=0).sqrt()
