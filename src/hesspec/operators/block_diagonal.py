"""Diagonal blocks of a symmetric operator, whose products share passes over the data."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor

from hesspec.backend.algebra import Composable, SymmetricOperator, check_operator, expect_products
from hesspec.operators.base import CurvatureOperator
from hesspec.operators.engine.reference import AGREE
from hesspec.operators.engine.within import BlockEntries
from hesspec.operators.sum_over_batches import SumOverBatches

__all__ = ["BlockDiagonal", "DiagonalBlock"]

logger = logging.getLogger(__name__)

# Columns of the whole matrix that are in memory at once, where blocks cannot be multiplied by themselves.
COLUMNS: Final = 8


class BlockDiagonal:
    """Diagonal blocks A_bb of a symmetric operator; products of any number of them take one pass over the data.

    For a curvature matrix that is a sum over batches, a product of a block begins where the first parameter of the
    block is used, and ends at their gradients: it is exact, and costs a part of a product with the whole matrix. The
    first product of each block is compared with that of the whole matrix, for one batch; if they disagree, and for all
    other operators, products are those of the whole operator with vectors that are zero outside of the block.

    Parameters
    ----------
    operator : SymmetricOperator
        Operator A, (p, p).
    blocks : mapping of str to BlockEntries or int64 Tensor
        Entries of each block, or, for operators without parameters, their indices in flat vectors.
    """

    def __init__(self, operator: SymmetricOperator, blocks: Mapping[str, BlockEntries | Tensor]) -> None:
        self.operator, self._entries = operator, dict(blocks)
        self._whole = check_operator(operator)
        self.dtype, self.device = operator.dtype, torch.device(operator.device)
        self.errors = dict.fromkeys(blocks, 0.0)
        """Known error of the last product of each block, relative to its norm."""
        self._agrees: dict[tuple[int, ...], bool] = {}

    @functools.cached_property
    def blocks(self) -> dict[str, DiagonalBlock]:
        """Blocks as operators, by name."""
        return {name: DiagonalBlock(self, name) for name in self._entries}

    @functools.cached_property
    def reference(self) -> BlockDiagonal | None:
        """The same blocks of the operator's reference; None if it has none."""
        found = getattr(self.operator, "reference", None)
        return None if found is None else BlockDiagonal(found, self._entries)

    def size(self, name: str) -> int:
        """Number of entries of a block."""
        entries = self._entries[name]
        return entries.size if isinstance(entries, BlockEntries) else entries.numel()

    def entries(self, name: str) -> Tensor:
        """Indices (q,) of a block in flat vectors of the whole operator."""
        entries = self._entries[name]
        if isinstance(entries, Tensor):
            return entries
        return entries.entries(cast("CurvatureOperator", self.operator)._risk.parameters)  # noqa: SLF001 - of a base class

    def products(self, pairs: Sequence[tuple[str, Tensor]]) -> list[Tensor]:
        """Compute A_bb v for names of blocks and vectors (q,), in one pass over the data if possible.

        Raises
        ------
        NonFiniteError
            If a product contains NaN or infinity.
        """
        alone = [place for place, (name, _) in enumerate(pairs) if self._by_itself(name)]
        found: dict[int, Tensor] = {}
        if alone:
            blocks = [cast("BlockEntries", self._entries[pairs[place][0]]) for place in alone]
            vectors = [pairs[place][1] for place in alone]
            products = cast("SumOverBatches", self.operator).block_products(blocks, vectors)
            # The whole operator finds another way, or says where it happens.
            found = {i: product for i, product in zip(alone, products, strict=True) if product.isfinite().all()}
        rest = [place for place in range(len(pairs)) if place not in found]
        for begin in range(0, len(rest), COLUMNS):
            found |= self._columns(pairs, rest[begin : begin + COLUMNS])
        return [found[place] for place in range(len(pairs))]

    def _by_itself(self, name: str) -> bool:
        """Whether products of a block are computed from its own parameters only."""
        operator, block = self.operator, self._entries[name]
        if not isinstance(operator, SumOverBatches) or not isinstance(block, BlockEntries) or operator.product_error:
            return False
        if block.places not in self._agrees:
            apart = operator.block_discrepancy(block)
            self._agrees[block.places] = apart <= AGREE[self.dtype]
            if not self._agrees[block.places]:
                logger.warning("block %s: its products differ from the whole matrix's by %.2g", name, apart)
        return self._agrees[block.places]

    def _columns(self, pairs: Sequence[tuple[str, Tensor]], places: Sequence[int]) -> dict[int, Tensor]:
        """Products of the whole operator with vectors that are zero outside of their blocks."""
        whole = torch.zeros(self._whole, len(places), dtype=self.dtype, device=self.device)
        entries = [self.entries(pairs[place][0]).to(self.device) for place in places]
        for column, (place, inside) in enumerate(zip(places, entries, strict=True)):
            whole[inside, column] = pairs[place][1]
        products = self.operator @ whole
        error = float(getattr(self.operator, "product_error", 0.0))
        found = {}
        for column, (place, inside) in enumerate(zip(places, entries, strict=True)):
            found[place] = part = products[inside, column]
            if error:
                # Relative to the norm of the whole product, of which the block's may be a small part.
                ratio = float(products[:, column].double().norm() / part.double().norm().clamp(min=1e-300))
                self.errors[pairs[place][0]] = error * ratio
        return found


class DiagonalBlock(Composable):
    """One block of a `BlockDiagonal` as an operator."""

    def __init__(self, diagonal: BlockDiagonal, name: str) -> None:
        self._diagonal, self.name = diagonal, name
        size = diagonal.size(name)
        self.shape, self.dtype, self.device = (size, size), diagonal.dtype, diagonal.device

    def expect_products(self, number: int | None) -> None:
        """Tell the whole operator how many products will follow."""
        expect_products(self._diagonal.operator, number)

    @property
    def product_error(self) -> float:
        """Error of the last product of this block relative to its norm."""
        return self._diagonal.errors[self.name]

    @functools.cached_property
    def reference(self) -> DiagonalBlock | None:
        """The same block of the operator's reference; None if it has none."""
        found = self._diagonal.reference
        return None if found is None else found.blocks[self.name]

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the whole operator, and the name of the block."""
        return {**getattr(self._diagonal.operator, "attributes", {}), "block": self.name}

    def identity(self) -> dict[str, str]:
        """Content hashes of the whole operator, and the entries of the block."""
        known = self._diagonal.operator.identity() if hasattr(self._diagonal.operator, "identity") else {}
        entries = self._diagonal.entries(self.name).cpu().numpy().tobytes()
        return {**known, "block": hashlib.blake2b(entries).hexdigest()[:16]}

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Product with a vector (q,) or with the columns of a matrix (q, k)."""
        if vectors.dim() == 1:
            return self._diagonal.products([(self.name, vectors)])[0]
        columns = [(self.name, column.contiguous()) for column in vectors.T]
        return torch.stack(self._diagonal.products(columns), dim=1)
