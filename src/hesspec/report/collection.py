"""Spectra and training records of a folder, ordered and named as in the report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hesspec.applications.class_structure.record import ClassStructure
from hesspec.backend.netcdf import OtherKindError
from hesspec.matrices import MATRICES, symbol_of
from hesspec.plot import epochs_of
from hesspec.spectra.record import load
from hesspec.spectra.spectrum import Spectrum
from hesspec.spectra.tails import TailFit, fit_tail

__all__ = ["Collection", "Explained", "Member", "Training", "distinct", "read_folder"]

STUDY_FILE = "study.yaml"
RUN_ATTRIBUTES = ("dataset", "network", "loss")
SPLITS = ("train", "test")
LARGEST_RECORD, LARGEST_NUMBER = 1 << 26, 1e300
CHECKPOINTS = ("initialisation", "middle", "end")


@dataclass(frozen=True, kw_only=True)
class Member:
    """Spectrum with its place in the report.

    Parameters
    ----------
    path : Path
        File, relative to the folder of the report.
    spectrum : Spectrum
        The spectrum.
    matrix, split, checkpoint : str
        Names in the report; empty if the spectrum does not state them.
    epoch : float or None
        Epoch of the checkpoint.
    run : str
        Name that distinguishes the training runs of the folder; empty if there is only one. In a study, runs that
        differ only in sample size have the same name and form a group.
    samples : int or None
        Number of training samples per class, if the spectrum is part of a study.
    """

    path: Path
    spectrum: Spectrum
    matrix: str
    split: str
    checkpoint: str
    epoch: float | None
    run: str
    samples: int | None = None

    @property
    def title(self) -> str:
        """Matrix, split, sample size and checkpoint in one line."""
        size = "" if self.samples is None else f"n = {self.samples}"
        return " · ".join(part for part in (self.matrix, self.split, size, self.checkpoint) if part)

    @cached_property
    def tail(self) -> TailFit | None:
        """Power law of the tail of both signs; None if there are too few points, or one has nearly all weight."""
        try:
            return fit_tail(self.spectrum, sign=0)
        except ValueError:
            return None


@dataclass(frozen=True, kw_only=True)
class Explained:
    """Class structure with its place in the report; names as in `Member`."""

    path: Path
    structure: ClassStructure
    split: str
    checkpoint: str
    epoch: float | None
    run: str
    samples: int | None = None

    @property
    def title(self) -> str:
        """Run, split, sample size and checkpoint in one line."""
        size = "" if self.samples is None else f"n = {self.samples}"
        return " · ".join(part for part in (self.run, self.split, size, self.checkpoint) if part)


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
    study : str or None
        Text of the study file, if the folder is one of a study.
    """

    members: list[Member]
    structures: list[Explained]
    training: list[Training]
    unread: list[tuple[Path, str]]
    unmeasured: list[Training] = field(default_factory=list)
    study: str | None = None


def read_folder(folder: Path) -> Collection:
    """Read every spectrum, class structure (`*.nc`) and training record (`training.json`) below a folder.

    Files that cannot be read are skipped and listed.

    Raises
    ------
    ValueError
        If there are no readable spectra, and the folder is not that of a study.
    """
    # Names that start with a dot are files that another process is still writing. Pipes are not opened.
    paths = sorted(path for path in folder.rglob("*.nc") if path.is_file() and not path.name.startswith("."))
    members: list[Member] = []
    structures: list[Explained] = []
    unread: list[tuple[Path, str]] = []
    for path in paths:
        relative = path.relative_to(folder)
        try:
            result = _result(path)
        except (ValueError, OSError) as error:
            unread.append((relative, str(error)))
            continue
        if isinstance(result, ClassStructure):
            structures.append(_explained(relative, result))
        else:
            members.append(_member(relative, result))
    study = _study(folder, unread)
    if not members and study is None:
        reasons = "".join(f"\n{path}: {reason}" for path, reason in unread)
        raise ValueError(
            f"There are no readable spectra in {str(folder)!r}: {len(paths)} files named *.nc were found there "
            f"and in its subfolders. Save spectra there with Spectrum.save.{reasons}"
        )
    members = _in_order(_with_runs(members))
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
    training, unmeasured = _trainings(folder, members, study is not None, unread)
    return Collection(
        members=members,
        structures=structures,
        training=training if members else unmeasured,
        unread=unread,
        unmeasured=unmeasured,
        study=study,
    )


def _study(folder: Path, unread: list[tuple[Path, str]]) -> str | None:
    """Text of the study file, if there is a readable one."""
    file = folder / STUDY_FILE
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except (ValueError, OSError) as error:
        unread.append((Path(STUDY_FILE), str(error)))
        return None


def _trainings(
    folder: Path, members: Sequence[Member], in_study: bool, unread: list[tuple[Path, str]]
) -> tuple[list[Training], list[Training]]:
    """Training records of measured trainings and, in a study, of the others."""
    training, unmeasured = [], []
    for path in sorted(path for path in folder.rglob("training.json") if path.is_file()):
        relative = path.relative_to(folder)
        try:
            records = _records(path)
        except (ValueError, OSError) as error:
            unread.append((relative, str(error)))
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


def _result(path: Path) -> Spectrum | ClassStructure:
    """Read the spectrum or the class structure in a file."""
    found = load(path)
    if not isinstance(found, Spectrum | ClassStructure):
        raise OtherKindError(f"{str(path)!r} contains a {found.KIND}, which the report does not show.")
    return found


def _explained(path: Path, structure: ClassStructure) -> Explained:
    name, epoch = _point(structure.attributes)
    split = str(structure.attributes.get("split", ""))
    samples = structure.attributes.get("train_samples_per_class")
    count = samples if isinstance(samples, int) and not isinstance(samples, bool) and samples > 0 else None
    return Explained(path=path, structure=structure, split=split, checkpoint=name, epoch=epoch, run="", samples=count)


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
    matrix = str(attributes.get("matrix", "operator"))
    name, number = _point(attributes)
    samples = attributes.get("train_samples_per_class")
    count = int(samples) if isinstance(samples, int) and not isinstance(samples, bool) and samples > 0 else None
    return Member(
        path=path,
        spectrum=_without_idle_sketches(spectrum),
        matrix=symbol_of(matrix),
        split=str(attributes.get("split", "")),
        checkpoint=name,
        epoch=number,
        run="",
        # Without an epoch it cannot be ordered among the others of its sample size.
        samples=count if number is not None else None,
    )


def _without_idle_sketches(spectrum: Spectrum) -> Spectrum:
    """Drop sketches of eigenvectors in the bulk, which take a gigabyte in a study."""
    outliers = np.flatnonzero(spectrum.is_outlier)
    if not outliers.size or outliers[-1] + 1 >= len(spectrum.eigenvector_sketches):
        return spectrum
    return replace(spectrum, eigenvector_sketches=spectrum.eigenvector_sketches[: outliers[-1] + 1].copy())


def _with_runs(members: list[Member]) -> list[Member]:
    """Name the runs by the fewest attributes that distinguish all spectra of one matrix, split and checkpoint."""
    parts: list[list[str]] = [[] for _ in members]
    others = [index for index, member in enumerate(members) if member.samples is None]
    grouped = [index for index, member in enumerate(members) if member.samples is not None]

    def tell_apart(values: list[str], which: list[int]) -> None:
        if len({values[index] for index in which}) > 1:
            for index in which:
                parts[index].append(values[index] or "?")

    def values_of(name: str, word: str = "") -> list[str]:
        found = [member.spectrum.attributes.get(name) for member in members]
        return ["" if value is None else f"{word}{value}" for value in found]

    everything = list(range(len(members)))
    for name in RUN_ATTRIBUTES:
        tell_apart(values_of(name), everything)
    tell_apart(values_of("training_seed", "seed "), grouped)
    tell_apart(values_of("params"), grouped)
    for values in (
        values_of("samples_per_class", "n = "),
        [member.path.parent.as_posix() for member in members],
        [member.path.name for member in members],
    ):
        keys = [
            (*parts[index], members[index].matrix, members[index].split, members[index].checkpoint) for index in others
        ]
        if len(set(keys)) == len(keys):
            break
        tell_apart(values, others)
    members = [replace(member, run=" · ".join(part)) for member, part in zip(members, parts, strict=True)]
    return _without_collisions(members)


def _without_collisions(members: list[Member]) -> list[Member]:
    """Move trainings and measurements that newer ones have replaced in a study to separate groups."""

    def created(index: int) -> str:
        return str(members[index].spectrum.attributes.get("created", ""))

    latest: dict[Path, str] = {}
    for index, member in enumerate(members):
        latest[member.path.parent] = max(latest.get(member.path.parent, ""), created(index))
    order = [index for index, member in enumerate(members) if member.samples is not None]
    order.sort(key=lambda index: (latest[members[index].path.parent], created(index)), reverse=True)
    folders: dict[tuple[str, int | None], Path] = {}
    taken: set[tuple[object, ...]] = set()
    found = list(members)
    for index in order:
        member = members[index]
        # The checkpoints of one training belong together, so trainings are compared by age.
        newest = folders.setdefault((member.run, member.samples), member.path.parent)
        extra = [] if newest == member.path.parent else [member.path.parent.name]
        run = " · ".join(part for part in (member.run, *extra) if part)
        if (run, member.samples, member.epoch, member.matrix, member.split) in taken:
            run = " · ".join(part for part in (run, member.path.stem) if part)
        taken.add((run, member.samples, member.epoch, member.matrix, member.split))
        found[index] = replace(member, run=run)
    return found


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
    size = path.stat().st_size
    if size > LARGEST_RECORD:
        raise ValueError(f"It has {size:,} bytes, more than any record of a training.")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("It is nested too deeply.") from error
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise ValueError("It is not a list of records, one for each epoch.")
    return [{str(name): _number(value) for name, value in record.items()} for record in records]


def _number(value: object) -> float | None:
    if not isinstance(value, int | float):
        return None
    # Integers in JSON can have any length.
    number = float(value) if abs(value) < LARGEST_NUMBER else math.inf
    return number if math.isfinite(number) else None


def distinct(values: Iterable[str]) -> list[str]:
    """The different values, in the order in which they first occur."""
    return list(dict.fromkeys(values))
