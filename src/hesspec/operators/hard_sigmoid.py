"""The hard sigmoid in a form that PyTorch can differentiate twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["PiecewiseForm"]


class PiecewiseForm(TorchFunctionMode):
    """Within this context `torch.nn.functional.hardsigmoid`, which has no second derivative, is relu6(x + 3) / 6.

    That is its definition, and has the same derivative, also at the kinks. MobileNetV3 is made with it.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace the hard sigmoid, and pass on everything else."""
        kwargs = dict(kwargs or {})
        if func is F.hardsigmoid:
            return _hard_sigmoid(*args, **kwargs)
        return func(*args, **kwargs)


def _hard_sigmoid(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002 - PyTorch's arguments
    result = F.relu6(input + 3) / 6
    return input.copy_(result) if inplace else result
