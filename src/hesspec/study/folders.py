"""Folders of a study: nothing outside them is written or removed; remains of killed processes are removed."""

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

from hesspec.spectra.study_names import STUDY_FILE

__all__ = ["RUNS", "check_there", "hold", "remove_left", "without_links"]

RUNS: Final = "runs"
# Pattern of temporary files of a study, as named by `hesspec.backend.files.atomic_path`.
LEFT: Final = re.compile(
    r"\.(?:epoch-\d{4,}(?:-(?:train|test)-[A-Za-z]+-[0-9a-f]{10})?|optimizer-\d{4,}|training|monitor|shares|diverged|code|requested|study)"
    r"-[a-z0-9_]{8}\.(?:safetensors|json|nc|yaml)"
)


def without_links(folder: Path, path: Path) -> Path:
    """Return the path of a folder of a study, created if it is missing, in which it may write and remove files.

    Parameters
    ----------
    folder : Path
        Folder of the study; it may itself be a link, as the user chose it.
    path : Path
        `folder / RUNS`, or a folder in that.

    Raises
    ------
    NotADirectoryError
        If a part of the path within the study is a symbolic link, or a file.
    FileNotFoundError
        If its parent folder does not exist.
    """
    place = folder
    for part in path.relative_to(folder).parts:
        place /= part
        with contextlib.suppress(FileExistsError):
            place.mkdir()
        if place.is_symlink():
            raise NotADirectoryError(
                f"{str(place)!r} is a symbolic link, but a study writes and removes files only in its own folder. "
                "Replace the link by the folder, or move the whole study with --out."
            )
        if not place.is_dir():
            raise NotADirectoryError(f"{str(place)!r} is a file, but a study needs a folder of this name.")
    return path


def check_there(folder: Path) -> None:
    """Raise FileNotFoundError if the folder of a running study no longer exists."""
    if not (folder / STUDY_FILE).is_file():
        raise FileNotFoundError(
            f"The folder {str(folder)!r} of this study was removed while the study was running. Run the same command "
            "to start it again."
        )


def remove_left(folder: Path) -> None:
    """Remove temporary files of killed processes in a folder to which no process is writing."""
    for file in folder.iterdir():
        if LEFT.fullmatch(file.name):
            file.unlink(missing_ok=True)


@contextmanager
def hold(path: Path, *, wait: bool) -> Iterator[bool]:
    """Acquire a file lock and yield whether it is held: False if another process holds it, unless waiting.

    The file is created if it is missing, and kept. The lock ends with the process, for whatever reason.

    Raises
    ------
    OSError
        If the file cannot be created, or is a symbolic link.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(f"{str(path)!r} is a symbolic link, but a study does not write elsewhere.") from error
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
