"""Curvature matrices on slices of vectors, where several ranks share the data."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hesspec.operators.base import CurvatureOperator

__all__ = ["Sliced"]


class Sliced:
    """A curvature matrix whose data ranks share, on slices of vectors: each rank gives and gets its own.

    A product takes two collectives: vectors are gathered from all ranks, and of the ranks' products the sums are
    scattered.

    Parameters
    ----------
    operator : CurvatureOperator
    """

    def __init__(self, operator: CurvatureOperator) -> None:
        self._operator, self.ranks = operator, operator.ranks
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device
        self.identity = operator.identity
        self._room: Tensor | None = None

    @functools.cached_property
    def reference(self) -> Sliced | None:
        """The same at full precision, as of the operator."""
        reference = self._operator.reference
        return None if reference is None else Sliced(reference)

    @property
    def product_error(self) -> float:
        """Of the operator."""
        return self._operator.product_error

    @property
    def attributes(self) -> dict[str, str | int | float]:
        """Of the operator."""
        return self._operator.attributes

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Slices of products, of those of a vector (length,) or of the columns of a matrix (length, k)."""
        columns = [vectors] if vectors.dim() == 1 else [column.contiguous() for column in vectors.T]
        # Room for the first one is kept: to touch new memory costs as much as to send what goes into it.
        if self._room is None:
            self._room = self.ranks.room(self.shape[0], vectors)
        rooms = [self._room, *(None for _ in columns[1:])]
        whole = [self.ranks.whole(column, self.shape[0], room) for column, room in zip(columns, rooms, strict=True)]
        parts = self._operator.partial_products(whole)
        products = [self.ranks.slice_of_sum(part, self._room) for part in parts]
        return products[0] if vectors.dim() == 1 else torch.stack(products, dim=1)
