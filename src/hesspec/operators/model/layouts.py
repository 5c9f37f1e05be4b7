"""Batch and instance normalisation with correct gradients in every memory layout.

The CPU kernel for the backward pass of batch normalisation (PyTorch 2.14) uses wrong entries if the batch has one
sample and the layouts of the input and of the gradient differ, as a dimension of size one may have any stride. Networks
in which a convolution is followed by tokens (XCiT) have such gradients, and training by `loss.backward()` has them too.
Instance normalisation is batch normalisation of one sample, whatever the batch.

Here input and output pass through one dimension, whose layout is the same for a tensor, its tangents and its gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["IN_ANY_LAYOUT"]


def _contiguous(tensor: Tensor) -> Tensor:
    """Return a tensor in row-major layout, with gradients and tangents in row-major layout."""
    return tensor.reshape(-1).view(tensor.shape)


def _in_row_major(function: Callable[..., Tensor], affected: Callable[[Tensor], bool]) -> Callable[..., Tensor]:
    def normalised(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002 - the name of PyTorch's argument
        if not affected(input):
            return function(input, *args, **kwargs)
        return _contiguous(function(_contiguous(input), *args, **kwargs))

    return normalised


def _is_one_sample(tensor: Tensor) -> bool:
    return tensor.dim() > 2 and tensor.shape[0] == 1


IN_ANY_LAYOUT: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        **{function: _in_row_major(function, _is_one_sample) for function in (F.batch_norm, torch.batch_norm)},
        **{function: _in_row_major(function, lambda _: True) for function in (F.instance_norm, torch.instance_norm)},
    }
)
"""Substitute for each function, with the same arguments, values and derivatives."""
