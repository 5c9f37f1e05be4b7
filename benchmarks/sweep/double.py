"""Everything in float64: modules, data, and what runs between them."""

from __future__ import annotations

import copy
import types
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["double_data", "double_module", "in_double", "twice_differentiable"]

WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}
ATOMS = (
    *(str, bytes, int, float, bool, complex, type(None), torch.dtype, torch.device, torch.Generator),
    *(type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, weakref.ref, nn.Module),
)

# Numbers are drawn in the precision that the user's model draws them in: others follow from a seed in float64.
DRAWN = {torch.randn, torch.rand, torch.randn_like, torch.rand_like, torch.normal, torch.bernoulli}
DRAWN_IN_PLACE = {Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_}


def _wide(tensor: Tensor) -> Tensor:
    dtype = WIDER.get(tensor.dtype)
    return tensor if dtype is None else tensor.to(dtype)


def double_module(module: nn.Module) -> nn.Module:
    """The module itself, with parameters and buffers of float32 in float64, and complex ones likewise."""
    return module._apply(_wide)  # noqa: SLF001 - Module.double() leaves out complex parameters


def double_data(tree: Any) -> Any:
    """A copy in float64 of tensors and arrays in containers and objects of any kind."""
    if isinstance(tree, ATOMS):
        return tree
    if isinstance(tree, Tensor):
        return _wide(tree.detach()).requires_grad_(tree.requires_grad)
    if isinstance(tree, np.ndarray):
        return tree.astype(np.float64) if tree.dtype == np.float32 else tree
    if isinstance(tree, tuple | list):
        children = [double_data(child) for child in tree]
        return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)
    return _double_object(tree)


def _double_object(thing: Any) -> Any:
    if type(thing) is dict:
        return {key: double_data(child) for key, child in thing.items()}
    other = copy.copy(thing)
    slots = {name: getattr(thing, name) for name in getattr(type(thing), "__slots__", ())}
    for name, child in (slots or vars(thing)).items():
        object.__setattr__(other, name, double_data(child))
    return other


class _Double(TorchFunctionMode):
    """What asks for float32 gets float64, so that a norm or a softmax "in float32" does not round the truth."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.float:
            return args[0].double()
        if func is F.batch_norm and args[0].shape[0] == 1:
            training = args[5] if len(args) > 5 else kwargs.get("training", False)
            if not training:
                return _normalised(*args, **kwargs)
        if func in DRAWN:
            with torch._C.DisableTorchFunction():  # noqa: SLF001 - there is no public name for it
                return _wide(func(*map(_narrow, args), **{"dtype": torch.float32, **kwargs}))
        if func in DRAWN_IN_PLACE and args[0].dtype == torch.float64:
            return args[0].copy_(func(args[0].float(), *args[1:], **kwargs))
        return func(
            *(WIDER.get(argument, argument) if isinstance(argument, torch.dtype) else argument for argument in args),
            **{k: WIDER.get(v, v) if isinstance(v, torch.dtype) else v for k, v in kwargs.items()},
        )


def _normalised(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,  # noqa: ARG001 - as of F.batch_norm
    momentum: float = 0.1,  # noqa: ARG001
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm in evaluation mode from elementary operations.

    PyTorch's gradient of it is wrong for one sample and a gradient that is channels last, as from tokens.
    """
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    scaled = (x - mean.view(shape)) / (variance.view(shape) + eps).sqrt()
    scaled = scaled if weight is None else scaled * weight.view(shape)
    return scaled if bias is None else scaled + bias.view(shape)


def _narrow(argument: Any) -> Any:
    return argument.float() if isinstance(argument, Tensor) and argument.dtype == torch.float64 else argument


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention by kernels that PyTorch can differentiate twice."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def in_double() -> Iterator[None]:
    """Run what is inside in float64 throughout, twice differentiable."""
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(twice_differentiable())
        stack.enter_context(_Double())
        stack.callback(torch.set_default_dtype, before)
        torch.set_default_dtype(torch.float64)
        yield
