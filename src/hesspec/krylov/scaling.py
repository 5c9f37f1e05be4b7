"""Scaling of an operator so that squares of its numbers neither overflow nor underflow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.backend.algebra import SymmetricOperator
from hesspec.backend.ranks import ALONE, Ranks

__all__ = ["Scaled", "smallest_number"]

# Norms between this power of two and its inverse are not scaled: squares of numbers smaller by sqrt(p), and eps times
# these squares, are normal numbers for any p below 1e9, and fourth powers do not overflow.
ORDINARY: Final = {torch.float32: 24, torch.float64: 240}


def smallest_number(dtype: torch.dtype, device: torch.device) -> float:
    """Smallest positive number in the arithmetic of a device: subnormal, unless these are flushed to zero."""
    limits = torch.finfo(dtype)
    half = torch.full((), limits.tiny, dtype=dtype, device=device) / 2
    return limits.tiny * limits.eps if float(half) > 0 else limits.tiny


class Scaled:
    """Scaled operator 2^-e A, with e such that products with unit vectors are of order 1 if those of A are far from it.

    Multiplication by a power of two is exact (except for numbers that become subnormal, which are far below eps
    relative to the norm of A): a Krylov run of 2^-e A is that of A, number by number, without overflow or underflow of
    squares, sums of squares and weights. The exponent is determined by the first nonzero product.

    Parameters
    ----------
    operator : SymmetricOperator
        Operator A, (p, p).
    ranks : Ranks, optional
        Ranks that share its vectors.

    Attributes
    ----------
    exponent : int or None
        Exponent e, 0 for ordinary norms; None as long as all products were zero.
    shape, dtype, device
        Those of A.
    """

    def __init__(self, operator: SymmetricOperator, ranks: Ranks = ALONE) -> None:
        self._operator, self._ranks = operator, ranks
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, torch.device(operator.device)
        self._smallest = smallest_number(self.dtype, self.device)
        self.exponent: int | None = None

    def __matmul__(self, vectors: Tensor) -> Any:
        """Product with unit vectors: one (p,), or the columns of a matrix (p, k)."""
        return self.scaled([self._operator @ vectors])[0]

    def scaled(self, products: Sequence[Any]) -> list[Any]:
        """Convert products of A with unit vectors to those of this operator; the first ones determine its exponent."""
        products = [product.detach() if isinstance(product, Tensor) else product for product in products]
        known = [product for product in products if isinstance(product, Tensor) and product.is_floating_point()]
        if self.exponent is None and known:
            self._choose(known)
        return [self.scale(product) for product in products]

    def _choose(self, products: Sequence[Tensor]) -> None:
        here = max(float(product.abs().max()) if product.numel() else 0.0 for product in products)
        largest = float(self._ranks.numbers(here).max())
        # Products that are not finite are rejected by the caller.
        if largest > 0 and math.isfinite(largest):
            exponent = math.frexp(largest)[1]
            self.exponent = exponent if abs(exponent) > ORDINARY[self.dtype] else 0

    def scale(self, products: Any) -> Any:
        """Convert products of A to those of this operator."""
        if not self.exponent:
            return products
        # By two factors, each of which is a normal number.
        half = self.exponent // 2
        return products * math.ldexp(1.0, -half) * math.ldexp(1.0, half - self.exponent)

    @property
    def underflow(self) -> float:
        """Bound on the norm of the underflow error of a product with a unit vector.

        Each of its p entries is a sum of p terms, each with an error of half the smallest number: p/2 of these if
        errors are random. The other half is for numbers of the result that become subnormal when they are scaled back.
        """
        return math.ldexp(self.shape[0] * self._smallest, -(self.exponent or 0))

    def restore(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Convert eigenvalues of this operator, or numbers in their units, to those of A."""
        with np.errstate(over="ignore"):
            return np.ldexp(values, self.exponent or 0)
