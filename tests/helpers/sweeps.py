"""Sweeps of which `make test` runs a few values, and `make test-all` the others as well."""

from collections.abc import Iterable
from typing import Any

import pytest


def swept(values: Iterable[Any], *few: Any) -> list[Any]:
    """All values, of which those that are not among the few are long tests."""
    values = list(values)
    assert all(value in values for value in few), few
    return [value if value in few else pytest.param(value, marks=pytest.mark.long) for value in values]
