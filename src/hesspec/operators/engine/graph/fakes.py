"""Results of operations with fake tensors, of which a network repeats most with the same shapes."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

__all__ = ["FakeResults", "form_of", "without_grad"]

aten: Any = torch.ops.aten

# They return a view of their argument without declaring it, or a constant with its value.
UNDECLARED = {aten._unsafe_view.default, aten.lift_fresh.default, aten.lift.default, aten.lift_fresh_copy.default}  # noqa: SLF001
# What an operation may do besides computing results whose shapes follow from those of its arguments.
SPECIAL = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
    torch.Tag.nondeterministic_seeded,
}


class _Form(NamedTuple):
    """What a fake tensor says of its value."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    offset: int
    is_zero: bool
    """Whether it is a tensor of zeros without memory, which forward mode uses for tangents."""


class _NotRememberedError(Exception):
    pass


# Forms of results, and their largest number. The three matrices of a network with 20 convolutions have 1,136.
_KNOWN: dict[Hashable, Any] = {}
MOST = 2**16


class FakeResults:
    """Runs operations with fake tensors, each of them once in a process for all arguments of the same form.

    PyTorch remembers results, too, but has to allow for symbolic shapes and for modes, which takes most of the time of
    an operation. Here only results in memory of their own, and views of the first argument, are remembered. Traces of
    G, H and of other models of the same shapes find nearly all results known.

    Parameters
    ----------
    fakes : FakeTensorMode
        Without symbolic shapes; active where operations are run.
    """

    def __init__(self, fakes: FakeTensorMode) -> None:
        self._fakes = fakes
        # What is not known here is not known there, either, where looking for it takes a sixth of the time of a trace.
        fakes.cache_enabled = False

    def of(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Return the result of an operation."""
        views = _views(func)
        key = form_of(func, args, kwargs) if views is not None else None
        if key is None:
            return func(*args, **kwargs)
        base = args[0].untyped_storage() if views else None
        if key in _KNOWN:
            return self._made(_KNOWN[key], base)
        result = func(*args, **kwargs)
        allowed = {_address(base)} if base is not None else set()
        # Without memory that is shared in other ways than declared.
        storages = {_address(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))} - allowed
        with suppress(_NotRememberedError):
            form_of_result = _form_of_result(result, storages)
            if len(_KNOWN) >= MOST:
                _KNOWN.clear()
            _KNOWN[key] = form_of_result
        return result

    def _made(self, form: Any, base: torch.UntypedStorage | None) -> Any:
        if not isinstance(form, _Form):
            return form if form is None else type(form)(self._made(part, base) for part in form)
        # Hidden from all modes, as the function does not run it.
        with torch._C._DisableTorchDispatch():  # noqa: SLF001
            if base is None:
                value = torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device="meta")
            else:
                value = torch.empty(0, dtype=form.dtype, device="meta")
                value.set_(base, form.offset, form.shape, form.stride)
        return FakeTensor(self._fakes, value, form.device)


def without_grad(fake: FakeTensor) -> Tensor:
    """Return another fake tensor with the same memory, and no graph."""
    if fake.layout != torch.strided or fake.is_conj() or fake.is_neg() or fake._is_zerotensor():  # noqa: SLF001
        return fake.detach()
    with torch._C._DisableTorchDispatch():  # noqa: SLF001
        value = torch.empty(0, dtype=fake.dtype, device="meta")
        value.set_(fake.untyped_storage(), int(fake.storage_offset()), fake.shape, fake.stride())
    return FakeTensor(fake.fake_mode, value, fake.fake_device)


@functools.cache
def _views(func: Any) -> bool | None:
    """Whether an operation returns a view of its first argument; None if its results are not to be remembered."""
    schema = func._schema  # noqa: SLF001 - the operator's declaration
    if func.namespace not in ("aten", "prims") or func in UNDECLARED or SPECIAL & set(func.tags):
        return None
    shared = [part for part in (*schema.arguments, *schema.returns) if part.alias_info is not None]
    if not shared:
        return False
    whole = [schema.arguments[0], *schema.returns] if schema.arguments else []
    # A view of its first argument as a whole, and not one of several.
    single = len(schema.returns) == 1 and all(str(part.type) == "Tensor" for part in whole)
    return True if single and shared == whole and not schema.is_mutable else None


def form_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable | None:
    """Return what the form of an operation's result depends on; None if that is more than the forms of arguments."""
    try:
        if args and isinstance(args[0], Tensor) and _views(func) and args[0]._is_zerotensor():  # noqa: SLF001
            return None
        named = tuple((name, _form(value)) for name, value in kwargs.items())
        # The dtype of results of numbers, and the kernel that a convolution uses, with the strides of its results.
        return func, torch.get_default_dtype(), *_kernels(), _form(tuple(args)), named
    except _NotRememberedError:
        return None


def _kernels() -> tuple[bool, ...]:
    """Settings that choose kernels."""
    return (
        torch._C._get_mkldnn_enabled(),  # noqa: SLF001 - the public properties take ten times as long
        torch._C._get_cudnn_enabled(),  # noqa: SLF001
        torch._C._get_cudnn_benchmark(),  # noqa: SLF001
        torch._C._get_cudnn_deterministic(),  # noqa: SLF001
        torch.are_deterministic_algorithms_enabled(),
    )


def _form(value: Any) -> Hashable:
    if value is None:
        return None
    if isinstance(value, Tensor):
        # Constants have values, from which results are computed.
        if type(value) is not FakeTensor or value.constant is not None or value.layout != torch.strided:
            raise _NotRememberedError
        if value.is_conj() or value.is_neg():
            raise _NotRememberedError
        is_zero = value._is_zerotensor()  # noqa: SLF001 - there is no public way
        return _Form(value.shape, value.stride(), value.dtype, value.device, int(value.storage_offset()), is_zero)
    if isinstance(value, list | tuple):
        return tuple(map(_form, value))
    if isinstance(value, bool | int | float | str | torch.dtype | torch.device | torch.layout | torch.memory_format):
        # 1, 1.0 and True are equal.
        return type(value), value
    raise _NotRememberedError


def _form_of_result(value: Any, storages: set[int]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_form_of_result(part, storages) for part in value)
    form = _form(value)
    if form is None:
        return None
    if not isinstance(form, _Form) or form.is_zero or _address(value.untyped_storage()) in storages:
        raise _NotRememberedError
    return form


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return _tensors(tuple(value.values()))
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, list | tuple) else []


def _address(storage: torch.UntypedStorage) -> int:
    return int(storage._cdata)  # noqa: SLF001 - that of the values is zero for fake tensors
