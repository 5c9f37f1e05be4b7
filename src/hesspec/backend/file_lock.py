"""A lock on a file, which ends with the process that holds it."""

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

# What file systems without locks answer: NFS without its lock manager, Lustre mounted without them, FUSE.
WITHOUT_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
# Bytes of a note, at most.
NOTE_BYTES: Final = 4096


class FileLock:
    """An exclusive lock, held from construction until `release`.

    The system drops it when the process ends, however that happens. Children that the process forks do not hold it.
    The file carries a note for whoever finds it: who holds the lock, and what the holder leaves there.

    Parameters
    ----------
    path : Path
        Made if it is missing; `release` removes it.

    Attributes
    ----------
    path : Path
    note : dict
        As the holder before left it; empty where there was none.
    certain : bool
        False on a file system without locks, where nothing keeps others out.

    Raises
    ------
    BlockingIOError
        If it is held already; the message names the holder.
    ValueError
        If the file at `path` is not such a file.
    OSError
        If the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.certain = path, True
        self._file: int | None = None
        while not self._acquire():
            pass
        _HELD.add(self)

    def _acquire(self) -> bool:
        """Lock the file that is at the path; False where its holder has just removed it."""
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
            # Once more, as the holder before may have written it after it was read.
            self._file, self.note = file, _note(file, self.path)
        else:
            os.close(file)
        return current

    def leave(self, note: dict[str, Any]) -> None:
        """Write the note; process and machine are added.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        if self._file is None:
            raise RuntimeError("The lock has been released.")
        text = json.dumps({**note, "pid": os.getpid(), "host": platform.node()}) + "\n"
        # Only the first line is read, so that the file is whole between the two calls.
        os.pwrite(self._file, text.encode(), 0)
        os.truncate(self._file, len(text.encode()))

    def release(self) -> None:
        """Give the lock up, and remove the file, which keeps nobody out where it cannot be removed."""
        if self._file is None:
            return
        with suppress(OSError):
            if _is_at(self._file, self.path):
                self.path.unlink()
        self.close()

    def close(self) -> None:
        """Give the lock up and leave the file; in a forked child, which shares it, only the child's part of it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one at a path, and not one that was there before."""
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


def _note(file: int, path: Path) -> dict[str, Any]:
    foreign = ValueError(
        f"{str(path)!r} is not a lock of hesspec, which would have a file of this name there: name another folder."
    )
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


# A lock belongs to an open file, which forked children share: a DataLoader's worker that outlives a killed process
# would go on holding it.
_HELD: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for lock in list(_HELD):
        lock.close()


os.register_at_fork(after_in_child=_let_go_in_child)
