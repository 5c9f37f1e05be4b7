"""Atomic writing of files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hesspec.backend.text import in_words

__all__ = [
    "DIGEST_DIGITS",
    "LONGEST_NAME",
    "atomic_path",
    "content_of",
    "digest_of",
    "refuse_special_files",
    "safe_name",
    "write_bytes",
    "writing_failed",
]

DIGEST_DIGITS: Final = 16
"""Hexadecimal digits of a digest that tells contents apart."""

# Largest length of a file name in bytes on Linux, and length that a temporary name adds to stem and suffix.
LONGEST_NAME: Final = 255
AROUND: Final = len(".-12345678")

REASONS: Final = {
    errno.ENOSPC: "there is no space left",
    errno.EDQUOT: "your quota of disk space is used up",
    errno.EFBIG: "it exceeds the largest file size (see ulimit -f)",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "the folder does not exist",
    errno.ENOTDIR: "part of its path is a file",
    errno.EEXIST: "part of its path is a file",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EACCES: "it may not be written to",
    errno.EPERM: "it may not be written to",
}
CHUNK: Final = 1 << 20
# Errors that are unrelated to free space.
OTHER_THAN_ROOM: Final = REASONS.keys() - {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def safe_name(name: str) -> str:
    """Convert a name to part of a file name, by replacing what is not a letter, a digit or one of ._+- in ASCII.

    Examples
    --------
    >>> safe_name("timm:vit_tiny/a b")
    'timm_vit_tiny_a_b'
    """
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", name)


def digest_of(files: Mapping[str, Path]) -> str:
    """Compute a digest of files by their names and contents; empty if there are none.

    Pipes, devices, folders and links to nothing do not count as files.
    """
    regular = {name: file for name, file in sorted(files.items()) if file.is_file()}
    found = hashlib.sha256()
    for name, file in regular.items():
        content = hashlib.sha256()
        for chunk in _chunks(file):
            content.update(chunk)
        found.update(f"{name}\0".encode("utf-8", "surrogateescape"))
        found.update(content.digest())
    return found.hexdigest()[:DIGEST_DIGITS] if regular else ""


def content_of(file: Path) -> bytes:
    """Read a regular file: as many bytes as the system states, as those of `/proc` have no end or make readers wait."""
    return b"".join(_chunks(file))


def _chunks(file: Path) -> Iterator[bytes]:
    left = file.stat().st_size
    if not left:
        return
    with file.open("rb") as content:
        while left > 0 and (chunk := content.read(min(left, CHUNK))):
            left -= len(chunk)
            yield chunk


def refuse_special_files(folder: Path) -> None:
    """Raise ValueError if a folder has pipes, devices or sockets, which may block a library that reads it."""
    for entry in folder.iterdir():
        if entry.exists() and not entry.is_file() and not entry.is_dir():
            raise ValueError(
                f"{str(entry)!r} is not a file but a pipe, a device or a socket, and reading it may never end. Remove "
                "it."
            )


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = True, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, which is renamed to `path` if the block ends without an error.

    The folder is created if it is missing. After an error or Ctrl-C in the block, the temporary file is removed and an
    existing file at `path` is unchanged. The temporary name keeps the suffix of `path`, as writers choose formats by
    it.

    Parameters
    ----------
    path : path
        Name of the file.
    overwrite : bool
        Whether to replace a file that exists when the block ends. If not, and two processes write the same file, one of
        them raises the error.
    size : int, optional
        Size of the file in bytes, for error messages.

    Raises
    ------
    FileExistsError
        If the file exists and `overwrite` is False.
    OSError
        If the file cannot be written, in the block or around it; the message states the reason and the free space.
    """
    target = Path(path)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(target)
        yield temporary
        # mkstemp creates private files; results get the permissions of ordinary files of the user.
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
            # On a file system that has become read-only it remains; the error that ended the block is what matters.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], content: bytes | memoryview, *, overwrite: bool = True) -> None:
    """Write a file atomically; see `atomic_path` for folder, errors and `overwrite`."""
    with atomic_path(path, overwrite=overwrite, size=len(content)) as temporary:
        temporary.write_bytes(content)


def writing_failed(target: Path, number: int, size: int | None = None) -> OSError:
    """Return the error for a file that could not be written, with a sentence as its message.

    Parameters
    ----------
    target : Path
        Name of the file.
    number : int
        System error number, as in `errno`.
    size : int, optional
        Size of the file in bytes.

    Returns
    -------
    OSError
        Error of the subclass that Python defines for this number.
    """
    if number == errno.EEXIST and os.path.lexists(target):
        sentence = f"The file {str(target)!r} was written by another process meanwhile, and was not replaced."
    else:
        needed = "" if size is None else f"The file needs {in_words(size)}"
        room = "; ".join(filter(None, [needed, "" if number in OTHER_THAN_ROOM else _free(target.parent)]))
        kept = " The existing file of this name is unchanged." if os.path.lexists(target) else ""
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
    """Rename a file, unless the name exists; the system decides which of several processes is first."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}:
            raise
        # A file system without hard links: the name is reserved first, by an empty file that is then replaced.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        temporary.replace(target)
