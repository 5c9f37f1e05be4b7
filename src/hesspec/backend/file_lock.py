"""File locks that end with the process that holds them."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import stat
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

__all__ = ["FileLock"]

logger = logging.getLogger(__name__)

# Errors of file systems without locks: NFS without its lock manager, Lustre mounted without them, FUSE.
WITHOUT_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
# Largest size of a note, in bytes.
NOTE_BYTES: Final = 4096


class FileLock:
    """Exclusive lock, held from construction until `release`.

    The system releases it when the process ends, for whatever reason. Forked children do not hold it. The file contains
    a note for others: who holds the lock, and what the holder writes there.

    Parameters
    ----------
    path : Path
        Lock file, created if it is missing; `release` removes it.

    Attributes
    ----------
    path : Path
    note : dict
        Note of the previous holder; empty if there was none.
    certain : bool
        False on a file system without locks, where others are not kept out.

    Raises
    ------
    BlockingIOError
        If the lock is held already; the message names the holder.
    ValueError
        If the file at `path` is not a lock file.
    OSError
        If the file cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.certain = path, True
        self._file: int | None = None
        while not self._acquire():
            pass
        _HELD.add(self)

    def _acquire(self) -> bool:
        """Lock the file at the path; return False if its holder has just removed it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(self.path, flags, 0o666)
        try:
            self.note = _note(file, self.path)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise BlockingIOError(f"{str(self.path)!r} is locked{_holder(self.note)}.") from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                os.close(file)
                raise
            logger.warning(
                "The file system of %s has no locks (%s): make sure that no other run uses this folder.",
                self.path.parent,
                error.strerror,
            )
            self.certain = False
        except BaseException:
            os.close(file)
            raise
        if current := _is_at(file, self.path):
            # Read again, as the previous holder may have written it after it was read.
            self._file, self.note = file, _note(file, self.path)
        else:
            os.close(file)
        return current

    def leave(self, note: dict[str, Any]) -> None:
        """Write the note, with the process and the machine added.

        Raises
        ------
        OSError
            If the note cannot be written.
        """
        if self._file is None:
            raise RuntimeError("The lock has been released.")
        text = json.dumps({**note, "pid": os.getpid(), "host": platform.node()}) + "\n"
        # Only the first line is read, so the file is valid between the two calls.
        os.pwrite(self._file, text.encode(), 0)
        os.truncate(self._file, len(text.encode()))

    def release(self) -> None:
        """Release the lock and remove the file; a file that cannot be removed does not block others."""
        if self._file is None:
            return
        with suppress(OSError):
            if _is_at(self._file, self.path):
                self.path.unlink()
        self.close()

    def close(self) -> None:
        """Release the lock and keep the file; a forked child, which shares the lock, only closes its handle."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one currently at a path."""
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


def _note(file: int, path: Path) -> dict[str, Any]:
    foreign = ValueError(f"{str(path)!r} is not a lock file of hesspec, which needs this name: use another folder.")
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise foreign
    text = os.pread(file, NOTE_BYTES, 0)
    if not text:
        return {}
    try:
        note = json.loads(text.splitlines()[0])
    except (ValueError, IndexError, RecursionError) as error:
        raise foreign from error
    if not isinstance(note, dict):
        raise foreign
    return note


def _holder(note: dict[str, Any]) -> str:
    pid, host = note.get("pid"), note.get("host")
    if not isinstance(pid, int):
        return ""
    return f" by process {pid}" + (f" on {host!r}" if isinstance(host, str) and host != platform.node() else "")


# A lock belongs to an open file, which forked children share: a DataLoader worker that outlives a killed process would
# keep holding it.
_HELD: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for lock in list(_HELD):
        lock.close()


os.register_at_fork(after_in_child=_let_go_in_child)
