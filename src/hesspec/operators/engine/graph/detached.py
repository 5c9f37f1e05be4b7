"""What reverse mode takes for constants, taken for constants by forward mode too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from hesspec.operators.engine.graph.soundness import UnsoundTraceError
from hesspec.operators.model.constants import GET_DATA

__all__ = ["Detached"]

"""What `tensor.data` calls."""

# They change what a tensor is, and not only for the innermost derivative.
REFUSED = {torch.Tensor.detach_, torch.Tensor.data.__set__}  # type: ignore[attr-defined]


class Detached(TorchFunctionMode):
    """Within this context results under `torch.no_grad()`, and `tensor.data`, are constants of every derivative.

    So they are in a backward pass; a forward-mode derivative looks at neither ("this API does not apply to forward-mode
    AD", says PyTorch of `no_grad`) but for `detach()`, which is put in their place. What is written in place under
    `no_grad` changes a tensor's value and not its derivative, as in a backward pass.

    Raises
    ------
    UnsoundTraceError
        In the context, by `tensor.detach_()` and by assignment to `tensor.data`.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Give functions under `no_grad` detached tensors."""
        if func in REFUSED:
            raise UnsoundTraceError(
                f"{getattr(func, '__name__', func)} of a tensor, which forward mode does not follow"
            )
        if func == GET_DATA:
            return args[0].detach()
        kwargs = kwargs or {}
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
            # x.contiguous() and x.add_(y) return x itself, which is no constant.
            return given[id(leaf)][0] if id(leaf) in given else leaf

        args, kwargs = pytree.tree_map(detach, (tuple(args), dict(kwargs)))
        return pytree.tree_map(restore, func(*args, **kwargs))
