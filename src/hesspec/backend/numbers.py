"""Arguments that are whole numbers: `True` is not one, though Python has it as 1."""

from __future__ import annotations

from typing import Any, Final, TypeGuard

import numpy as np

__all__ = ["check_seed", "is_whole"]

# What PyTorch's generators take.
SEEDS: Final = (-(1 << 63), (1 << 64) - 1)


def is_whole(value: Any, least: int | None = None) -> TypeGuard[int]:
    """Whether a value is an int of Python or NumPy, and no less than another one."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and (least is None or value >= least)


def check_seed(seed: Any) -> int:
    """A seed of random numbers.

    Raises
    ------
    ValueError
        If it is not a whole number of at most 64 bits.
    """
    if not is_whole(seed) or not SEEDS[0] <= seed <= SEEDS[1]:
        raise ValueError(f"seed is {seed!r}; it must be a whole number, from {SEEDS[0]} to {SEEDS[1]}.")
    return int(seed)
