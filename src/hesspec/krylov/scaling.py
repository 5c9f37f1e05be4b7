"""An operator on a scale on which squares of its numbers neither overflow nor underflow."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.algebra import SymmetricOperator
from hesspec.backend.ranks import ALONE, Ranks

__all__ = ["Scaled", "smallest_number"]

# Norms up to this power of two, and down to its inverse, are left unchanged: squares of numbers that are smaller by
# sqrt(p), and eps of these squares, are normal numbers for any p below 1e9, and fourth powers do not overflow.
ORDINARY: Final = {torch.float32: 24, torch.float64: 240}


def smallest_number(dtype: torch.dtype, device: torch.device) -> float:
    """Smallest positive number that arithmetic on a device yields: subnormal, unless it takes these for zero."""
    limits = torch.finfo(dtype)
    half = torch.full((), limits.tiny, dtype=dtype, device=device) / 2
    return limits.tiny * limits.eps if float(half) > 0 else limits.tiny


class Scaled:
    """2^-e A, with e such that products with unit vectors are of the order of 1 where those of A are far from it.

    Multiplication by a power of two rounds nothing (but what becomes subnormal, relative to the norm of A far below
    eps): a Krylov run of 2^-e A is that of A, number by number, without overflow and underflow of squares, sums of
    squares and weights. The exponent follows from the first product that is not zero.

    Parameters
    ----------
    operator : SymmetricOperator
        A, (p, p).
    ranks : Ranks, optional
        That share its vectors.

    Attributes
    ----------
    exponent : int or None
        e, 0 for ordinary norms; None while all products were zero.
    shape, dtype, device
        Of A.
    """

    def __init__(self, operator: SymmetricOperator, ranks: Ranks = ALONE) -> None:
        self._operator, self._ranks = operator, ranks
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, torch.device(operator.device)
        self._smallest = smallest_number(self.dtype, self.device)
        self.exponent: int | None = None

    def __matmul__(self, vectors: Tensor) -> Any:
        """Product with unit vectors: one (p,), or the columns of a matrix (p, k)."""
        products = self._operator @ vectors
        if isinstance(products, Tensor):
            products = products.detach()
        if self.exponent is None and isinstance(products, Tensor) and products.is_floating_point():
            self._choose(products)
        return self.scale(products)

    def _choose(self, products: Tensor) -> None:
        here = float(products.detach().abs().max()) if products.numel() else 0.0
        largest = float(self._ranks.numbers(here).max())
        # What is not finite is refused where products are looked at.
        if largest > 0 and math.isfinite(largest):
            exponent = math.frexp(largest)[1]
            self.exponent = exponent if abs(exponent) > ORDINARY[self.dtype] else 0

    def scale(self, products: Any) -> Any:
        """Products of A as those of this operator."""
        if not self.exponent:
            return products
        # In two factors, each of which is a normal number.
        half = self.exponent // 2
        return products * math.ldexp(1.0, -half) * math.ldexp(1.0, half - self.exponent)

    @property
    def underflow(self) -> float:
        """Norm of what a product with a unit vector loses to underflow, at most.

        Each of its p entries is a sum of p terms, each off by half of the smallest number: p/2 of these where errors
        are random. The other half is for numbers of the result that become subnormal when they are scaled back.
        """
        return math.ldexp(self.shape[0] * self._smallest, -(self.exponent or 0))

    def restore(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Numbers of this operator as those of A: its eigenvalues, and what has their unit."""
        with np.errstate(over="ignore"):
            return np.ldexp(values, self.exponent or 0)
