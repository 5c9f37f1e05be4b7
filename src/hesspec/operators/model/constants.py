"""What a model or a loss detaches is constant: found, and held at its values while parameters are displaced.

A backward pass takes results under `torch.no_grad()`, `tensor.detach()`, `tensor.data` and `tensor.item()` for
constants, and so does a double one. A difference of gradients would have their changes in it, which makes it the
product with a matrix that is not even symmetric: a weight in focal loss, the target of a self-supervised one and a
straight-through estimator are of this kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["GET_DATA", "Constants", "Detachments"]

GET_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]

DETACHING = frozenset(
    {Tensor.detach, torch.detach, Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__float__, Tensor.__array__}
)


class _Detaching(TorchFunctionMode, ABC):
    """Within this context functions of PyTorch whose results are detached go through `seen`.

    Not those in the forward pass of an `autograd.Function`, whose results are no constants: gradients are off there,
    and nobody has switched them off. (One that switches them on and off again looks like `torch.no_grad` from then on.)
    """

    def __init__(self) -> None:
        super().__init__()
        # Whether gradients were switched off by a call.
        self._off = False

    @abstractmethod
    def seen(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Result of a function that detaches."""

    def __enter__(self) -> Self:
        """Enter the context, with gradients on."""
        self._off = False
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function, as `seen` says where it detaches."""
        kwargs = kwargs or {}
        in_function = not (torch.is_grad_enabled() or self._off)
        if not in_function:
            if func is torch._C._set_grad_enabled:  # noqa: SLF001 - what `torch.no_grad` and the like call
                self._off = not args[0]
            elif _detaches(func):
                return self.seen(func, args, kwargs)
        return func(*args, **kwargs)


def _detaches(func: Callable[..., Any]) -> bool:
    """Whether the result of a function is a constant of a backward pass, whatever its arguments are."""
    if func in DETACHING or func == GET_DATA:
        return True
    name = getattr(func, "__name__", "")
    # What works in place changes a tensor that may be none; attributes are no results.
    in_place = name.endswith("_") and not name.endswith("__")
    return not torch.is_grad_enabled() and not in_place and name not in ("__get__", "__set__", "__setitem__")


class Detachments(_Detaching):
    """Tells whether anything that depends on parameters is detached within this context.

    Attributes
    ----------
    found : bool
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def seen(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Note whether an argument requires a gradient."""
        given = pytree.tree_leaves((tuple(args), dict(kwargs)))
        requires = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in given)
        result = func(*args, **kwargs)
        self.found |= requires and _is_number(result)
        return result


class Constants(_Detaching):
    """The first time that this context is entered, what is detached in it is kept; later on it has the same values.

    One object is for one piece of code, whose calls of functions are the same each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[Any] = []
        self._complete = False
        self._next = 0

    def __enter__(self) -> Self:
        """Begin, again."""
        self._next = 0
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """End; all that is detached has been kept."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._complete = True

    def seen(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result, or that of the first time."""
        result = func(*args, **kwargs)
        if not _is_number(result):
            return result
        if not self._complete:
            # A copy, as what shares memory with a parameter moves with it.
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
    """Whether a result has values that move with the parameters."""
    if isinstance(result, Tensor):
        return result.is_floating_point() or result.is_complex()
    return isinstance(result, float)
