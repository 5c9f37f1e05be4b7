"""A GPU that is pretended: tensors that say they are on `cuda:0` and refuse what a GPU refuses, computed by the CPU.

Mistakes with devices - a tensor made on the CPU by default, CUDA memory given to NumPy, a wait for the device in every
round of a loop - pass unseen where there is no second device. `pretended_gpu` finds them without one, with true values,
so that code whose control flow depends on them runs to its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._device import _device_constructors

__all__ = ["GPU", "Waits", "on_gpu", "pretended_gpu"]

aten: Any = torch.ops.aten

GPU = torch.device("cuda", 0)
# Memory that the GPU has, all of it free.
MEMORY = 8 << 30
# Operations that take tensors of several devices.
COPIES = {aten.copy_.default, aten._to_copy.default}
# Operations of which one argument may be indices on the CPU; these are copied to the GPU, which waits.
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Operations that need values on the host, or whose results have sizes that depend on values.
WAITING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.linalg_cholesky_ex.default,
    aten.linalg_eigh.default,
}


class Waits(Counter[str]):
    """How often the host waited for the GPU, by the reason: names of operations, "to the host", "to the GPU".

    Attributes
    ----------
    kernels : int
        Number of other operations that ran on the GPU.
    """

    kernels = 0


class OnGPU(Tensor):
    """A tensor on the pretended GPU; `values` are its values, on the CPU."""

    values: Tensor
    waits = Waits()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor) -> OnGPU:
        shape = torch.empty_strided(values.size(), values.stride(), dtype=values.dtype, device="meta")
        made = Tensor._make_subclass(cls, shape, False, dispatch_device=True, device_for_backend_keys=GPU)  # type: ignore[call-arg]
        made.values = values.detach()
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The pretended GPU."""
        return GPU

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation that has a tensor on the GPU among its arguments, or is to make one."""
    if func is torch.ops.prim.device.default:
        # For PyTorch's own C++, which would otherwise select the GPU through its driver.
        return torch.device("cpu")
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    here = target.type == "cuda" if target else any(isinstance(tensor, OnGPU) for tensor in tensors)
    here = isinstance(args[0], OnGPU) if func is aten.copy_.default else here
    _admit(func, args, tensors, here=here)
    values, named = pytree.tree_map(lambda leaf: leaf.values if isinstance(leaf, OnGPU) else leaf, (args, kwargs))
    if target is not None and target.type == "cuda":
        named["device"] = torch.device("cpu")
    named.pop("pin_memory", None)
    found = func(*values, **named)
    # In place: the same tensors, whose values have changed.
    known = {id(tensor.values): tensor for tensor in tensors if isinstance(tensor, OnGPU)}
    if func is aten.copy_.default:
        return args[0]

    def there(leaf: Any) -> Any:
        if not here or not isinstance(leaf, Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else OnGPU(leaf)

    return pytree.tree_map(there, found)


def _admit(func: Any, args: Any, tensors: list[Tensor], *, here: bool) -> None:
    """Count a wait or a kernel, and refuse tensors on several devices where a GPU does."""
    strangers = [tensor for tensor in tensors if not isinstance(tensor, OnGPU)]
    if func in COPIES:
        _count("to the GPU" if here else "to the host", moved=bool(strangers) if here else True)
    elif func in INDEXING:
        chosen = [index for index in args[1] if index is not None]
        masks = any(index.dtype in (torch.bool, torch.uint8) for index in chosen)
        _count("to the GPU" if strangers else "mask", moved=bool(strangers) or masks)
        _refuse(func, [tensor for tensor in strangers if all(tensor is not index for index in chosen)])
    elif tensors:
        _refuse(func, strangers)
        _count(func.__name__.partition(".")[0], moved=func in WAITING)


def _refuse(func: Any, strangers: list[Tensor]) -> None:
    """Raise what PyTorch raises for tensors on several devices; those of single numbers may be anywhere."""
    for tensor in strangers:
        if tensor.dim():
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found cuda:0 and cpu: {func} with a tensor "
                f"{tuple(tensor.shape)} on the CPU"
            )


def _count(name: str, *, moved: bool) -> None:
    if moved:
        OnGPU.waits[name] += 1
    else:
        OnGPU.waits.kernels += 1


class _Calls(TorchFunctionMode):
    """Calls from Python that name the GPU, before PyTorch looks for its driver."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        # There is nothing to pin memory for.
        kwargs.pop("pin_memory", None)
        moves = func in (Tensor.to, Tensor.cuda, Tensor.cpu)
        given = [*(args[1:] if moves else ()), kwargs.get("device")]
        named = [torch.device(each) for each in given if isinstance(each, torch.device) or _is_device(each)]
        named += [each.device for each in given if isinstance(each, Tensor)]
        named += [GPU] if func is Tensor.cuda else [torch.device("cpu")] if func is Tensor.cpu else []
        if moves and named and (isinstance(args[0], OnGPU) or named[0].type == "cuda"):
            return _moved(args[0], named[0], args[1:], kwargs)
        if func is Tensor.numpy and isinstance(args[0], OnGPU):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if not named or named[0].type != "cuda" or func not in _device_constructors():
            return func(*args, **kwargs)
        made = func(*args, **{**kwargs, "device": torch.device("cpu")})
        return made if isinstance(made, OnGPU) else OnGPU(made).requires_grad_(made.requires_grad)


def _is_device(given: Any) -> bool:
    return isinstance(given, str) and given.partition(":")[0] in ("cuda", "cpu")


def _moved(tensor: Tensor, device: torch.device, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """`tensor.to(...)` that names a device, for a tensor on the GPU or to it."""
    options = {name: value for name, value in kwargs.items() if name not in ("device", "non_blocking")}
    for each in args:
        if isinstance(each, torch.dtype | Tensor):
            options["dtype"] = each if isinstance(each, torch.dtype) else each.dtype
    here = isinstance(tensor, OnGPU)
    if here and device.type == "cuda":
        return tensor.to(**options) if options else tensor
    _count("to the host" if here else "to the GPU", moved=True)
    copied = (tensor.values if here else tensor.detach()).to(**{**options, "copy": True})
    return copied if here else OnGPU(copied)


def on_gpu(given: Any) -> Any:
    """Copy the tensors of a structure to the pretended GPU."""
    return pytree.tree_map(lambda leaf: OnGPU(leaf) if isinstance(leaf, Tensor) else leaf, given)


@contextmanager
def pretended_gpu() -> Iterator[Waits]:
    """Run with a pretended GPU; yields the counts of waits for it, which may be cleared."""
    OnGPU.waits = Waits()
    with ExitStack() as stack:
        stack.enter_context(mock.patch("torch.cuda.mem_get_info", return_value=(MEMORY, MEMORY)))
        stack.enter_context(mock.patch("torch.cuda.memory_reserved", return_value=0))
        stack.enter_context(mock.patch("torch.cuda.memory_allocated", return_value=0))
        stack.enter_context(mock.patch("torch.cuda.get_device_name", return_value="pretended"))
        stack.enter_context(_Calls())
        yield OnGPU.waits
