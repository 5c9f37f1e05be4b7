"""Functions of PyTorch that others take the place of, for a while."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

__all__ = ["Replaced"]


class Replaced(TorchFunctionMode):
    """Within this context calls of a function of PyTorch are calls of another one with the same arguments.

    Parameters
    ----------
    function, by : callable
        `by` may call `function`, which is itself there.
    """

    def __init__(self, function: Callable[..., Any], by: Callable[..., Any]) -> None:
        super().__init__()
        self._function, self._by = function, by

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace the function, and pass on everything else."""
        return (self._by if func is self._function else func)(*args, **(kwargs or {}))
