"""What a command did before it was interrupted: a record beside its snapshots, by which another command is told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from hesspec._files import atomic_path
from hesspec.krylov.snapshot import STATE

__all__ = ["RECORD", "CommandRecord", "file_content"]

RECORD: Final = "command.json"


class CommandRecord:
    """The command that a folder of snapshots belongs to, and the results that it was to write.

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

    def results(self) -> list[str]:
        """Names of the results that this command was to write when it was interrupted; none where it was not.

        Raises
        ------
        ValueError
            If the folder is of another command, or its record cannot be read.
        """
        if not self._path.is_file():
            return []
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            found, results = dict(record["command"]), list(record["results"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"The record {str(self._path)!r} of an interrupted command cannot be read: {error}. Name another "
                "folder with --snapshot, or remove this one."
            ) from error
        for option in {**self._command, **found}:
            here, there = self._command.get(option, "not given"), found.get(option, "not given")
            if here != there:
                raise ValueError(
                    f"The snapshots in {str(self.folder)!r} are of another command: its {option} was {there}, and "
                    f"here it is {here}. Name another folder with --snapshot, or remove this one."
                )
        return results

    def begin(self, results: Iterable[str]) -> None:
        """Make the folder, and record that these results are to be written beside those of before.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        names = sorted({*self.results(), *results})
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._path) as temporary:
            temporary.write_text(json.dumps({"command": self._command, "results": names}, indent=1), encoding="utf-8")

    def end(self) -> list[str]:
        """Remove the record and the folder, unless something else is in it: names of that.

        The record stays with a snapshot, which may be gone on from.
        """
        others = sorted(path.name for path in self.folder.iterdir() if path != self._path)
        if not any(self.folder.glob(f"*/{STATE}")):
            self._path.unlink()
        if not others:
            self.folder.rmdir()
        return others


def file_content(path: Path) -> str:
    """Name of a file, and a digest of what is in it."""
    with path.open("rb") as file:
        return f"{path.name} {hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()}"
