"""Reading of the state of processes from a snapshot, with checks of its types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["columns", "fields"]


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
        raise ValueError(f"there is a {type(state).__name__} instead of {', '.join(types)}")
    found = {}
    for name, expected in types.items():
        value = state.get(name)
        # A bool is an int in Python, but not a number of steps.
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise ValueError(f"{name.lstrip('_')} is a {type(value).__name__}, or missing")
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
