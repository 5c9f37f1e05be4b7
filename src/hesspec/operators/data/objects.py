"""Content of arbitrary objects: the tensors, arrays and constants from which a copy would be made."""

from __future__ import annotations

import copyreg
import enum
import io
import pickle
import types
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["CONSTANTS", "Content", "content_of", "rebuilt"]

CONSTANTS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    torch.dtype,
    torch.device,
    torch.Size,
    np.generic,
    enum.Enum,
)
"""Types that are fully described by their values."""

NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType)


class Content(NamedTuple):
    """Content of an object.

    Attributes
    ----------
    tensors : list of Tensor
        Tensors, each once, in order of occurrence.
    words : tuple
        Everything else that is known, constants by value and arrays by bytes: equal for objects of equal content, also
        in another process.
    """

    tensors: list[Tensor]
    words: tuple[Hashable, ...]


def content_of(item: Any) -> Content:
    """Return the content of an object, from its members or from what `copy` and `pickle` use.

    State that they do not see (memory of another language, a file, a generator's state) is not included.
    """
    search = _Search()
    search.visit(item)
    return Content(search.tensors, tuple(search.words))


def rebuilt(item: Any, replaced: Mapping[int, Tensor]) -> Any:
    """Rebuild an object from its pickled state, with other tensors in it.

    Only pickles written by this function are read.

    Parameters
    ----------
    item
        Object to rebuild.
    replaced : mapping of int to Tensor
        New tensors, by the id of those that they replace.

    Raises
    ------
    Exception
        Any error of an object that cannot be pickled.
    """
    written = io.BytesIO()
    _Pickler(written, replaced).dump(item)
    written.seek(0)
    return _Unpickler(written, replaced).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, replaced: Mapping[int, Tensor]) -> None:
        super().__init__(file)
        self._replaced = replaced

    def persistent_id(self, item: Any) -> int | None:
        return id(item) if isinstance(item, Tensor) and id(item) in self._replaced else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, replaced: Mapping[int, Tensor]) -> None:
        super().__init__(file)
        self._replaced = replaced

    def persistent_load(self, identity: Any) -> Tensor:
        return self._replaced[identity]


class _Search:
    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.words: list[Hashable] = []
        # Stored with the objects, some of which are temporary, so that ids are not reused meanwhile.
        self._seen: dict[int, tuple[int, Any]] = {}

    def visit(self, item: Any) -> None:
        if isinstance(item, CONSTANTS):
            self.words.append((type(item).__qualname__, item.tobytes() if isinstance(item, np.generic) else repr(item)))
            return
        if isinstance(item, NAMED):
            self.words.append(f"{getattr(item, '__module__', '')}.{getattr(item, '__qualname__', item.__name__)}")
            return
        if id(item) in self._seen:
            self.words.append(("again", self._seen[id(item)][0]))
            return
        self._seen[id(item)] = len(self._seen), item
        self.words.append(type(item).__qualname__)
        if isinstance(item, Tensor):
            self.tensors.append(item)
        elif isinstance(item, np.ndarray) and item.dtype != object:
            self.words.append((str(item.dtype), item.shape, item.tobytes()))
        elif type(item) in (list, tuple):
            self._all(item)
        elif type(item) is dict:
            self._pairs(item)
        elif isinstance(item, set | frozenset):
            # In an order that does not depend on the process.
            self._all(sorted(item, key=lambda member: (type(member).__qualname__, repr(member))))
        else:
            self._object(item)

    def _all(self, members: Any) -> None:
        members = list(members)
        self.words.append(len(members))
        for member in members:
            self.visit(member)

    def _pairs(self, mapping: Mapping[Any, Any]) -> None:
        self._all(member for pair in mapping.items() for member in pair)

    def _object(self, item: Any) -> None:
        reducer = copyreg.dispatch_table.get(type(item))
        try:
            reduced = reducer(item) if reducer else item.__reduce_ex__(4)
        except Exception as error:  # noqa: BLE001 - an object that cannot be pickled may raise anything
            # Only its attributes are available then.
            self.words.append(type(error).__name__)
            self._pairs(getattr(item, "__dict__", {}))
            return
        if isinstance(reduced, str):
            self.words.append(reduced)
            return
        parts: tuple[Any, ...] = reduced
        for part in parts[:3]:
            self.visit(part)
        self._all(parts[3] if len(parts) > 3 and parts[3] is not None else ())
        self._all(member for pair in (parts[4] if len(parts) > 4 and parts[4] else ()) for member in pair)
