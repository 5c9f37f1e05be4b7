"""Detached results of a model or a loss: detected, and held constant while parameters are displaced.

A backward pass treats results of `torch.no_grad()`, `tensor.detach()`, `tensor.data` and `tensor.item()` as constants,
and so does a double backward pass. A difference of gradients would include their changes, and would be the product with
a matrix that is not even symmetric. Examples are the weight in a focal loss, the target of a self-supervised loss and
straight-through estimators.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hesspec.operators.model.function_mode import FunctionMode

__all__ = ["GET_DATA", "Constants", "Detachments"]

GET_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
"""The function that `tensor.data` calls."""

DETACHING = frozenset(
    {Tensor.detach, torch.detach, Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__float__, Tensor.__array__}
)


class _Detaching(FunctionMode):
    """Within this context, detached results of PyTorch functions are passed to `seen`.

    This excludes the forward pass of an `autograd.Function`, whose results are not constants: gradients are off there
    without having been switched off. (If it switches them on and off again, it looks like `torch.no_grad` from then
    on.)
    """

    def __init__(self) -> None:
        super().__init__()
        # Whether gradients were switched off by a call.
        self._off = False

    @abstractmethod
    def seen(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Handle the result of a function that detaches."""

    def __enter__(self) -> Self:
        """Enter the context, with gradients on."""
        self._off = False
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call a function, and pass its result to `seen` if it detaches."""
        in_function = not (torch.is_grad_enabled() or self._off)
        if not in_function:
            if func is torch._C._set_grad_enabled:  # noqa: SLF001 - what `torch.no_grad` and the like call
                self._off = not args[0]
            elif _detaches(func):
                return self.seen(func, args, kwargs)
        return func(*args, **kwargs)


def _detaches(func: Callable[..., Any]) -> bool:
    """Whether a backward pass treats the result of a function as a constant, whatever its arguments."""
    if func in DETACHING or func == GET_DATA:
        return True
    name = getattr(func, "__name__", "")
    # In-place functions change a tensor that may not be constant; attributes are not results.
    in_place = name.endswith("_") and not name.endswith("__")
    return not torch.is_grad_enabled() and not in_place and name not in ("__get__", "__set__", "__setitem__")


class Detachments(_Detaching):
    """Detects whether anything that depends on parameters is detached within this context.

    Attributes
    ----------
    found : bool
        Whether a detachment was detected.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def seen(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Record whether an argument requires a gradient."""
        given = pytree.tree_leaves((tuple(args), dict(kwargs)))
        requires = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in given)
        result = func(*args, **kwargs)
        self.found |= requires and _is_number(result)
        return result


class Constants(_Detaching):
    """Records detached results when this context is entered first, and replays them in later contexts.

    Use one object for one piece of code, whose function calls must be the same each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[Any] = []
        self._complete = False
        self._next = 0

    def __enter__(self) -> Self:
        """Enter the context, starting from the first detached result."""
        self._next = 0
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Leave the context; all detached results have been recorded."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._complete = True

    def seen(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the result, or the recorded one."""
        result = func(*args, **kwargs)
        if not _is_number(result):
            return result
        if not self._complete:
            # A copy, as a tensor that shares memory with a parameter changes with it.
            self._kept.append(result.detach().clone() if isinstance(result, Tensor) else result)
            return result
        self._next += 1
        kept = self._kept[self._next - 1] if self._next <= len(self._kept) else result
        if isinstance(result, Tensor) != isinstance(kept, Tensor):
            return result
        if isinstance(result, Tensor):
            return kept.clone() if kept.shape == result.shape and kept.dtype == result.dtype else result
        return kept


def _is_number(result: Any) -> bool:
    """Whether a result is numeric, so that it can change with the parameters."""
    if isinstance(result, Tensor):
        return result.is_floating_point() or result.is_complex()
    return isinstance(result, float)
