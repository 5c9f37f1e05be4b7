"""Folders of a study: nothing outside of them is written or removed, and what a killed process left is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["RUNS", "STUDY_FILE", "check_there", "hold", "remove_left", "without_links"]

RUNS: Final = "runs"
STUDY_FILE: Final = "study.yaml"
# Temporary files as `hesspec.backend.files.atomic_path` names them, of what a study writes.
LEFT: Final = re.compile(
    r"\.(?:epoch-\d{4,}(?:-(?:train|test)-[A-Za-z]+-[0-9a-f]{10})?|optimizer-\d{4,}|training|diverged|code|study)"
    r"-[a-z0-9_]{8}\.(?:safetensors|json|nc|yaml)"
)


def without_links(folder: Path, path: Path) -> Path:
    """The path of a folder of a study, made if it is missing, in which a study may write and remove.

    Parameters
    ----------
    folder : Path
        Of the study; it may be a link itself, as the user has named it.
    path : Path
        `folder / RUNS`, or a folder in that.

    Raises
    ------
    NotADirectoryError
        If a part of the path within the study is a symbolic link, or a file.
    FileNotFoundError
        If the folder that it is in is not there.
    """
    place = folder
    for part in path.relative_to(folder).parts:
        place /= part
        with contextlib.suppress(FileExistsError):
            place.mkdir()
        if place.is_symlink():
            raise NotADirectoryError(
                f"{str(place)!r} is a symbolic link, and a study writes and removes nothing outside of its own folder. "
                "Put the folder itself there, or give the whole study another place with --out."
            )
        if not place.is_dir():
            raise NotADirectoryError(f"{str(place)!r} is a file, and a study needs a folder of this name.")
    return path


def check_there(folder: Path) -> None:
    """Raise FileNotFoundError where the folder of a running study is there no longer."""
    if not (folder / STUDY_FILE).is_file():
        raise FileNotFoundError(
            f"The folder {str(folder)!r} of this study was removed while the study was running. The same command "
            "begins it again."
        )


def remove_left(folder: Path) -> None:
    """Remove temporary files in a folder that no process writes to; whoever wrote them was killed."""
    for file in folder.iterdir():
        if LEFT.fullmatch(file.name):
            file.unlink(missing_ok=True)


@contextmanager
def hold(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a file's lock, and give whether it is held: not where another process holds it, unless this one waits.

    The file is made if it is missing, and left. The lock ends with the process, however that ends.

    Raises
    ------
    OSError
        If the file cannot be made, or is a symbolic link.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(f"{str(path)!r} is a symbolic link, and a study does not write to other places.") from error
        raise
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        yield False
        return
    try:
        yield True
    finally:
        os.close(handle)
