"""Checked access to the fields of a dataset: types and shapes that a result cannot have are rejected."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

__all__ = ["array", "attributes_as_text", "attributes_of", "flag", "integer", "real", "refuse_unless", "text", "texts"]

Attributes = dict[str, str | int | float | bool]

# Integers that a file or a page can hold.
LARGEST: Final = 2**64


def refuse_unless(condition: object, sentence: str) -> None:
    """Raise ValueError with this sentence unless the condition is true."""
    if not condition:
        raise ValueError(sentence)


def array(dataset: xr.Dataset, name: str, dtype: type[np.generic], ndim: int = 1) -> npt.NDArray[Any]:
    """Return a variable, checked for its type and number of dimensions.

    Raises
    ------
    ValueError
        If the type or the number of dimensions differs, or the variable does not exist.
    """
    refuse_unless(name in dataset, f"It has no variable {name!r}.")
    values = dataset[name].to_numpy()
    refuse_unless(
        values.dtype == dtype and values.ndim == ndim,
        f"Its variable {name!r} has type {values.dtype} and shape {values.shape}, but should have type "
        f"{np.dtype(dtype)} and {ndim} dimension{'' if ndim == 1 else 's'}.",
    )
    return values


def texts(dataset: xr.Dataset, name: str) -> npt.NDArray[np.str_]:
    """Return a one-dimensional variable of strings; raises the errors of `array`."""
    refuse_unless(name in dataset, f"It has no variable {name!r}.")
    values = dataset[name].to_numpy()
    # An empty array may have any type: see `hesspec.backend.netcdf.sealed`.
    known = not values.size or all(isinstance(value, str) for value in values.flat)
    refuse_unless(known and values.ndim == 1, f"Its variable {name!r} is not a list of texts.")
    return np.asarray(values, dtype=str)


def _attribute(dataset: xr.Dataset, name: str) -> object:
    refuse_unless(name in dataset.attrs, f"It has no attribute {name!r}.")
    value = dataset.attrs[name]
    return value.item() if isinstance(value, np.generic) else value


def integer(dataset: xr.Dataset, name: str) -> int:
    """Return an attribute that is a nonnegative integer; raises ValueError otherwise."""
    value = _attribute(dataset, name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST:
        raise ValueError(f"Its {name!r} is {value!r}, but should be a nonnegative integer.")
    return value


def real(dataset: xr.Dataset, name: str) -> float:
    """Return an attribute that is a finite number; raises ValueError otherwise."""
    value = _attribute(dataset, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"Its {name!r} is {value!r}, but should be a finite number.")
    return float(value)


def flag(dataset: xr.Dataset, name: str) -> bool:
    """Return an attribute that is 0 or 1 as a boolean; raises ValueError otherwise."""
    value = _attribute(dataset, name)
    refuse_unless(value in (0, 1), f"Its {name!r} is {value!r}, but should be 0 or 1.")
    return bool(value)


def text(dataset: xr.Dataset, name: str) -> str:
    """Return an attribute that is a string; raises ValueError otherwise."""
    value = _attribute(dataset, name)
    if not isinstance(value, str):
        raise ValueError(f"Its {name!r} is {value!r}, but should be a text.")
    return value


def attributes_as_text(attributes: Mapping[str, Any]) -> str:
    """Convert the `attributes` of a result to JSON.

    Raises
    ------
    ValueError
        If a value is not a string, a number or a boolean.
    """
    plain = {str(name): value.item() if isinstance(value, np.generic) else value for name, value in attributes.items()}
    _check_attributes(plain)
    return json.dumps(plain)


def attributes_of(dataset: xr.Dataset) -> Attributes:
    """Read the attribute `attributes`, the inverse of `attributes_as_text`; raises ValueError if it is not valid."""
    try:
        found: Any = json.loads(text(dataset, "attributes"))
    except RecursionError as error:
        raise ValueError("Its attributes are nested too deeply.") from error
    if not isinstance(found, dict):
        raise ValueError("Its attributes are not a mapping of names to values.")
    _check_attributes(found)
    return found


def _check_attributes(attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        known = isinstance(value, str | bool | float) or (isinstance(value, int) and abs(value) < LARGEST)
        refuse_unless(
            known,
            f"Its attribute {name!r} is {value!r}, of type {type(value).__name__}; attributes are texts, numbers and "
            "truth values.",
        )
