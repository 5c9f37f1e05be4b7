"""Loss functions, and the number of terms in their means."""

import copy
import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesspec.backend.text import kind_of, with_article
from hesspec.operators.data.structures import describe, map_tensors
from hesspec.operators.risk.closure import Closure
from hesspec.operators.risk.loss_calls import is_log_probabilities
from hesspec.operators.risk.token_loss import is_token_loss

__all__ = ["Loss", "LossFunction", "SoftmaxDivergence", "as_module"]

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


class SoftmaxDivergence(nn.KLDivLoss):
    """`torch.nn.KLDivLoss` for logits, with a log-softmax along a dimension."""

    def __init__(self, classes: int, *, reduction: str, log_target: bool) -> None:
        super().__init__(reduction=reduction, log_target=log_target)
        self.classes = classes

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002 - the name of PyTorch's argument
        """Divergence of the softmax of the input from the target."""
        return super().forward(F.log_softmax(input, self.classes), target)


class Loss:
    """Loss `(outputs, targets) -> scalar`, and how the losses of batches add up to that of all data.

    The curvature is that of `loss_fn` applied to all data as one batch, however the data is batched: a mean over all
    its terms if the loss is a mean, their sum if it is a sum.

    Parameters
    ----------
    loss_fn : callable, torch.nn loss module or Closure
        Loss. Functions of `torch.nn.functional`, and `functools.partial` of them, are converted to the corresponding
        modules. If the outputs have an attribute `logits` (models of transformers), a loss module receives that. For a
        closure the model's output is the loss itself.
    terms : callable, optional
        `targets -> number` of terms (or their total weight) in the mean over a batch; a function of the batch for a
        closure.
    device, dtype
        Device and dtype for tensors of the loss module (class weights).

    Attributes
    ----------
    function : callable
        Function of outputs and targets.
    reduction : str
        "mean" or "sum": as declared by the loss module, until it is determined from the loss of a batch
        (`hesspec.operators.risk.reduction`).

    Raises
    ------
    ValueError
        If the loss cannot be called with outputs and targets, or has reduction "none".
    """

    def __init__(
        self,
        loss_fn: LossFunction | Closure,
        *,
        terms: Callable[[Any], float] | None = None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if not callable(loss_fn):
            raise ValueError(
                f"loss_fn is {kind_of(loss_fn)}, which cannot be called as loss_fn(outputs, targets). The "
                "order of arguments is model, loss_fn, data."
            )
        if isinstance(loss_fn, type) and issubclass(loss_fn, nn.Module):
            raise ValueError(f"loss_fn is the class {loss_fn.__name__}; pass an instance, {loss_fn.__name__}().")
        loss_fn = as_module(loss_fn)
        self.closure = loss_fn if isinstance(loss_fn, Closure) else None
        if isinstance(loss_fn, nn.Module):
            # Class weights are moved to the model's device and dtype; the user's own module is left unchanged.
            loss_fn = copy.deepcopy(loss_fn).to(device=device, dtype=dtype)
        if self.closure is None:
            _check_arity(loss_fn)
        self.function: LossFunction = loss_fn
        self.reduction = str(getattr(loss_fn, "reduction", "mean"))
        if self.reduction == "none":
            raise ValueError("The loss has reduction 'none', which does not return a scalar; use 'mean' or 'sum'.")
        self.name = _name(loss_fn)
        if terms is not None and not callable(terms):
            raise ValueError(f"terms is {terms!r}; it must be a function from targets to the number of terms.")
        self.given_terms = terms
        self.of_logits = False
        """Whether it is treated as a loss of logits although its outputs are log-probabilities; see `look_at`."""
        self.changes_targets = False
        """Whether the loss function modifies targets in place, so that it receives copies."""
        self.changes_outputs = False
        """Whether it modifies outputs of the model in place (`logits /= temperature`), so that it receives copies."""
        self.watched: AbstractContextManager[object] = nullcontext()
        """Context manager in which it is called."""

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Evaluate the loss of one batch, a scalar tensor.

        Raises
        ------
        ValueError
            If the loss is not a real scalar.
        """
        return self.of_taken(self.taken(outputs), targets)

    def of_taken(self, taken: Any, targets: Any) -> Tensor:
        """Evaluate the loss at the part of the outputs that it receives; raises the errors of a call."""
        if self.closure is not None:
            loss = taken
        else:
            targets = map_tensors(Tensor.clone, targets) if self.changes_targets else targets
            # Products need the outputs themselves, too, and their derivatives are with respect to leaves, which PyTorch
            # does not let a function write into.
            taken = map_tensors(Tensor.clone, taken) if self.changes_outputs else taken
            with self.watched:
                loss = self.function(taken, targets)
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise ValueError(
                f"The loss function returned {_returned(loss)}; it must return a scalar tensor, the batch's mean."
            )
        if not loss.is_floating_point():
            raise ValueError(
                f"The loss function returned a scalar of {loss.dtype}; curvature is that of a real loss"
                + (", such as loss.real or loss.abs()." if loss.is_complex() else ", of a floating-point dtype.")
            )
        return loss

    def taken(self, outputs: Any) -> Any:
        """Return the part of a model's outputs that the loss function receives."""
        return outputs.logits if isinstance(self.function, nn.Module) and hasattr(outputs, "logits") else outputs

    @property
    def is_of_torch(self) -> bool:
        """Whether the loss is a loss module of `torch.nn` or a `TokenLoss`, or a subclass with the same `forward`."""
        if is_token_loss(self.function):
            return True
        forward = getattr(type(self.function), "forward", None)
        return isinstance(self.function, nn.Module) and getattr(forward, "__module__", "") == nn.MSELoss.__module__

    def known_terms(self, targets: Any) -> float | None:
        """Return the number (or total weight) of terms in the mean over a batch; None if only the loss itself shows it.

        Parameters
        ----------
        targets
            The batch's targets, on any device.
        """
        if self.is_of_torch and isinstance(targets, Tensor):
            if isinstance(self.function, nn.CrossEntropyLoss | nn.NLLLoss):
                return _class_terms(self.function, targets)
            if isinstance(self.function, ELEMENTWISE):
                return float(targets.numel())
        return None

    def look_at(self, outputs: Any) -> None:
        """Treat `NLLLoss` or `KLDivLoss` as a loss of logits, if these outputs are log-probabilities.

        Logarithms of probabilities are logits of these probabilities: they are their own log-softmax, for all
        parameters. The loss is then the same function of the parameters, but not linear in the outputs, and its
        Gauss-Newton matrix is that of the logits before the model's own log-softmax.
        """
        loss, logits = self.function, self.taken(outputs)
        forward = getattr(type(loss), "forward", None)
        if not isinstance(logits, Tensor):
            return
        if isinstance(loss, nn.NLLLoss) and forward is nn.NLLLoss.forward and is_log_probabilities(logits):
            self.function = nn.CrossEntropyLoss(loss.weight, ignore_index=loss.ignore_index, reduction=loss.reduction)
            self.of_logits = True
        elif isinstance(loss, nn.KLDivLoss) and forward is nn.KLDivLoss.forward:
            classes = next((d for d in (1, logits.dim() - 1) if is_log_probabilities(logits, d)), None)
            if classes is not None:
                self.function = SoftmaxDivergence(classes, reduction=loss.reduction, log_target=loss.log_target)
                self.of_logits = True


def _check_arity(loss_fn: Any) -> None:
    try:
        signature = inspect.signature(loss_fn.forward if isinstance(loss_fn, nn.Module) else loss_fn)
    except ValueError:
        return  # of a builtin, whose signature is unknown
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ValueError(
            f"loss_fn cannot be called as loss_fn(outputs, targets): {error}. Give it these two arguments, as in "
            "loss_fn=lambda outputs, targets: ..., or pass hesspec.closure(function) for function(model, batch)."
        ) from error


def _returned(loss: Any) -> str:
    if isinstance(loss, Tensor):
        return f"a tensor of shape {tuple(loss.shape)}"
    if isinstance(loss, float | int):
        return f"{type(loss).__name__}, which has no derivative (omit .item())"
    return with_article(describe(loss))


def as_module(loss_fn: Any) -> Any:
    """Convert a function of `torch.nn.functional`, or a partial of one, to its loss module; return others unchanged."""
    function, keywords = loss_fn, {}
    if isinstance(loss_fn, functools.partial) and not loss_fn.args:
        function, keywords = loss_fn.func, loss_fn.keywords
    module = MODULE_OF.get(function) if hasattr(function, "__hash__") else None
    return module(**keywords) if module is not None else loss_fn


def _class_terms(loss: nn.CrossEntropyLoss | nn.NLLLoss, targets: Tensor) -> float:
    if targets.is_floating_point():
        # Targets are class probabilities (N, C, ...): the mean is over all dimensions but the classes, with or without
        # weights.
        return targets.numel() / targets.shape[1 if targets.dim() > 1 else 0]
    counted = targets[targets != loss.ignore_index].long()
    if loss.weight is None:
        return float(counted.numel())
    # Classes without a weight are rejected in the first forward pass.
    weights = loss.weight.to(counted.device, torch.float64)
    return float(weights[counted.clamp(0, len(weights) - 1)].sum())


def _name(loss_fn: Any) -> str:
    if isinstance(loss_fn, functools.partial):
        return _name(loss_fn.func)
    return str(getattr(loss_fn, "__name__", type(loss_fn).__name__))
