"""Loss functions and the number of terms that their means are over."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Loss"]

LossFunction = Callable[[Any, Any], Tensor]

MODULE_OF = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.mse_loss: nn.MSELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
}
ELEMENTWISE = (
    nn.MSELoss,
    nn.BCEWithLogitsLoss,
    nn.BCELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.PoissonNLLLoss,
    nn.SoftMarginLoss,
)


class Loss:
    """A loss `(outputs, targets) -> scalar`, and how batches of it add up to the loss of all data.

    What is measured is the curvature of `loss_fn` applied to all data as one batch, however the data is batched: a mean
    over all its terms where the loss is a mean, their sum where its reduction is "sum".

    Parameters
    ----------
    loss_fn : callable or torch.nn loss module
        A mean-reduced function, or a module of `torch.nn` with reduction "mean" or "sum". Functions of
        `torch.nn.functional` are taken as the modules that they belong to, `functools.partial` of them included. A
        module whose outputs have an attribute `logits` (models of transformers) is given that.
    terms : callable, optional
        `targets -> number`: the number of terms (or their total weight) that the mean over a batch is over. Needed for
        a function of the user's own only where this is not the number of samples.
    device, dtype
        Where tensors that the loss module holds (class weights) are to be.

    Raises
    ------
    ValueError
        If the loss is not callable or has reduction "none".
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        *,
        terms: Callable[[Any], float] | None = None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if not callable(loss_fn):
            raise ValueError(
                f"loss_fn is a {type(loss_fn).__name__}, which cannot be called as loss_fn(outputs, targets)."
            )
        loss_fn = _as_module(loss_fn)
        if isinstance(loss_fn, nn.Module):
            # Class weights follow the model to its device and dtype; the user's own module stays as it is.
            loss_fn = copy.deepcopy(loss_fn).to(device=device, dtype=dtype)
        self.function = loss_fn
        self.reduction = str(getattr(loss_fn, "reduction", "mean"))
        if self.reduction == "none":
            raise ValueError(
                "The loss has reduction 'none', which gives no scalar to differentiate twice; use 'mean' or 'sum'."
            )
        self.name = _name(loss_fn)
        self._terms = terms

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Loss of one batch, a scalar tensor.

        Raises
        ------
        ValueError
            If it is no scalar.
        """
        loss = self.function(self.taken(outputs), targets)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            seen = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"The loss function returned {seen}; it has to return a scalar tensor, the batch's mean.")
        return loss

    def taken(self, outputs: Any) -> Any:
        """What of a model's outputs the loss function is given."""
        return outputs.logits if isinstance(self.function, nn.Module) and hasattr(outputs, "logits") else outputs

    def terms(self, targets: Any, samples: int) -> float:
        """Number (or total weight) of the loss terms of a batch, which its mean is over.

        Parameters
        ----------
        targets
            The batch's targets, on any device.
        samples : int
            The batch's number of samples.
        """
        if self._terms is not None:
            return float(self._terms(targets))
        if isinstance(self.function, nn.CrossEntropyLoss | nn.NLLLoss):
            return _class_terms(self.function, targets)
        if isinstance(self.function, ELEMENTWISE) and isinstance(targets, Tensor):
            return float(targets.numel())
        return float(samples)


def _as_module(loss_fn: LossFunction) -> LossFunction:
    function, keywords = loss_fn, {}
    if isinstance(loss_fn, functools.partial) and not loss_fn.args:
        function, keywords = loss_fn.func, loss_fn.keywords
    module = MODULE_OF.get(function) if hasattr(function, "__hash__") else None
    return module(**keywords) if module is not None else loss_fn


def _class_terms(loss: nn.CrossEntropyLoss | nn.NLLLoss, targets: Tensor) -> float:
    if targets.is_floating_point():
        # Targets are class probabilities (N, C, ...): the mean is over everything but the classes, weights or not.
        return targets.numel() / targets.shape[1 if targets.dim() > 1 else 0]
    counted = targets[targets != loss.ignore_index]
    if loss.weight is None:
        return float(counted.numel())
    return float(loss.weight.to(counted.device, torch.float64)[counted].sum())


def _name(loss_fn: Any) -> str:
    if isinstance(loss_fn, functools.partial):
        return _name(loss_fn.func)
    return str(getattr(loss_fn, "__name__", type(loss_fn).__name__))
