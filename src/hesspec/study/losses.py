"""Losses of classifiers by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from hesspec.backend.suggest import unknown
from hesspec.study.imports import load_object

__all__ = ["CROSS_ENTROPY", "LOSSES", "OneHotSquaredError", "loss_of"]


class OneHotSquaredError(nn.Module):
    """Mean over samples and classes of the squared error between outputs (N, C) and one-hot labels (N,)."""

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss, a scalar."""
        return mse_loss(outputs, one_hot(labels, outputs.shape[-1]).to(outputs.dtype))


CROSS_ENTROPY: Final = "cross-entropy"
# One object for each, as traces are shared only for the identical loss.
LOSSES: Final[dict[str, nn.Module]] = {CROSS_ENTROPY: nn.CrossEntropyLoss(), "mse": OneHotSquaredError()}
"""Losses that a study file can name: mean cross-entropy in nats, and `OneHotSquaredError`."""


def loss_of(name: str) -> Callable[..., Any]:
    """Return a loss by its name in `LOSSES`, or the user's own from `"module:callable"`.

    Parameters
    ----------
    name
        The callable is a function of outputs and targets, or a class whose instances are, as those of `torch.nn`; it is
        created without arguments.

    Raises
    ------
    ValueError
        If there is no such loss, or the class cannot be created without arguments.

    Examples
    --------
    >>> loss_of("torch.nn:MultiMarginLoss")
    MultiMarginLoss()
    """
    if name in LOSSES:
        return LOSSES[name]
    if ":" not in name:
        raise ValueError(f"{unknown('loss', name, LOSSES)} One of your own is named 'module:callable'.")
    found: Callable[..., Any] = load_object(name, "loss")
    if not isinstance(inspect.unwrap(found), type):
        return found
    try:
        made: Any = found()
    except TypeError as error:
        raise ValueError(
            f"The loss {name!r} is a class that needs arguments: {error}. Name a function without them that makes it "
            "and calls it."
        ) from error
    if not callable(made):
        raise ValueError(f"The loss {name!r} is a class whose instances are not functions of outputs and targets.")
    own: Callable[..., Any] = made
    return own
