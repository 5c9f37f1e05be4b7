"""Tensors that a model or a loss keeps between calls elsewhere than in its modules.

Such are entries of a global dictionary or list, of one in a closure or a class, of `functools.lru_cache`. A pass of
hesspec would leave its own tensors there: at other parameters, in another dtype, with a graph, without values where it
is traced. Later passes would compute with them, as would the user's. They are found by weak references to all that
PyTorch returns in a first pass, and what holds them is restored after each pass.
"""

from __future__ import annotations

import functools
import gc
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hesspec.operators.model.function_mode import FunctionMode

__all__ = ["Holder", "Results"]

# Attributes that are tensors which were there before.
EXISTING = tuple(vars(torch._C.TensorBase)[name].__get__ for name in ("grad", "_base"))  # noqa: SLF001


class Results(FunctionMode):
    """Remembers, by weak references, all tensors that functions of PyTorch return within this context."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[weakref.ref[Tensor]] = []

    def call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call a function, and remember its results."""
        found = func(*args, **kwargs)
        for part in found if isinstance(found, list | tuple) else (found,):
            # A function that has nothing to do, or works in place, returns its argument.
            if isinstance(part, Tensor) and func not in EXISTING and all(part is not given for given in args):
                self._seen.append(weakref.ref(part))
        return found

    def alive(self) -> list[Tensor]:
        """Return those that something still holds, but for cycles of references that nothing else does."""
        if not any(reference() is not None for reference in self._seen):
            return []
        # Of young objects, as these are.
        gc.collect(1)
        return [tensor for tensor in (reference() for reference in self._seen) if tensor is not None]


class Holder:
    """Something that holds tensors, and its content without them.

    Parameters
    ----------
    words : str
        What it is, for messages.
    restore : callable
        Puts its content back.
    """

    def __init__(self, words: str, restore: Callable[[], None]) -> None:
        self.words, self.restore = words, restore

    @staticmethod
    def of(tensors: list[Tensor]) -> list[Holder]:
        """Remove tensors from everything that holds them but for this list, and return that."""
        return _of(tensors) if tensors else []


def _of(objects: list[Any]) -> list[Holder]:
    ids, found = set(map(id, objects)), []
    immutable: list[Any] = []
    for holder in _referrers(objects, objects):
        if isinstance(holder, tuple | frozenset):
            immutable.append(holder)
        elif isinstance(holder, dict):
            found.append(_of_dictionary(holder, ids))
        elif isinstance(holder, list):
            kept = [value for value in holder if id(value) not in ids]
            found.append(Holder("a list", functools.partial(holder.__setitem__, slice(None), kept)))
        elif isinstance(holder, set):
            found.append(_of_set(holder, {value for value in holder if id(value) not in ids}))
        elif isinstance(holder, types.CellType):
            found.append(Holder("a variable of a closure", functools.partial(setattr, holder, "cell_contents", None)))
        elif isinstance(holder, functools._lru_cache_wrapper):  # noqa: SLF001 - the class of what lru_cache returns
            found.append(Holder(f"the cache of {holder.__name__}", holder.cache_clear))
        elif isinstance(getattr(holder, "__dict__", None), dict):
            found.append(_of_namespace(holder, vars(holder), ids))
    for each in found:
        each.restore()
    return found + (_of(immutable) if immutable else [])


def _of_dictionary(holder: dict[Any, Any], ids: set[int]) -> Holder:
    owner = next((one for one in _referrers([holder], []) if _is_namespace(one, holder)), None)
    if owner is not None:
        return _of_namespace(owner, holder, ids)
    kept = {key: value for key, value in holder.items() if id(value) not in ids}

    def restore() -> None:
        # Not by clearing it first, as another thread may read it.
        for key in [key for key in holder if key not in kept]:
            del holder[key]
        holder.update(kept)

    return Holder("a dictionary", restore)


def _of_set(holder: set[Any], kept: set[Any]) -> Holder:
    return Holder("a set", lambda: holder.intersection_update(kept))


def _of_namespace(owner: Any, variables: Mapping[str, Any], ids: set[int]) -> Holder:
    """Variables of a module, a class or an object, which are None where nothing has been kept in them yet."""
    names = [name for name, value in variables.items() if id(value) in ids]

    def restore() -> None:
        for name in names:
            setattr(owner, name, None)

    words = (
        f"variables of module {owner.__name__}"
        if isinstance(owner, types.ModuleType)
        else f"class {owner.__name__}"
        if isinstance(owner, type)
        else f"an object of class {type(owner).__name__}"
    )
    return Holder(words, restore)


def _is_namespace(owner: Any, holder: dict[Any, Any]) -> bool:
    if isinstance(owner, type):
        return holder.get("__module__") == owner.__module__ and dict(vars(owner)) == holder
    return getattr(owner, "__dict__", None) is holder


def _referrers(objects: list[Any], own: Any) -> list[Any]:
    """Objects that refer to any of these, but for a list of ours and frames."""
    # Frozen objects are not searched.
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    try:
        found = gc.get_referrers(*objects)
    finally:
        if frozen:
            gc.freeze()
    return [holder for holder in found if holder is not own and not isinstance(holder, types.FrameType)]
