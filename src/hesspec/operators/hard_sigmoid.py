"""The hard sigmoid in a form that PyTorch can differentiate twice."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hesspec.operators.replaced import Replaced

__all__ = ["PiecewiseForm"]


class PiecewiseForm(Replaced):
    """Within this context `torch.nn.functional.hardsigmoid`, which has no second derivative, is relu6(x + 3) / 6.

    That is its definition, and has the same derivative, also at the kinks. MobileNetV3 is made with it.
    """

    def __init__(self) -> None:
        super().__init__(F.hardsigmoid, _hard_sigmoid)


def _hard_sigmoid(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002 - PyTorch's arguments
    result = F.relu6(input + 3) / 6
    return input.copy_(result) if inplace else result
