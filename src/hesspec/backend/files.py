"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hesspec.backend.text import in_words

__all__ = ["atomic_path", "write_bytes", "writing_failed"]

# Of a file's name, in bytes, on the file systems of Linux; and what a temporary name has besides stem and suffix.
LONGEST_NAME: Final = 255
AROUND: Final = len(".-12345678")

REASONS: Final = {
    errno.ENOSPC: "there is no room for it",
    errno.EDQUOT: "your quota of disk space is used up",
    errno.EFBIG: "files may not become so large here (see ulimit -f)",
    errno.EROFS: "the file system can only be read",
    errno.ENOENT: "the folder is gone",
    errno.ENOTDIR: "part of its path is a file",
    errno.EEXIST: "part of its path is a file",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EACCES: "it may not be written to",
    errno.EPERM: "it may not be written to",
}
# Errors that say nothing of the room that there is.
OTHER_THAN_ROOM: Final = REASONS.keys() - {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = True, size: int | None = None) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`, and rename it to `path` when the block ends without an error.

    The folder is made if it is missing. After an error or Ctrl-C in the block the temporary file is removed and an
    earlier file at `path` is unchanged. The temporary name keeps the suffix of `path`, as writers choose formats by it.

    Parameters
    ----------
    path : path
    overwrite : bool
        Whether a file that is there when the block ends is replaced. If not, of two processes that write the same file
        one gets the error.
    size : int, optional
        Bytes that the file needs, for the message of an error.

    Raises
    ------
    FileExistsError
        If there is such a file, and it is not to be replaced.
    OSError
        If the file cannot be written, in the block or around it; it says why, and what is free.
    """
    target = Path(path)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(target)
        yield temporary
        # mkstemp makes the file private; a result is as readable as any other file that the user makes.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(target)
        else:
            _put_new(temporary, target)
    except OSError as error:
        if error.errno is None:  # a sentence already
            raise
        raise writing_failed(target, error.errno, size) from error
    finally:
        if temporary is not None:
            # On a file system that has become read-only it stays; what ended the block is what matters.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes | memoryview, *, overwrite: bool = True) -> None:
    """Write a file, whole or not at all; folder, errors and `overwrite` as of `atomic_path`."""
    with atomic_path(path, overwrite=overwrite, size=len(content)) as temporary:
        temporary.write_bytes(content)


def writing_failed(target: Path, number: int, size: int | None = None) -> OSError:
    """The error of a file that could not be written, with a sentence as its text.

    Parameters
    ----------
    target : Path
    number : int
        The system's number of the error, as in `errno`.
    size : int, optional
        Bytes that the file needs.

    Returns
    -------
    OSError
        Of the subclass that Python has for this number.
    """
    if number == errno.EEXIST and os.path.lexists(target):
        sentence = (
            f"There is a file {str(target)!r} by now, which another process has written, and it was not replaced."
        )
    else:
        needed = "" if size is None else f"The file needs {in_words(size)}"
        room = "; ".join(filter(None, [needed, "" if number in OTHER_THAN_ROOM else _free(target.parent)]))
        kept = " The file of this name that was there before is unchanged." if os.path.lexists(target) else ""
        sentence = (
            f"The file {target.name!r} cannot be written to the folder {str(target.parent)!r}: "
            f"{REASONS.get(number, os.strerror(number).lower())}.{f' {room}.' if room else ''}{kept}"
        )
    kind = type(OSError(number, ""))
    failure = kind(sentence)
    failure.errno = number
    return failure


def _free(folder: Path) -> str:
    try:
        return f"{in_words(shutil.disk_usage(folder).free)} are free there"
    except OSError:
        return ""


def _temporary(target: Path) -> Path:
    room = LONGEST_NAME - AROUND - len(os.fsencode(target.suffix))
    stem = os.fsdecode(os.fsencode(target.stem)[: max(room, 0)])
    handle, name = tempfile.mkstemp(prefix=f".{stem}-", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    return Path(name)


def _put_new(temporary: Path, target: Path) -> None:
    """Give a file its name, unless there is one of this name; which of several processes is first, the system says."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
            raise
        # A file system without hard links: the name is taken first, by an empty file that the whole one replaces.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        temporary.replace(target)
