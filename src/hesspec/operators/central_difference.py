"""Hessian by central differences of gradients, for models without second derivatives."""

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

    It requires only first derivatives. `Hessian` falls back to differences by itself where PyTorch has no second
    derivative, and is exact otherwise. The error of products is measured and included in all bounds of a spectrum (see
    `reference`). For a model that is sharded by `torch.distributed.fsdp.fully_shard`, which has no second derivatives
    either, this creates a `hesspec.operators.sharded_hessian.ShardedHessian`, whose vectors are slices.

    Parameters
    ----------
    model, loss_fn, data, params
        See `CurvatureOperator`.
    **options
        Further arguments of `CurvatureOperator` except `mode`; only `terms` for a sharded model.

    Raises
    ------
    ValueError, MemoryError, RankError
        See `CurvatureOperator`.

    Examples
    --------
    A squared error is quadratic, so differences are exact up to rounding:

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
        """Choose the class by how parameters are stored; copying calls it without a model."""
        if isinstance(model, nn.Module) and any(map(is_distributed, model.parameters())):
            return ShardedHessian(model, *args, **options)
        return super().__new__(cls)

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction, data: Iterable[Any], params: ParameterSpec = None, **options: Any
    ) -> None:
        super().__init__(model, loss_fn, data, params, **options, mode="differences")

    @property
    def attributes(self) -> dict[str, str | int | float]:
        """Attributes for the record of a measurement: the matrix is the Hessian, and the mode says how."""
        return {**super().attributes, "matrix": "Hessian"}
