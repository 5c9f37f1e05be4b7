"""Curvature matrices on slices of vectors, for ranks that share the data."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hesspec.operators.base import CurvatureOperator

__all__ = ["Sliced"]


class Sliced:
    """Curvature matrix whose data is shared by ranks, on slices of vectors, one for each rank.

    A product uses two collectives: vectors are gathered from all ranks, and the sum of the ranks' products is
    scattered.

    Parameters
    ----------
    operator : CurvatureOperator
        Operator with `group=`.
    """

    def __init__(self, operator: CurvatureOperator) -> None:
        self._operator, self.ranks = operator, operator.ranks
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device
        self.identity = operator.identity
        self._room: Tensor | None = None

    def expect_products(self, number: int | None) -> None:
        """Tell the operator how many products will follow."""
        self._operator.expect_products(number)

    @functools.cached_property
    def reference(self) -> Sliced | None:
        """Reference of the operator, on slices."""
        reference = self._operator.reference
        return None if reference is None else Sliced(reference)

    @property
    def product_error(self) -> float:
        """Error of the operator's products, relative to their norm."""
        return self._operator.product_error

    @property
    def attributes(self) -> dict[str, str | int | float]:
        """Attributes of the operator."""
        return self._operator.attributes

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Product with the slice of a vector (length,) or of the columns of a matrix (length, k), as slices."""
        columns = [vectors] if vectors.dim() == 1 else [column.contiguous() for column in vectors.T]
        # The buffer for the first one is kept: touching new memory costs as much as sending its content.
        if self._room is None:
            self._room = self.ranks.room(self.shape[0], vectors)
        rooms = [self._room, *(None for _ in columns[1:])]
        whole = [self.ranks.whole(column, self.shape[0], room) for column, room in zip(columns, rooms, strict=True)]
        parts = self._operator.partial_products(whole)
        products = [self.ranks.slice_of_sum(part, self._room) for part in parts]
        return products[0] if vectors.dim() == 1 else torch.stack(products, dim=1)
