"""Record of an interrupted command, stored next to its snapshots, so that a different command is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from hesspec.backend.file_lock import FileLock
from hesspec.backend.tensor_files import writing
from hesspec.krylov.snapshot import STATE
from hesspec.krylov.snapshot_files import LOCK, open_regular
from hesspec.krylov.snapshot_reader import shown

__all__ = ["RECORD", "CommandRecord"]

RECORD: Final = "command.json"
# Largest size of a record, and the name under which it is written; only the command that has the lock writes it.
RECORD_BYTES: Final = 1 << 20
UNFINISHED: Final = ".command.json.hesspec"


class CommandRecord:
    """The command that a folder of snapshots belongs to, and the results that it writes.

    A context manager: from `begin` to its exit, no other command can begin in the folder.

    Parameters
    ----------
    folder : Path
        Folder of the snapshots; it need not exist.
    command : mapping of str to str
        Values of all options that the results depend on, by the names of the options.

    Attributes
    ----------
    folder : Path
    """

    def __init__(self, folder: Path, command: Mapping[str, str]) -> None:
        self.folder, self._path, self._command = folder, folder / RECORD, dict(command)
        self._lock: FileLock | None = None

    def __enter__(self) -> Self:
        """Return the record itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the folder for other commands."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def results(self) -> list[str]:
        """Names of the results that the interrupted command was writing; empty if there is none.

        Raises
        ------
        ValueError
            If the folder belongs to a different command, or its record cannot be read.
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
                f"The record {str(self._path)!r} of an interrupted command cannot be read: {error}. Choose another "
                "folder with --snapshot, or delete this one."
            ) from error
        for option in {**self._command, **found}:
            here, there = self._command.get(option, "not given"), found.get(option, "not given")
            if here != there:
                raise ValueError(
                    f"The snapshots in {str(self.folder)!r} belong to a different command: its {shown(option)} "
                    f"was {shown(there)}, and now it is {here}. Choose another folder with --snapshot, or delete this "
                    "one."
                )
        return results

    def begin(self, results: Iterable[str]) -> None:
        """Create the folder, and add these results to the record.

        Raises
        ------
        ValueError
            If the folder contains other files, or belongs to a different command.
        BlockingIOError
            If another command is using the folder.
        OSError
            If the record cannot be written.
        """
        self._claim()
        names = sorted({*self.results(), *results})
        text = json.dumps({"command": self._command, "results": names}, indent=1)
        with writing(self.folder, len(text)):
            unfinished = self.folder / UNFINISHED
            # May have been left by a killed command, or be a link that somebody else created.
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
                f"{str(self.folder)!r} is not a folder of snapshots: it contains {names[0]!r}{others}. Choose a new "
                "or empty folder with --snapshot."
            )
        try:
            self._lock = FileLock(self.folder / LOCK)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"Another command is using the snapshots in {str(self.folder)!r}: {error} Wait until it ends, or "
                "choose another folder with --snapshot."
            ) from None

    def end(self) -> list[str]:
        """Delete the record and the folder, unless it contains something else; return the names of that.

        If it contains a snapshot, the record is kept, so that a command can resume from it.
        """
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        others = sorted(path.name for path in self.folder.iterdir() if path.name not in {RECORD, LOCK})
        if not any(self.folder.glob(f"*/{STATE}")):
            self._path.unlink()
        if not others:
            self.folder.rmdir()
        return others
