"""Losses as functions of the model and a batch of any structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from hesspec.backend.text import kind_of

__all__ = ["Bound", "Closure", "closure"]


class Closure:
    """Loss that calls the model itself; see `closure`."""

    def __init__(self, function: Callable[[nn.Module, Any], Tensor]) -> None:
        if not callable(function):
            raise ValueError(f"closure requires a function of the model and a batch, not {kind_of(function)}.")
        self.function = function
        self.__name__ = getattr(function, "__name__", type(function).__name__)

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Loss of a batch."""
        return self.function(model, batch)


def closure(function: Callable[[nn.Module, Any], Tensor]) -> Closure:
    """Define a loss that calls the model itself, on batches of any structure.

    Parameters
    ----------
    function : callable
        `function(model, batch) -> loss`, the mean loss of a batch, a scalar tensor. The model has the parameters at
        which the loss is evaluated, and any dependence on them counts, including a penalty on the weights. The batch is
        a copy of an item of the data, on the model's device, with floating-point tensors in its dtype.

    Returns
    -------
    Closure
        Loss to pass to an operator as `loss_fn`. Batches are weighted by their numbers of samples, the first dimension
        of their tensors, unless `terms=`, a function of the batch, says otherwise.

    Raises
    ------
    ValueError
        If `function` is not callable.

    Examples
    --------
    The Hessian of a penalty on the weights is twice the identity:

    >>> import torch, hesspec
    >>> model = torch.nn.Linear(2, 1)
    >>> def loss(model, batch):
    ...     return (model(batch["x"]) * 0).mean() + sum(p.square().sum() for p in model.parameters())
    >>> hessian = hesspec.Hessian(model, hesspec.closure(loss), [{"x": torch.zeros(4, 2)}])
    >>> hessian @ torch.ones(3)
    tensor([2., 2., 2.])
    """
    return Closure(function)


class Bound(nn.Module):
    """A closure with its model, as a module that returns the loss of a batch; its parameters are `model.*`.

    Parameters
    ----------
    model : torch.nn.Module
    function : Closure
    """

    def __init__(self, model: nn.Module, function: Closure) -> None:
        super().__init__()
        self.model, self._function = model, function
        self.training = model.training

    def forward(self, batch: Any) -> Tensor:
        """Loss of a batch."""
        return self._function(self.model, batch)
