"""What a command did before it was interrupted: a record beside its snapshots, by which another command is told."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from hesspec._file_lock import FileLock
from hesspec._safetensors import writing
from hesspec.krylov.snapshot import STATE
from hesspec.krylov.snapshot_files import LOCK, open_regular
from hesspec.krylov.snapshot_reader import shown

__all__ = ["RECORD", "CommandRecord", "file_content"]

RECORD: Final = "command.json"
# Of a record, at most; and a name for one that is being written, which only the command does that has the lock.
RECORD_BYTES: Final = 1 << 20
UNFINISHED: Final = ".command.json.hesspec"


class CommandRecord:
    """The command that a folder of snapshots belongs to, and the results that it was to write.

    Use it as a context manager: from `begin` to its end, no other command can begin in the folder.

    Parameters
    ----------
    folder : Path
        Of the snapshots; it need not be there.
    command : mapping of str to str
        All that results depend on, by the names that a user knows them by.

    Attributes
    ----------
    folder : Path
    """

    def __init__(self, folder: Path, command: Mapping[str, str]) -> None:
        self.folder, self._path, self._command = folder, folder / RECORD, dict(command)
        self._lock: FileLock | None = None

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let other commands begin."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def results(self) -> list[str]:
        """Names of the results that this command was to write when it was interrupted; none where it was not.

        Raises
        ------
        ValueError
            If the folder is of another command, or its record cannot be read.
        """
        if not os.path.lexists(self._path):
            return []
        try:
            with open_regular(self._path) as file:
                record = json.loads(file.read(RECORD_BYTES))
            found = {str(option): str(value) for option, value in dict(record["command"]).items()}
            results = [str(name) for name in record["results"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"The record {str(self._path)!r} of an interrupted command cannot be read: {error}. Name another "
                "folder with --snapshot, or remove this one."
            ) from error
        for option in {**self._command, **found}:
            here, there = self._command.get(option, "not given"), found.get(option, "not given")
            if here != there:
                raise ValueError(
                    f"The snapshots in {str(self.folder)!r} are of another command: its {shown(option)} was "
                    f"{shown(there)}, and here it is {here}. Name another folder with --snapshot, or remove this one."
                )
        return results

    def begin(self, results: Iterable[str]) -> None:
        """Make the folder, and record that these results are to be written in addition to those of before.

        Raises
        ------
        ValueError
            If the folder is somebody else's, or of another command.
        BlockingIOError
            If another command is at work in the folder.
        OSError
            If it cannot be written.
        """
        self._claim()
        names = sorted({*self.results(), *results})
        text = json.dumps({"command": self._command, "results": names}, indent=1)
        with writing(self.folder, len(text)):
            unfinished = self.folder / UNFINISHED
            # One that a killed command has left, or a link that somebody else has put there.
            unfinished.unlink(missing_ok=True)
            with unfinished.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self._path)

    def _claim(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            names = sorted(path.name for path in self.folder.iterdir())
        if names and not {RECORD, LOCK} & {*names}:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(
                f"{str(self.folder)!r} is not a folder of snapshots: it holds {names[0]!r}{others}. Name a new or an "
                "empty folder with --snapshot."
            )
        try:
            self._lock = FileLock(self.folder / LOCK)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"Another command uses the snapshots in {str(self.folder)!r}: {error} Wait for its end, or name "
                "another folder with --snapshot."
            ) from None

    def end(self) -> list[str]:
        """Remove the record and the folder, unless something else is in it: names of that.

        The record stays with a snapshot, from which a command may resume.
        """
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        others = sorted(path.name for path in self.folder.iterdir() if path.name not in {RECORD, LOCK})
        if not any(self.folder.glob(f"*/{STATE}")):
            self._path.unlink()
        if not others:
            self.folder.rmdir()
        return others


def file_content(path: Path) -> str:
    """Name of a file, and a digest of what is in it."""
    with path.open("rb") as file:
        return f"{path.name} {hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()}"
