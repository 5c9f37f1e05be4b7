"""Integer arguments. `True` is not one, although Python treats it as 1."""

from __future__ import annotations

from typing import Any, Final, TypeGuard

import numpy as np

__all__ = ["check_seed", "is_whole"]

# Range of seeds that PyTorch's generators accept.
SEEDS: Final = (-(1 << 63), (1 << 64) - 1)


def is_whole(value: Any, least: int | None = None) -> TypeGuard[int]:
    """Return whether a value is an int of Python or NumPy, and at least `least`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and (least is None or value >= least)


def check_seed(seed: Any) -> int:
    """Return a seed of random numbers as an int.

    Raises
    ------
    ValueError
        If it is not an integer of at most 64 bits.
    """
    if not is_whole(seed) or not SEEDS[0] <= seed <= SEEDS[1]:
        raise ValueError(f"seed is {seed!r}; it must be an integer from {SEEDS[0]} to {SEEDS[1]}.")
    return int(seed)
