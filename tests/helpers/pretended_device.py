"""A device that is pretended: PyTorch takes it for an accelerator, and its values are computed by the CPU.

It is a backend of PyTorch (`PrivateUse1`), so that everything that differentiates - autograd, whose backward passes run
in a thread of the device's own, `torch.func`, fake tensors - treats its tensors as it treats those of a GPU; where an
operation gets tensors of several devices it raises, and each wait of the host for the device is counted.

Importing this module registers the device in the process, before the first backward pass. Processes of pytest run other
tests as well, so it is imported by scripts in `tests/scripts/` only. `pretended_gpu` pretends CUDA itself, without
derivatives.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

__all__ = ["DEVICE", "counts", "on_device", "put"]

aten: Any = torch.ops.aten

NAME = "pretended"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)

META = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)
# Views that have no implementation for all devices.
VIEWS = {
    getattr(aten, name).default
    for name in ("alias", "as_strided", "_reshape_alias", "unfold", "view", "view_as_complex", "view_as_real")
}
# Operations of which one argument may be indices on the CPU; these are copied to the device, which waits.
INDEXING = {aten.index.Tensor_out, aten.index.Tensor, aten._index_put_impl_.default}
# Operations that need values on the host, or whose results have sizes that depend on values.
WAITING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.nonzero.out,
    aten.masked_select.default,
    aten.masked_select.out,
    aten._unique2.default,
}


class Counts:
    """What the host did with the device since it was cleared.

    Attributes
    ----------
    waits : Counter
        Waits for the device, by the reason: names of operations, "to the host", "to the device".
    kernels : int
        Number of other operations that ran there.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin again."""
        self.waits: Counter[str] = Counter()
        self.kernels = 0

    def add(self, name: str, *, waits: bool) -> None:
        """Count an operation."""
        self.waits[name] += waits
        self.kernels += not waits


counts = Counts()


def _here(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _values(tensor: Tensor) -> Tensor:
    """Values of a tensor on the device, as a CPU tensor of the same memory: its storage there has none."""
    found = torch.empty(0, dtype=tensor.dtype, device="cpu")
    found.set_(
        tensor.untyped_storage().values.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )
    return torch._neg_view(found) if tensor.is_neg() else found.conj() if tensor.is_conj() else found


def _there(values: Tensor) -> Tensor:
    """Tensor on the device with these values, which it keeps."""
    values = values.resolve_conj().resolve_neg()
    size = values.untyped_storage().nbytes() // values.element_size()
    made = torch._C._acc.create_empty_tensor([size], values.dtype)
    # Its storage has no bytes yet. Fake tensors, which tell memory by its size, take that of the device for theirs.
    _set(made, made.untyped_storage(), 0, [size], [1])
    made.untyped_storage().values = values
    return aten.as_strided.default.redispatch(META, made, values.size(), values.stride(), values.storage_offset())


_plain_address = torch.UntypedStorage.data_ptr
_plain_place = Tensor.data_ptr
_plain_deep_copy = Tensor.__deepcopy__


def _address(storage: torch.UntypedStorage) -> int:
    """Address of memory, by which it is known: that of the values."""
    held = getattr(storage, "values", None) if storage.device.type == NAME else None
    return _plain_address(storage if held is None else held.untyped_storage())


def _place(tensor: Tensor) -> int:
    return _plain_place(_values(tensor) if _here(tensor) and hasattr(tensor.untyped_storage(), "values") else tensor)


def _deep_copy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    if not _here(tensor) or not hasattr(tensor.untyped_storage(), "values"):
        return _plain_deep_copy(tensor, memo)
    if id(tensor) not in memo:
        made = on_device(tensor)
        kept = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = (
            nn.Parameter(made, tensor.requires_grad) if kept else made.requires_grad_(tensor.requires_grad)
        )
    return memo[id(tensor)]


# PyTorch's own look for the memory, which Python's storage has not.
torch.UntypedStorage.data_ptr = _address
Tensor.data_ptr = _place
Tensor.__deepcopy__ = _deep_copy


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation that has a tensor on the device among its arguments, or is to make one."""
    if func in VIEWS:
        return func.redispatch(META, *args, **kwargs)
    if func is aten._copy_from.default:
        return _copy(*args[:2])
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    _admit(func, args, tensors)
    if func is aten._efficientzerotensor.default:
        # One without memory on CUDA, too, which other operations know.
        func = aten.zeros.default
    device = kwargs.get("device")
    if isinstance(generator := kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device}'")
    here = torch.device(device).type == NAME if device is not None else bool(tensors)
    given = [tensor for tensor in tensors if _here(tensor)]
    same = {id(tensor): _values(tensor) for tensor in given}
    values, named = pytree.tree_map(lambda leaf: same.get(id(leaf), leaf), (args, kwargs))
    named.update({} if device is None else {"device": "cpu"})
    found = func(*values, **named)
    for tensor in given:
        if same[id(tensor)].size() != tensor.size():
            _take(tensor, same[id(tensor)])
    back = {id(same[id(tensor)]): tensor for tensor in given}

    def returned(leaf: Any) -> Any:
        if not here or not isinstance(leaf, Tensor):
            return leaf
        return back[id(leaf)] if id(leaf) in back else _there(leaf)

    return pytree.tree_map(returned, found)


def _take(tensor: Tensor, values: Tensor) -> None:
    """Give a result, which the operation has resized, its values."""
    if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.itemsize:
        raise RuntimeError(
            f"a part of memory, of the shape {tuple(tensor.shape)}, was resized to {tuple(values.shape)}"
        )
    made = _there(values)
    _set(tensor, made.untyped_storage(), 0, made.size(), made.stride())


def _set(tensor: Tensor, *storage_and_place: Any) -> Tensor:
    return aten.set_.source_Storage_storage_offset.redispatch(META, tensor, *storage_and_place)


def _as_strided(tensor: Tensor, size: Any, stride: Any, offset: int | None = None) -> Tensor:
    """Views in place, whose own implementation looks for the memory."""
    at = tensor.storage_offset() if offset is None else offset
    return _set(tensor, tensor.untyped_storage(), at, size, stride)


def _copy(source: Tensor, target: Tensor) -> Tensor:
    counts.add("to the device" if _here(target) else "to the host", waits=_here(source) != _here(target))
    values, into = (_values(each) if _here(each) else each for each in (source, target))
    into.copy_(values)
    return target


def _admit(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Count a wait or a kernel, and refuse tensors on several devices where a GPU does."""
    strangers = [tensor for tensor in tensors if not _here(tensor) and tensor.dim()]
    name = func.overloadpacket.__name__
    if func in INDEXING:
        chosen = [index for index in args[1] if index is not None]
        masks = any(index.dtype in (torch.bool, torch.uint8) for index in chosen)
        moved = any(not _here(index) for index in chosen)
        strangers = [tensor for tensor in strangers if all(tensor is not index for index in chosen)]
        counts.add("indices to the device" if moved else "mask", waits=moved or masks)
    elif tensors:
        counts.add(name, waits=func in WAITING)
    if strangers:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {DEVICE} and cpu: {name} with a tensor "
            f"{tuple(strangers[0].shape)} on the CPU"
        )


def _convolution(*args: Any) -> Any:
    return _run(aten.convolution.default, *args)


def _convolution_backward(gradient: Tensor, inputs: Tensor, weight: Tensor, *rest: Any) -> Any:
    return _run(aten.convolution_backward.default, gradient, inputs, weight, [gradient.shape[1]], *rest)


def _lstm_cell(inputs: Tensor, hidden: Tensor, cell: Tensor, *biases: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What CUDA computes in one kernel where cuDNN, which has no second derivatives, is switched off."""
    gates = inputs + hidden + sum(bias for bias in biases if bias is not None)
    one, kept, new, out = gates.chunk(4, 1)
    one, kept, new, out = one.sigmoid(), kept.sigmoid(), new.tanh(), out.sigmoid()
    next_cell = kept * cell + one * new
    return out * next_cell.tanh(), next_cell, torch.cat([one, kept, new, out], 1)


def _lstm_cell_backward(
    of_hidden: Tensor | None, of_cell: Tensor | None, cell: Tensor, next_cell: Tensor, gates: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    one, kept, new, out = gates.chunk(4, 1)
    bounded = next_cell.tanh()
    of_hidden = torch.zeros_like(cell) if of_hidden is None else of_hidden
    along = of_hidden * out * (1 - bounded * bounded) + (0 if of_cell is None else of_cell)
    found = torch.cat(
        [
            along * new * one * (1 - one),
            along * cell * kept * (1 - kept),
            along * one * (1 - new * new),
            of_hidden * bounded * out * (1 - out),
        ],
        1,
    )
    return found, along * kept, found.sum(0) if has_bias else None


_libraries = [torch.library.Library(name, "IMPL") for name in ("_", "aten")]
_libraries[0].fallback(_run, "PrivateUse1")
_libraries[1].impl("as_strided_", _as_strided, "PrivateUse1")
_libraries[1].impl("convolution_overrideable", _convolution, "PrivateUse1")
_libraries[1].impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
_libraries[1].impl("_thnn_fused_lstm_cell", _lstm_cell, "PrivateUse1")
_libraries[1].impl("_thnn_fused_lstm_cell_backward_impl", _lstm_cell_backward, "PrivateUse1")


def on_device(given: Any) -> Any:
    """Copy the tensors of a structure to the device."""
    return pytree.tree_map(
        lambda leaf: _there(leaf.detach().cpu().clone()) if isinstance(leaf, Tensor) else leaf, given
    )


def put(module: nn.Module) -> nn.Module:
    """Move a module to the device, as `module.to(device)` does elsewhere."""
    known: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                made = nn.Parameter(on_device(parameter), parameter.requires_grad)
                part._parameters[name] = known.setdefault(id(parameter), made)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on_device(buffer)
    return module
