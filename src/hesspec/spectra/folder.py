"""Result files of a folder: found and read in one way, whoever asks; those that cannot be read are noted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from hesspec.backend.text import error_line
from hesspec.spectra.record import Record, load

__all__ = ["Unread", "read_results", "result_files"]

Unread = list[tuple[Path, str]]
"""Files that could not be read, with the reason of each as one line."""


def result_files(folder: str | os.PathLike[str], *, subfolders: bool = True) -> list[Path]:
    """List all result files (`*.nc`) of a folder, and by default of its subfolders, in the order of their names.

    Names that start with a dot are files that another process is still writing. Pipes and devices are left out: opening
    them could wait forever.
    """
    found = Path(folder).rglob("*.nc") if subfolders else Path(folder).glob("*.nc")
    return sorted(path for path in found if not path.name.startswith(".") and path.is_file())


def read_results(files: Iterable[Path], unread: Unread) -> Iterator[tuple[Path, Record]]:
    """Read result files one after the other.

    Parameters
    ----------
    files : iterable of Path
    unread : list of (Path, str)
        Gets an entry for each file that cannot be read, which is skipped.

    Yields
    ------
    path : Path
    result : Record
        See `hesspec.load`.
    """
    for file in files:
        try:
            result = load(file)
        except (ValueError, OSError) as error:
            unread.append((file, error_line(error)))
            continue
        yield file, result
