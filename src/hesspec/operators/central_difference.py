"""The Hessian by central differences of gradients, of every model that has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from hesspec.operators.hessian import Hessian
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.operators.risk.shards import is_distributed
from hesspec.operators.sharded_hessian import ShardedHessian

__all__ = ["CentralDifferenceHessian"]


class CentralDifferenceHessian(Hessian):
    r"""Hessian of an empirical risk by central differences of its gradient.

    .. math:: \mathrm{Hess}\, v \approx \frac{\nabla L(\theta + h v) - \nabla L(\theta - h v)}{2 h}, \quad \|v\| = 1

    It requires first derivatives only. `Hessian` computes differences by itself where PyTorch has no second
    derivative, and is exact elsewhere. The error of products is measured, and is part of all bounds of a spectrum (see
    `reference`). Of a model whose parameters are sharded by `torch.distributed.fsdp.fully_shard`, which have no second
    derivatives either, this is a `hesspec.operators.sharded_hessian.ShardedHessian`, whose vectors are slices.

    Parameters
    ----------
    model, loss_fn, data, params
        As for `CurvatureOperator`.
    **options
        Further arguments of `CurvatureOperator` but `mode`; of a sharded model, `terms` alone.

    Raises
    ------
    ValueError, MemoryError, RankError
        As by `CurvatureOperator`.

    Examples
    --------
    Of a squared error, which is quadratic, without the error of a difference:

    >>> import torch, hesspec
    >>> from torch import nn
    >>> x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    >>> model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    >>> hessian = hesspec.CentralDifferenceHessian(model, nn.MSELoss(), [(x, y)])
    >>> v = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    >>> torch.allclose(hessian @ v, 2 / 5 * x.T @ (x @ v))
    True
    """

    def __new__(cls, model: nn.Module | None = None, *args: Any, **options: Any) -> Any:
        """Choose by how the parameters are stored; a copy is made without a model."""
        if isinstance(model, nn.Module) and any(map(is_distributed, model.parameters())):
            return ShardedHessian(model, *args, **options)
        return super().__new__(cls)

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction, data: Iterable[Any], params: ParameterSpec = None, **options: Any
    ) -> None:
        super().__init__(model, loss_fn, data, params, **options, mode="differences")

    @property
    def attributes(self) -> dict[str, str | int | float]:
        """What this operator is, for the record of a measurement: the matrix is the Hessian, and the mode says how."""
        return {**super().attributes, "matrix": "Hessian"}
