"""Whether a model, its loss, its data and the process are what they were."""

from __future__ import annotations

import hashlib
import math
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
    camera = _Camera()
    for name, thing in objects.items():
        camera.look(thing, name)
    picture = camera.picture
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


class _Camera:
    """Walks through objects, each once, and notes what it sees by path."""

    def __init__(self) -> None:
        self.picture: Photograph = {}
        self._seen: dict[int, str] = {}
        self._keep: list[Any] = []

    def look(self, thing: Any, path: str) -> None:
        """Note an object and all that it holds."""
        if isinstance(thing, weakref.ref):
            self.look(thing(), f"{path}()")
        elif isinstance(thing, VALUES):
            self.picture[path] = "nan" if isinstance(thing, float) and math.isnan(thing) else thing
        elif id(thing) in self._seen:
            self.picture[path] = f"the same as {self._seen[id(thing)]}"
        else:
            self._seen[id(thing)] = path
            # An object that is gone could leave its id to another one.
            self._keep.append(thing)
            self.picture[path], children = _seen(thing)
            for name, child in children.items():
                self.look(child, f"{path}.{name}")
            if isinstance(thing, types.FunctionType):
                self._look_into_closure(thing, path)

    def _look_into_closure(self, function: types.FunctionType, path: str) -> None:
        """What a function closes over is its own to change; it is looked at for fake tensors alone."""
        outside, self.picture = self.picture, {}
        for index, cell in enumerate(function.__closure__ or ()):
            self.look(cell.cell_contents, f"{path}.<closure {index}>")
        self.picture = outside | {place: value for place, value in self.picture.items() if _is_fake(value)}


def _seen(thing: Any) -> tuple[Any, dict[str, Any]]:
    """What is noted of an object itself, and what it holds, by name."""
    kind = type(thing).__name__
    if isinstance(thing, Tensor):
        return _of_tensor(thing), {} if isinstance(thing, FakeTensor) else dict(vars(thing))
    if isinstance(thing, np.ndarray):
        return hashlib.blake2b(np.ascontiguousarray(thing).tobytes(), digest_size=8).hexdigest(), {}
    if isinstance(thing, BY_IDENTITY):
        return f"{getattr(thing, '__name__', kind)} at {id(thing)}", {}
    if isinstance(thing, Mapping):
        return f"{kind} with {[str(key) for key in thing]}", {str(key): value for key, value in thing.items()}
    if isinstance(thing, list | tuple | set | frozenset):
        return f"{kind} of {len(thing)}", {str(i): value for i, value in enumerate(thing)}
    inside = hasattr(thing, "__dict__") and not type(thing).__module__.startswith(OWN_STATE)
    return kind if isinstance(thing, nn.Module) else f"{kind} at {id(thing)}", dict(vars(thing)) if inside else {}
