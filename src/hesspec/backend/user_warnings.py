"""Warnings that name the line of the user's own code, however deep in hesspec they are found."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn"]

# Whose frames are not the user's: those of this package, and those of functions that it is called through.
PASSED_OVER = ("hesspec", "contextlib", "functools", "unittest")


def warn(words: str) -> None:
    """Issue a UserWarning at the innermost line that is neither of hesspec nor of the standard library's wrappers.

    A fixed `stacklevel` would be wrong as soon as a function is called from two places.

    Parameters
    ----------
    words : str
    """
    frame, level = sys._getframe(1), 2  # noqa: SLF001 - `skip_file_prefixes` of Python 3.12 does the same
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in PASSED_OVER:
        frame, level = frame.f_back, level + 1
    warnings.warn(words, stacklevel=level)
