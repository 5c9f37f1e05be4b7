"""Arguments that functions of PyTorch do not pass on to the modes that see their calls."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch.nn.functional as F

__all__ = ["with_lost"]


def with_lost(function: Any, kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the keyword arguments of a call as the user gave them, for a `TorchFunctionMode` that sees the call.

    `torch.nn.functional.l1_loss` (PyTorch 2.14) passes on all of its arguments but `weight`: under any mode, the
    weighted loss becomes the plain one. The weight is taken from the frame of the call.

    Parameters
    ----------
    function : callable
        The function, as the mode receives it.
    kwargs : mapping or None
        The keyword arguments, as the mode receives them.
    """
    given = dict(kwargs or {})
    if function is not F.l1_loss or "weight" in given:
        return given
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - the documented way to the caller's frame
    while frame is not None and frame.f_code is not F.l1_loss.__code__:
        frame = frame.f_back
    weight = None if frame is None else frame.f_locals.get("weight")
    return given if weight is None else {**given, "weight": weight}
