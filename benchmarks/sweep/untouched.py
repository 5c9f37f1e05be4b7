"""Whether a model, its loss, its data and the process are what they were."""

from __future__ import annotations

import hashlib
import random
import types
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["Photograph", "changes", "photograph", "unexplained"]

Photograph = dict[str, Any]

VALUES = (str, bytes, int, float, bool, complex, type(None), torch.dtype, torch.device, torch.Size, type(Ellipsis))
# Code, and what keeps state of its own that no result depends on, is told by identity.
BY_IDENTITY = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, torch.Generator)
OWN_STATE = ("torch._", "torch.jit", "torch.fx", "torch.export", "threading", "logging")


def photograph(**objects: Any) -> Photograph:
    """All that can be seen of objects: each tensor by its bits, each place in containers and modules by its path."""
    seen: dict[int, str] = {}
    keep: list[Any] = []
    picture: Photograph = {}
    for name, thing in objects.items():
        _look(thing, name, picture, seen, keep)
    picture["the random state of torch"] = _digest(torch.get_rng_state())
    picture["the random state of NumPy"] = hashlib.blake2b(np.random.get_state()[1].tobytes()).hexdigest()  # noqa: NPY002 - the global state is what is looked at
    picture["the random state of random"] = hash(random.getstate())
    picture["the default dtype"] = str(torch.get_default_dtype())
    picture["gradients enabled"] = torch.is_grad_enabled()
    picture["inference mode"] = torch.is_inference_mode_enabled()
    picture["the fast path of attention"] = torch.backends.mha.get_fastpath_enabled()
    picture["kernels of attention"] = (
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
    )
    return picture


def changes(before: Photograph, after: Photograph) -> dict[str, tuple[Any, str]]:
    """By path what is there now where that is another than before, and a sentence on it."""
    found = {}
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path, "nothing"), after.get(path, "nothing")
        if _is_fake(new):
            found[path] = new, f"{path} holds a FakeTensor"
        elif old != new:
            found[path] = new, f"{path} was {_short(old)}, is {_short(new)}"
    return found


def unexplained(found: Mapping[str, tuple[Any, str]], once: Photograph) -> list[str]:
    """Sentences on changes that are not those which calling the model once makes, as in a photograph after it."""
    return [sentence for path, (new, sentence) in found.items() if _is_fake(new) or not _same(once.get(path), new)]


def _same(first: Any, second: Any) -> bool:
    """Whether two entries are equal; of tensors that are neither parameters nor buffers, by their bits alone."""
    if isinstance(first, tuple) and isinstance(second, tuple) and first[:1] == second[:1] == ("Tensor",):
        return first[:3] + first[4:] == second[:3] + second[4:]
    return first == second


def _is_fake(value: Any) -> bool:
    return isinstance(value, tuple) and value[:1] == ("fake",)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _digest(tensor: Tensor) -> str:
    try:
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        return hashlib.blake2b(flat.numpy(), digest_size=8).hexdigest()
    except (RuntimeError, TypeError, NotImplementedError):  # layouts without bytes of their own: sparse, nested
        return hashlib.blake2b(repr(tensor).encode(), digest_size=8).hexdigest()


def _of_tensor(tensor: Tensor) -> tuple[Any, ...]:
    if isinstance(tensor, FakeTensor):
        return ("fake", str(tensor.dtype))
    if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
        return ("uninitialised",)
    grad = tensor.grad if tensor.is_leaf else None
    return (
        type(tensor).__name__,
        str(tensor.dtype),
        tuple(tensor.shape) if tensor.layout == torch.strided else str(tensor.layout),
        tensor.requires_grad,
        _digest(tensor),
        None if grad is None else _digest(grad),
    )


def _look(thing: Any, path: str, picture: Photograph, seen: dict[int, str], keep: list[Any]) -> None:
    if isinstance(thing, VALUES):
        picture[path] = thing if not isinstance(thing, float) or thing == thing else "nan"  # noqa: PLR0124 - NaN differs from itself
        return
    if isinstance(thing, weakref.ref):
        _look(thing(), f"{path}()", picture, seen, keep)
        return
    if id(thing) in seen:
        picture[path] = f"the same as {seen[id(thing)]}"
        return
    seen[id(thing)] = path
    keep.append(thing)
    if isinstance(thing, Tensor):
        picture[path] = _of_tensor(thing)
        if not isinstance(thing, FakeTensor):
            _look_inside(vars(thing), path, picture, seen, keep)
    elif isinstance(thing, np.ndarray):
        picture[path] = hashlib.blake2b(np.ascontiguousarray(thing).tobytes(), digest_size=8).hexdigest()
    elif isinstance(thing, BY_IDENTITY):
        picture[path] = f"{getattr(thing, '__name__', type(thing).__name__)} at {id(thing)}"
        # What a function closes over is its own to change; it is looked at for fake tensors alone.
        inside: Photograph = {}
        for index, cell in enumerate(getattr(thing, "__closure__", None) or ()):
            _look(cell.cell_contents, f"{path}.<closure {index}>", inside, seen, keep)
        picture.update({place: value for place, value in inside.items() if _is_fake(value)})
    elif isinstance(thing, Mapping):
        picture[path] = f"{type(thing).__name__} with {[str(key) for key in thing]}"
        _look_inside({str(key): value for key, value in thing.items()}, path, picture, seen, keep)
    elif isinstance(thing, (list, tuple, set, frozenset)):
        picture[path] = f"{type(thing).__name__} of {len(thing)}"
        _look_inside({str(i): value for i, value in enumerate(thing)}, path, picture, seen, keep)
    else:
        picture[path] = f"{type(thing).__name__}" if isinstance(thing, nn.Module) else f"{type(thing).__name__} at {id(thing)}"
        if not type(thing).__module__.startswith(OWN_STATE) and hasattr(thing, "__dict__"):
            _look_inside(vars(thing), path, picture, seen, keep)


def _look_inside(
    children: Mapping[str, Any], path: str, picture: Photograph, seen: dict[int, str], keep: list[Any]
) -> None:
    for name, child in list(children.items()):
        _look(child, f"{path}.{name}", picture, seen, keep)
