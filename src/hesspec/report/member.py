"""Results with their places in the report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hesspec.applications.class_structure.record import ClassStructure
from hesspec.spectra.spectrum import Spectrum
from hesspec.spectra.tails import TailFit, fit_tail

__all__ = ["Explained", "Member", "distinct"]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Result with its place in the report.

    Parameters
    ----------
    path : Path
        File, relative to the folder of the report.
    split, checkpoint : str
        Names in the report; empty if the result does not state them.
    epoch : float or None
        Epoch of the checkpoint.
    run : str
        Name of the training run, which distinguishes it from the others of the folder; never empty on a page. In a
        study, runs that differ only in sample size have the same name and form a group.
    samples : int or None
        Number of training samples per class, if the result is part of a study.
    """

    path: Path
    split: str
    checkpoint: str
    epoch: float | None
    run: str
    samples: int | None = None

    def _title(self, first: str) -> str:
        size = "" if self.samples is None else f"n = {self.samples}"
        return " · ".join(part for part in (first, self.split, size, self.checkpoint) if part)


@dataclass(frozen=True, kw_only=True)
class Member(Placed):
    """Spectrum with its place in the report; `matrix` is the name of its matrix there."""

    spectrum: Spectrum
    matrix: str

    @property
    def title(self) -> str:
        """Matrix, split, sample size and checkpoint in one line."""
        return self._title(self.matrix)

    @cached_property
    def tail(self) -> TailFit | None:
        """Power law of the tail of both signs; None if there are too few points, or one has nearly all weight."""
        try:
            return fit_tail(self.spectrum, sign=0)
        except ValueError:
            return None


@dataclass(frozen=True, kw_only=True)
class Explained(Placed):
    """Class structure with its place in the report."""

    structure: ClassStructure

    @property
    def title(self) -> str:
        """Run, split, sample size and checkpoint in one line."""
        return self._title(self.run)


def distinct(values: Iterable[str]) -> list[str]:
    """The different values, in the order in which they first occur."""
    return list(dict.fromkeys(values))
