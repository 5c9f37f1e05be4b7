"""Base class of the modes that see calls of PyTorch functions."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["FunctionMode"]


class FunctionMode(TorchFunctionMode, ABC):
    """Within this context, calls of PyTorch functions are passed to `call`, with the arguments that the user gave."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Pass a call to `call`."""
        return self.call(func, args, _with_lost(func, kwargs))

    @abstractmethod
    def call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Return the result of a call; the function may be called, and this mode does not see what it calls."""


def _with_lost(function: Any, kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Keyword arguments of a call, with those that PyTorch does not pass on to modes.

    `torch.nn.functional.l1_loss` (PyTorch 2.14) passes on all of its arguments but `weight`: under any mode, the
    weighted loss becomes the plain one. The weight is taken from the frame of the call.
    """
    given = dict(kwargs or {})
    if function is not F.l1_loss or "weight" in given:
        return given
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the documented way to the caller's frame
    while frame is not None and frame.f_code is not F.l1_loss.__code__:
        frame = frame.f_back
    weight = None if frame is None else frame.f_locals.get("weight")
    return given if weight is None else {**given, "weight": weight}
