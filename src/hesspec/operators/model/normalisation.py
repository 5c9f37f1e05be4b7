"""Normalisations whose scale or shift is a constant, in forward mode.

PyTorch's forward-mode rules represent the missing tangent of a constant by a tensor of zeros without memory, of which
fake tensors lose track (torch 2.14): no network with frozen normalisations, as in fine-tuning, would be traced. Here
such constants are applied after a normalisation without any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import TransformType, is_gradtrackingtensor, peek_interpreter_stack
from torch._guards import detect_fake_mode

__all__ = ["NORMALISATIONS"]


def layer_norm(
    input: Tensor,  # noqa: A002 - name of PyTorch's argument
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise over the last dimensions."""
    if not _has_constants(weight, bias):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    return _transformed(F.layer_norm(input, normalized_shape, None, None, eps), weight, bias)


def group_norm(
    input: Tensor,  # noqa: A002
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise over groups of channels."""
    if not _has_constants(weight, bias):
        return F.group_norm(input, num_groups, weight, bias, eps)
    return _transformed(F.group_norm(input, num_groups, None, None, eps), *_of_channels(input, weight, bias))


def _with_statistics(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def normalised(
        input: Tensor,  # noqa: A002
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *settings: Any,
        **named: Any,
    ) -> Tensor:
        if not _has_constants(weight, bias):
            return function(input, running_mean, running_var, weight, bias, *settings, **named)
        result = function(input, running_mean, running_var, None, None, *settings, **named)
        return _transformed(result, *_of_channels(input, weight, bias))

    return normalised


def _has_constants(*tensors: Tensor | None) -> bool:
    """Whether one of these is a constant of the innermost derivative, while a function is traced."""
    innermost = peek_interpreter_stack()
    if detect_fake_mode() is None or innermost is None or innermost.key() == TransformType.Functionalize:
        return False
    return any(tensor is not None and not is_gradtrackingtensor(tensor) for tensor in tensors)


def _of_channels(input: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:  # noqa: A002
    shape = (-1, *[1] * (input.dim() - 2))
    return [None if tensor is None else tensor.reshape(shape) for tensor in tensors]


def _transformed(result: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    result = result if weight is None else result * weight
    return result if bias is None else result + bias


NORMALISATIONS: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        F.layer_norm: layer_norm,
        F.group_norm: group_norm,
        F.batch_norm: _with_statistics(F.batch_norm),
        F.instance_norm: _with_statistics(F.instance_norm),
    }
)
"""Substitute for each function, with the same arguments, values and derivatives."""
