"""Dataclasses as state dicts, and dataclasses from the state dicts of a snapshot, with checks of their types."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from hesspec.backend.text import kind_of

__all__ = ["columns", "fields", "restored", "state_of"]

T = TypeVar("T")


def state_of(data: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name, and those of dataclasses in it; arrays, vectors and bases unchanged."""
    found = {item.name: getattr(data, item.name) for item in dataclasses.fields(data)}
    return {name: state_of(value) if dataclasses.is_dataclass(value) else value for name, value in found.items()}


def restored(kind: type[T], state: Any) -> T:
    """Return the dataclass from whose `state_of` a state was written to a file.

    Parameters
    ----------
    kind : type
        Of fields of plain types, unions with None, lists of numbers, arrays, vectors, bases, and dataclasses of these.
    state : dict of str to Any

    Raises
    ------
    ValueError
        If a field is missing or of another type.
    """
    hints = get_type_hints(kind)
    found = fields(state, {name: _classes(hint) for name, hint in hints.items()})
    for name, hint in hints.items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found[name] = restored(hint, found[name])
        elif get_origin(hint) is list:
            (expected,) = get_args(hint)
            if not all(type(entry) is expected for entry in found[name]):
                raise ValueError(f"{name} is not a list of {expected.__name__}")
    return kind(**found)


def _classes(hint: Any) -> type | tuple[type, ...]:
    """Convert an annotation to an argument of `isinstance`."""
    if dataclasses.is_dataclass(hint):
        return dict
    if isinstance(hint, types.UnionType):
        return tuple(get_origin(part) or part for part in get_args(hint))
    plain: type = get_origin(hint) or hint
    return plain


def fields(state: Any, types: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Return entries of a state that was read from a file, with checked types.

    Parameters
    ----------
    state : dict of str to Any
    types : mapping of str to type
        Type of each requested entry; for a list, that of the list.

    Raises
    ------
    ValueError
        If one is missing or of another type.
    """
    if not isinstance(state, dict):
        raise ValueError(f"there is {kind_of(state)} instead of {', '.join(types)}")
    found = {}
    for name, expected in types.items():
        value = state.get(name)
        # A bool is an int in Python, but not a number of steps.
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise ValueError(f"{name.lstrip('_')} is {kind_of(value)}, or missing")
        found[name] = value
    return found


def columns(state: Any, *names: str) -> dict[str, Any]:
    """Return float64 arrays (n,) of equal length from a state that was read from a file.

    Raises
    ------
    ValueError
        If one is missing or invalid.
    """
    found = fields(state, dict.fromkeys(names, np.ndarray))
    shapes = {array.shape for array in found.values()}
    if len(shapes) != 1 or len(shapes.pop()) != 1 or any(array.dtype != np.float64 for array in found.values()):
        raise ValueError(f"{', '.join(names)} are not arrays of numbers of the same length")
    return found
