"""Sweeps of which `make test` runs a few values, and `make test-all` the others as well."""

from collections.abc import Iterable
from typing import Any

import pytest


def swept(values: Iterable[Any], *few: Any) -> list[Any]:
    """All values, of which those that are not among the few are long tests; a tuple is one value for each argument."""
    values = list(values)
    assert all(value in values for value in few), few
    return [value if value in few else _long(*value if isinstance(value, tuple) else (value,)) for value in values]


def _long(*value: Any) -> Any:
    return pytest.param(*value, marks=pytest.mark.long)
