"""Libraries of others, which are optional dependencies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["required"]


@contextmanager
def required(library: str, package: str) -> Iterator[None]:
    """Say how to install a library if an import within this context does not find it.

    Raises
    ------
    ModuleNotFoundError
        If the library is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != library:
            raise
        raise ModuleNotFoundError(
            f"{library} is not installed, which this part of hesspec works with: pip install '{package}'.",
            name=library,
        ) from error
