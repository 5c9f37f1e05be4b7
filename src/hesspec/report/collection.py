"""Spectra and training records of a folder, ordered and named as in the report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hesspec.applications.class_structure.record import ClassStructure
from hesspec.backend.json_files import read_json
from hesspec.backend.text import error_line
from hesspec.matrices import MATRICES, symbol_of
from hesspec.plot import epochs_of
from hesspec.report.across_spectra import steadied
from hesspec.report.application_results import ApplicationResult
from hesspec.report.member import Explained, Member
from hesspec.report.progress import Study, read_study
from hesspec.report.run_names import with_runs
from hesspec.spectra.folder import Unread, read_results, result_files
from hesspec.spectra.spectrum import Spectrum
from hesspec.spectra.study_names import HISTORY_FILE, SPLITS, STUDY_FILE

__all__ = ["Collection", "Training", "read_folder"]

LARGEST_NUMBER = 1e300
CHECKPOINTS = ("initialisation", "middle", "end")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Epochs of one training run: at least one, each a mapping of names to numbers."""

    path: Path
    run: str
    samples: int | None
    records: list[dict[str, float | None]]

    @property
    def reached(self) -> float:
        """Number of the last epoch so far; the number of epochs if they are not numbered."""
        return epochs_of(self.records)[-1]


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Content of a folder.

    Parameters
    ----------
    members, structures, training
        Spectra, class structures and records of the measured trainings, in order. If nothing in a study has been
        measured yet, there are no spectra, and `training` has all trainings, named by their folders.
    unmeasured : list of Training
        Trainings of a study without spectra: their learning rate was not the best, or they have not been measured yet.
    unread : list of (Path, str)
        Files that could not be read, with the reason as text.
    study : Study or None
        The study, if the folder is one of a study.
    studies : dict of str to Study
        Studies of subfolders, by subfolder.
    application_results : list of ApplicationResult
        Results of applications.
    """

    members: list[Member]
    structures: list[Explained]
    training: list[Training]
    unread: Unread
    unmeasured: list[Training] = field(default_factory=list)
    study: Study | None = None
    studies: dict[str, Study] = field(default_factory=dict)
    application_results: list[ApplicationResult] = field(default_factory=list)


def read_folder(folder: Path) -> Collection:
    """Read every result (`*.nc`) and training record (`training.json`) below a folder.

    Files that cannot be read are skipped and listed.

    Raises
    ------
    ValueError
        If there are no readable results, and the folder is not that of a study.
    """
    paths = result_files(folder)
    members: list[Member] = []
    structures: list[Explained] = []
    application_results: list[ApplicationResult] = []
    unread: Unread = []
    for _, together in itertools.groupby(paths, key=lambda path: path.parent):
        measured = []
        for path, result in read_results(together, unread):
            relative = path.relative_to(folder)
            if isinstance(result, ClassStructure):
                structures.append(Explained(**_place(relative, result.attributes), structure=result))
            elif isinstance(result, Spectrum):
                measured.append(_member(relative, result))
            else:
                application_results.append(ApplicationResult(path=relative, record=result))
        members += map(_without_idle_sketches, steadied(measured))
    unread = [(path.relative_to(folder), reason) for path, reason in unread]
    study = read_study(folder, Path(), unread)
    studies = _studies(folder, unread)
    if not members and not application_results and study is None:
        reasons = "".join(f"\n{path}: {reason}" for path, reason in unread)
        raise ValueError(
            f"There are no readable results in {str(folder)!r}: {len(paths)} files named *.nc were found there "
            f"and in its subfolders. Save spectra there with Spectrum.save.{reasons}"
        )
    members = _in_order(with_runs(members, [*studies], folder.resolve().name))
    structures = [replace(item, run=_run_of_structure(item, members)) for item in structures]
    structures.sort(
        key=lambda item: (
            item.run,
            item.samples or 0,
            -1.0 if item.epoch is None else item.epoch,
            item.split,
            item.path,
        )
    )
    training, unmeasured = _trainings(folder, members, study is not None or bool(studies), unread)
    return Collection(
        members=members,
        structures=structures,
        training=training if members else unmeasured,
        unread=unread,
        unmeasured=unmeasured,
        study=study,
        studies=studies,
        application_results=application_results,
    )


def _studies(folder: Path, unread: Unread) -> dict[str, Study]:
    """Studies of subfolders."""
    places = sorted(path.parent.relative_to(folder) for path in folder.rglob(STUDY_FILE) if path.parent != folder)
    found = {place.as_posix(): read_study(folder, place, unread) for place in places}
    return {place: study for place, study in found.items() if study is not None}


def _trainings(
    folder: Path, members: Sequence[Member], in_study: bool, unread: Unread
) -> tuple[list[Training], list[Training]]:
    """Training records of measured trainings and, in a study, of the others."""
    training, unmeasured = [], []
    for path in sorted(path for path in folder.rglob(HISTORY_FILE) if path.is_file()):
        relative = path.relative_to(folder)
        try:
            records = _records(path)
        except (ValueError, OSError) as error:
            unread.append((relative, error_line(error)))
            continue
        owner = next((member for member in members if relative.parent in member.path.parents), None)
        if owner is not None:
            training.append(Training(path=relative, run=owner.run, samples=owner.samples, records=records))
        elif in_study or any(member.samples is not None for member in members):
            unmeasured.append(Training(path=relative, run=relative.parent.name, samples=None, records=records))
        else:
            training.append(Training(path=relative, run="", samples=None, records=records))
    return training, unmeasured


def _point(attributes: Mapping[str, Any]) -> tuple[str, float | None]:
    """Name of the checkpoint, and its epoch."""
    epoch = attributes.get("epoch")
    number = float(epoch) if isinstance(epoch, int | float) and math.isfinite(epoch) else None
    name = str(attributes.get("checkpoint", ""))
    if number is not None:
        name = f"{name} (epoch {number:g})" if name else f"epoch {number:g}"
    return name, number


def _place(path: Path, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Placed` that attributes state."""
    name, epoch = _point(attributes)
    samples = attributes.get("train_samples_per_class")
    counted = isinstance(samples, int) and not isinstance(samples, bool) and samples > 0
    return {
        "path": path,
        "split": str(attributes.get("split", "")),
        "checkpoint": name,
        "epoch": epoch,
        "run": "",
        # Without an epoch it cannot be ordered among the others of its sample size.
        "samples": samples if counted and epoch is not None else None,
    }


def _run_of_structure(item: Explained, members: list[Member]) -> str:
    """Run of the spectra of the same network, data and loss in the same folder; otherwise a separate name."""
    names = ("network", "dataset", "samples_per_class")
    mine = [item.structure.attributes.get(name) for name in names]
    for member in members:
        if member.path.parent == item.path.parent and [member.spectrum.attributes.get(n) for n in names] == mine:
            return member.run
    return " · ".join(str(value) for value in mine[:2] if value is not None)


def _member(path: Path, spectrum: Spectrum) -> Member:
    attributes = spectrum.attributes
    matrix = symbol_of(str(attributes.get("matrix", "operator")))
    return Member(**_place(path, attributes), spectrum=spectrum, matrix=matrix)


def _without_idle_sketches(member: Member) -> Member:
    """Drop sketches of eigenvectors in the bulk, which take a gigabyte in a study."""
    spectrum = member.spectrum
    outliers = np.flatnonzero(spectrum.is_outlier)
    if not outliers.size or outliers[-1] + 1 >= len(spectrum.eigenvector_sketches):
        return member
    fewer = replace(spectrum, eigenvector_sketches=spectrum.eigenvector_sketches[: outliers[-1] + 1].copy())
    return replace(member, spectrum=fewer.with_outlier_p_values(spectrum.outlier_p_values))


def _in_order(members: list[Member]) -> list[Member]:
    matrices = [matrix.symbol for matrix in MATRICES.values()]
    by_epoch = all(member.epoch is not None for member in members)

    def place(member: Member) -> tuple[Any, ...]:
        named = str(member.spectrum.attributes.get("checkpoint", ""))
        time = member.epoch if by_epoch else _rank(named, CHECKPOINTS, between=1)
        return (
            member.run,
            member.samples or 0,
            time,
            member.checkpoint,
            _rank(member.matrix, matrices),
            member.matrix,
            _rank(member.split, SPLITS),
            member.split,
        )

    return sorted(members, key=place)


def _rank(name: str, known: tuple[str, ...] | list[str], between: int | None = None) -> int:
    """Rank of a name among the known ones; others come last, or at `between`."""
    if name in known:
        return known.index(name)
    return len(known) if between is None else between


def _records(path: Path) -> list[dict[str, float | None]]:
    records = read_json(path)
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise ValueError("It is not a list of records, one for each epoch.")
    return [{str(name): _number(value) for name, value in record.items()} for record in records]


def _number(value: object) -> float | None:
    if not isinstance(value, int | float):
        return None
    # Integers in JSON can have any length.
    number = float(value) if abs(value) < LARGEST_NUMBER else math.inf
    return number if math.isfinite(number) else None
