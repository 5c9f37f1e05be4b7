"""Arguments that are numbers, of which `True` is not one although Python treats it as 1, and arrays of numbers."""

from __future__ import annotations

from typing import Any, Final, TypeGuard

import numpy as np
import numpy.typing as npt

__all__ = ["LARGEST_EIGENVALUE", "check_counts", "check_fractions", "check_seed", "is_real", "is_whole", "real_array"]

LARGEST_EIGENVALUE: Final = 2.0**1020
"""Largest magnitude of eigenvalues in results, 1.1e307: differences and small multiples of them are finite."""

# Range of seeds that PyTorch's generators accept.
SEEDS: Final = (-(1 << 63), (1 << 64) - 1)


def is_whole(value: Any, least: int | None = None) -> TypeGuard[int]:
    """Return whether a value is an int of Python or NumPy, and at least `least`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and (least is None or value >= least)


def is_real(value: Any) -> TypeGuard[float]:
    """Return whether a value is a real number of Python or NumPy; infinity and NaN are."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def check_counts(**numbers: Any) -> None:
    """Raise ValueError if one of several arguments, given by their names, is not a positive integer."""
    for name, number in numbers.items():
        if not is_whole(number, 1):
            raise ValueError(f"{name} is {number!r}; it must be a positive integer.")


def check_fractions(**numbers: Any) -> None:
    """Raise ValueError if one of several arguments, given by their names, is not above 0 and below 1."""
    for name, number in numbers.items():
        if not 0 < number < 1:
            raise ValueError(f"{name} is {number!r}; it must be above 0 and below 1.")


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


def real_array(name: str, given: Any) -> npt.NDArray[np.float64]:
    """Return an array, or a tensor on any device, as an array of float64.

    Raises
    ------
    ValueError
        If its values are not real numbers, or one is NaN or infinite.
    """
    # Without an import of PyTorch.
    values = np.asarray(given.detach().cpu().double().numpy() if hasattr(given, "detach") else given)
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{name} has dtype {values.dtype}; it must be an array of real numbers.")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} contains NaN or infinity.")
    return values
