"""What processes say of themselves for a snapshot, and take from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["columns", "fields"]


def fields(state: Any, types: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Entries of a state that was read from a file.

    Parameters
    ----------
    state : dict of str to Any
    types : mapping of str to type
        Of each entry that is wanted; in a list, of the list.

    Raises
    ------
    ValueError
        If one is missing or of another type.
    """
    if not isinstance(state, dict):
        raise ValueError(f"there is a {type(state).__name__} in the place of {', '.join(types)}")
    found = {}
    for name, expected in types.items():
        value = state.get(name)
        # A bool is an int of Python's, and no number of steps.
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise ValueError(f"{name.lstrip('_')} is a {type(value).__name__}, or missing")
        found[name] = value
    return found


def columns(state: Any, *names: str) -> dict[str, Any]:
    """Arrays (n,) of float64 from a state that was read from a file, which have the same length.

    Raises
    ------
    ValueError
        If one is missing or something else.
    """
    found = fields(state, dict.fromkeys(names, np.ndarray))
    shapes = {array.shape for array in found.values()}
    if len(shapes) != 1 or len(shapes.pop()) != 1 or any(array.dtype != np.float64 for array in found.values()):
        raise ValueError(f"{', '.join(names)} are not numbers that belong together")
    return found
