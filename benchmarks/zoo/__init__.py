"""Models of all kinds, each with its natural loss and data; a file for each family."""

from __future__ import annotations

import importlib
import pkgutil

from zoo.case import Case, Family

__all__ = ["every_case"]


def every_case() -> list[Case]:
    """All cases, by the order of the files' names; a file's families are what it defines of class `Family`."""
    cases: list[Case] = []
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda found: found.name):
        defined = vars(importlib.import_module(f"{__name__}.{module.name}")).values()
        cases += [case for family in defined if isinstance(family, Family) for case in family]
    names = [case.name for case in cases]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"two cases of one name: {twice}"
    return cases
