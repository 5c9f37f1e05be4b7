"""Detached results as constants in forward mode, as they are in reverse mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hesspec.operators.engine.graph.soundness import UnsoundTraceError
from hesspec.operators.model.constants import GET_DATA
from hesspec.operators.model.function_mode import FunctionMode

__all__ = ["Detached"]

# They change the tensor itself, not only for the innermost derivative.
REFUSED = {torch.Tensor.detach_, torch.Tensor.data.__set__}  # type: ignore[attr-defined]


class Detached(FunctionMode):
    """Within this context, results under `torch.no_grad()` and `tensor.data` are constants for every derivative.

    A backward pass treats them as constants. Forward mode ignores both (PyTorch documents for `no_grad` that "this API
    does not apply to forward-mode AD") but respects `detach()`, which is substituted. In-place writes under `no_grad`
    change the value of a tensor and not its derivative, as in a backward pass.

    Raises
    ------
    UnsoundTraceError
        For `tensor.detach_()` and assignments to `tensor.data` within the context.
    """

    def call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Pass detached tensors to functions under `no_grad`."""
        if func in REFUSED:
            raise UnsoundTraceError(
                f"{getattr(func, '__name__', func)} of a tensor, which forward mode does not follow"
            )
        if func == GET_DATA:
            return args[0].detach()
        if torch.is_grad_enabled():
            return func(*args, **kwargs)
        if getattr(func, "__name__", "") == "__get__":
            result = func(*args, **kwargs)
            return result.detach() if isinstance(result, Tensor) and result is not args[0] else result
        given: dict[int, tuple[Tensor, Tensor]] = {}

        def detach(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            detached = leaf.detach()
            given[id(detached)] = leaf, detached
            return detached

        def restore(leaf: Any) -> Any:
            # x.contiguous() and x.add_(y) return x itself, which is not a constant.
            return given[id(leaf)][0] if id(leaf) in given else leaf

        args, kwargs = pytree.tree_map(detach, (tuple(args), dict(kwargs)))
        return pytree.tree_map(restore, func(*args, **kwargs))
