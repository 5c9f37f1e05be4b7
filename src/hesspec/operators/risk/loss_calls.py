"""Recording and modification of calls of `torch.nn.functional` loss functions in a model and its loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hesspec.operators.model.function_mode import FunctionMode

__all__ = ["ELEMENTWISE", "OF_CLASSES", "LossCall", "LossCalls", "is_log_probabilities"]

ELEMENTWISE = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.soft_margin_loss,
    F.poisson_nll_loss,
    F.kl_div,
)
"""Loss functions that are means over all entries of their input."""

FUNCTIONS = (*ELEMENTWISE, F.cross_entropy, F.nll_loss, F.gaussian_nll_loss, F.ctc_loss)

OF_CLASSES = (F.cross_entropy, F.nll_loss)
"""Loss functions whose targets may be classes."""

SIGNATURES = {function: inspect.signature(function) for function in FUNCTIONS}

# Tolerance of the sum of probabilities, in units of the rounding of their logarithms.
ROUNDINGS = 64


@dataclass(frozen=True)
class LossCall:
    """Recorded call of a loss function.

    Attributes
    ----------
    function : callable
        Function of `torch.nn.functional`.
    given : dict
        Arguments by name, including defaults.
    result : Tensor
        Result of the call.
    """

    function: Callable[..., Tensor]
    given: dict[str, Any]
    result: Tensor

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.function.__name__

    @property
    def input(self) -> Tensor:
        """First argument."""
        found: Tensor = next(iter(self.given.values()))
        return found

    @property
    def is_mean(self) -> bool:
        """Whether the result is a mean over its terms."""
        return bool(self.given["reduction"] == "mean")

    @property
    def terms(self) -> float | None:
        """Number, or total weight, of the terms in the mean; None if unknown."""
        if self.function in ELEMENTWISE and self.given["reduction"] == "mean":
            shape = np.broadcast_shapes(tuple(self.input.shape), tuple(self.given["target"].shape))
            return float(math.prod(shape))
        if self.function is F.ctc_loss and self.given["reduction"] == "mean":
            # Sequences; the loss of each is divided by its own length.
            return float(self.input.shape[1] if self.input.dim() == 3 else 1)
        if self.function not in OF_CLASSES or self.given["reduction"] != "mean":
            return None
        target, weight = self.given["target"], self.given["weight"]
        if target.is_floating_point():
            return float(target.numel() // target.shape[1 if target.dim() > 1 else 0])
        counted = target[target != self.given["ignore_index"]].long()
        return float(counted.numel()) if weight is None else float(weight.detach().double()[counted].sum())


class LossCalls(FunctionMode):
    """Records calls of loss functions within this context.

    Parameters
    ----------
    instead : callable, optional
        `instead(number, function, given) -> Tensor` returns the result of the call with this number; by default the
        function is called.

    Attributes
    ----------
    calls : list of LossCall
    failed : mapping or None
        Arguments of the last call of a loss of classes that raised an exception, by name.
    """

    def __init__(self, instead: Callable[[int, Callable[..., Tensor], dict[str, Any]], Tensor] | None = None) -> None:
        super().__init__()
        self._instead = instead
        self.calls: list[LossCall] = []
        self.failed: Mapping[str, Any] | None = None

    def call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call a function, and record it if it is a loss function."""
        signature = SIGNATURES.get(func)
        if signature is None:
            return func(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        try:
            result = self._instead(len(self.calls), func, given) if self._instead else func(*args, **kwargs)
        except Exception:
            self.failed = given if func in OF_CLASSES else None
            raise
        self.calls.append(LossCall(func, given, result))
        return result


def is_log_probabilities(tensor: Tensor, classes: int = 1) -> bool:
    """Whether the entries along a dimension are logarithms of numbers that sum to one, to rounding."""
    if tensor.dim() <= classes or tensor.shape[classes] < 2 or not tensor.is_floating_point():
        return False
    with torch.no_grad():
        total = torch.logsumexp(tensor, classes)
        size = torch.where(tensor.isfinite(), tensor.abs(), 0).amax(classes)
        return bool((total.abs() <= ROUNDINGS * torch.finfo(tensor.dtype).eps * (1 + size)).all())
