"""Progress of a study, from what its folder says that it will measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hesspec.backend.json_files import read_json
from hesspec.backend.text import error_line
from hesspec.matrices import symbol_of
from hesspec.report.member import Member
from hesspec.spectra.folder import Unread
from hesspec.spectra.study_names import REQUESTED_FILE, SCRATCH, SGD, STUDY_FILE

__all__ = ["Requested", "Study", "read_study"]

# Spectra; the largest study has about ten thousand.
MOST_SPECTRA: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Requested:
    """What a study will train and measure.

    Parameters
    ----------
    trainings : int
        Number of trainings.
    epochs : list of int
        Last epochs of the trainings, ascending: one number unless data sets have their own.
    spectra : frozenset
        Data set, network, optimiser, start, seed, sample size, epoch, split and symbol of the matrix of each spectrum.
    """

    trainings: int
    epochs: list[int]
    spectra: frozenset[tuple[Any, ...]]

    @classmethod
    def read(cls, file: Path) -> Requested:
        """Read the file that `hesspec study` writes.

        Raises
        ------
        ValueError
            If it is damaged, or requests more than a study can.
        OSError
            If it cannot be read.
        """
        content = read_json(file)
        try:
            return cls._of(content)
        except (AttributeError, KeyError, TypeError, OverflowError) as error:
            raise ValueError("It does not list what a study measures; the study writes it again.") from error

    @classmethod
    def _of(cls, content: dict[str, Any]) -> Requested:
        splits = [str(split) for split in content["splits"]]
        symbols = [symbol_of(str(name)) for name in content["matrices"]]
        if sum(len(epochs) for *_, epochs in content["measured"]) * len(splits) * len(symbols) > MOST_SPECTRA:
            raise ValueError("It requests more spectra than a study can have.")
        spectra = frozenset(
            (*map(str, names), int(seed), int(count), float(epoch), split, symbol)
            for *names, seed, count, epochs in content["measured"]
            for epoch in epochs
            for split in splits
            for symbol in symbols
        )
        return cls(
            trainings=int(content["trainings"]), epochs=[int(epoch) for epoch in content["epochs"]], spectra=spectra
        )


@dataclass(frozen=True, kw_only=True)
class Study:
    """Study of a folder.

    Parameters
    ----------
    text : str
        Text of its file.
    requested : Requested or None
        What it requests; None if the folder does not say, as before its first run.
    """

    text: str
    requested: Requested | None

    def progress(self, members: Sequence[Member]) -> str:
        """Compare the spectra that are there with those that are requested, as a sentence."""
        if self.requested is None:
            return "One spectrum is here." if len(members) == 1 else f"{len(members)} spectra are here."
        wanted = self.requested.spectra
        present = len(wanted & {_key(member) for member in members})
        if present == len(wanted):
            return f"All {present} requested spectra are here."
        return f"{present} of the {len(wanted)} requested spectra are here; the same command measures the others."


def read_study(folder: Path, relative: Path, unread: Unread) -> Study | None:
    """Read the study in a subfolder; None if there is none. What cannot be read is appended to `unread`."""
    found: dict[str, Any] = {}
    for name, read in ((STUDY_FILE, lambda file: file.read_text(encoding="utf-8")), (REQUESTED_FILE, Requested.read)):
        file = folder / relative / name
        try:
            found[name] = read(file) if file.is_file() else None
        except (ValueError, OSError) as error:
            unread.append((relative / name, error_line(error)))
    text = found.get(STUDY_FILE)
    return None if text is None else Study(text=text, requested=found.get(REQUESTED_FILE))


def _key(member: Member) -> tuple[Any, ...]:
    attributes = member.spectrum.attributes
    return (
        str(attributes.get("dataset", "")),
        str(attributes.get("network", "")),
        str(attributes.get("optimizer", SGD)),
        str(attributes.get("start", SCRATCH)),
        attributes.get("training_seed", 0),
        member.samples,
        member.epoch,
        member.split,
        member.matrix,
    )
