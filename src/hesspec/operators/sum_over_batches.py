"""Base class of curvature matrices that are sums over batches, which can follow a model through training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self, cast

import torch
from torch import Tensor

from hesspec.operators.base import CurvatureOperator
from hesspec.operators.engine.matrix_passes import CurvatureForm, MatrixPasses
from hesspec.operators.engine.streaming import LinearisedRisk
from hesspec.operators.engine.within import BlockEntries
from hesspec.operators.model.ambient import neutral

__all__ = ["SumOverBatches"]


class SumOverBatches(CurvatureOperator):
    """Curvature matrix that is a sum over batches; see `CurvatureOperator`."""

    _form: CurvatureForm
    """Matrix of one batch; a separate object, as cached passes must not keep the operator alive."""

    _moved: LinearisedRisk | None = None
    """Passes of the operator at other weights from which this one is made, without their caches."""

    def at_current_weights(self) -> Self:
        """Return the same matrix at the present parameters and buffers of the model.

        Model, loss and data are not examined again, and the mode of products and its verification are those of this
        operator: the cost is that of one primal pass. Use it to follow a matrix through training; a `GraphCache` shares
        traces only.

        Returns
        -------
        CurvatureOperator
            A new operator, with `matvecs` of its own. This one is left unchanged; delete it to free its cached passes.

        Raises
        ------
        ValueError
            If the model has changed otherwise: modes, attributes, replaced layers or tensors.
        NonFiniteError, MemoryError
            See `CurvatureOperator`; in the first product.

        Examples
        --------
        >>> import torch, hesspec
        >>> model = torch.nn.Linear(3, 1)
        >>> data = [(torch.randn(8, 3), torch.randn(8, 1))]
        >>> hessian = hesspec.Hessian(model, lambda outputs, y: (outputs - y).pow(4).mean(), data)
        >>> before = hessian @ torch.ones(4)
        >>> with torch.no_grad():
        ...     _ = model.weight.zero_()
        >>> after = hessian.at_current_weights() @ torch.ones(4)
        >>> bool((before == after).all())
        False
        """
        built = self._build()
        with torch.inference_mode(mode=False):
            other = copy.copy(self)
            other._risk = self._risk.at_current_weights()  # noqa: SLF001 - of this class
        other._moved, other._built = built.emptied(), None  # type: ignore[attr-defined]  # noqa: SLF001
        other.matvecs = 0
        return other

    def block_products(self, blocks: Sequence[BlockEntries], vectors: Sequence[Tensor]) -> list[Tensor]:
        """Compute M_bb v for a vector (q,) of each block, in one pass over the data, on all ranks together.

        Each product computes only what it needs: it begins where the first parameter of its block is used, and ends at
        the gradients of these parameters. Products that are not finite are returned as they are.
        """
        built = cast("LinearisedRisk", self._build())
        with neutral():
            products = built.block_products(blocks, vectors)
        self.matvecs += len(products)
        return [self.ranks.sum_(product) for product in products]

    def block_discrepancy(self, block: BlockEntries) -> float:
        """Relative difference of such a product from that part of the whole product, for one batch of each rank."""
        built = cast("LinearisedRisk", self._build())
        with neutral():
            return float(self.ranks.numbers(built.block_discrepancy(block)).max())

    def _passes(self) -> MatrixPasses:
        return MatrixPasses(self._risk, self._form, self._precision, self._cached_graphs)

    def _linearise(self) -> LinearisedRisk:
        moved, self._moved = self._moved, None
        if moved is None:
            return LinearisedRisk(self._risk, self._form, self._budget, self._precision, self._cached_graphs)
        return moved.again(self._risk)
