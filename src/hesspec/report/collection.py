"""The spectra and training records of a folder, in the order and with the names under which a report shows them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hesspec.plot import DISPLAY_NAMES
from hesspec.result import Spectrum, load
from hesspec.structure.record import Structure, load_structure

__all__ = ["Collection", "Explained", "Member", "Training", "read_folder"]

RUN_ATTRIBUTES = ("network", "dataset", "loss")
SPLITS = ("train", "test")
CHECKPOINTS = ("initialisation", "middle", "end")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One spectrum and where it belongs.

    Parameters
    ----------
    path : Path
        Relative to the folder of the report.
    spectrum : Spectrum
    matrix, split, checkpoint : str
        Names as the report shows them; empty where the spectrum does not say.
    epoch : float or None
    run : str
        What tells the training runs of the folder apart; empty where there is one.
    """

    path: Path
    spectrum: Spectrum
    matrix: str
    split: str
    checkpoint: str
    epoch: float | None
    run: str

    @property
    def title(self) -> str:
        """Matrix, split and checkpoint in one line."""
        return " · ".join(part for part in (self.matrix, self.split, self.checkpoint) if part)


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One class structure and where it belongs; names as of a `Member`."""

    path: Path
    structure: Structure
    split: str
    checkpoint: str
    epoch: float | None
    run: str

    @property
    def title(self) -> str:
        """Split and checkpoint in one line."""
        return " · ".join(part for part in (self.run, self.split, self.checkpoint) if part)


@dataclass(frozen=True, kw_only=True)
class Training:
    """The epochs of one training run: a mapping of names to numbers each."""

    path: Path
    run: str
    records: list[dict[str, float | None]]


@dataclass(frozen=True, kw_only=True)
class Collection:
    """All that a folder holds; `unread` are the files that could not be read, with the reason in words."""

    members: list[Member]
    structures: list[Explained]
    training: list[Training]
    unread: list[tuple[Path, str]]


def read_folder(folder: Path) -> Collection:
    """Read every spectrum, class structure (`*.nc`) and training record (`training.json`) below a folder.

    Raises
    ------
    ValueError
        If there is no spectrum that can be read.
    """
    # Names that begin with a dot are files that another process is still writing.
    paths = sorted(path for path in folder.rglob("*.nc") if path.is_file() and not path.name.startswith("."))
    members: list[Member] = []
    structures: list[Explained] = []
    unread: list[tuple[Path, str]] = []
    for path in paths:
        relative = path.relative_to(folder)
        try:
            members.append(_member(relative, load(path)))
        except (ValueError, OSError) as error:
            structure = _structure(path)
            if structure is None:
                unread.append((relative, str(error)))
            else:
                structures.append(_explained(relative, structure))
    if not members:
        reasons = "".join(f"\n{path}: {reason}" for path, reason in unread)
        raise ValueError(
            f"There is no spectrum in {str(folder)!r} that can be read: {len(paths)} files named *.nc were found there "
            f"and in its subfolders. Save spectra there with Spectrum.save.{reasons}"
        )
    members = _in_order(_with_runs(members))
    structures = [replace(item, run=_run_of_structure(item, members)) for item in structures]
    structures.sort(key=lambda item: (item.run, -1.0 if item.epoch is None else item.epoch, item.split, item.path))
    training = []
    for path in sorted(folder.rglob("training.json")):
        relative = path.relative_to(folder)
        try:
            records = _records(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            unread.append((relative, str(error)))
        else:
            training.append(Training(path=relative, run=_run_of(relative, members), records=records))
    return Collection(members=members, structures=structures, training=training, unread=unread)


def _point(attributes: Mapping[str, Any]) -> tuple[str, float | None]:
    """Name of the point of training, and its epoch."""
    epoch = attributes.get("epoch")
    number = float(epoch) if isinstance(epoch, int | float) and math.isfinite(epoch) else None
    name = str(attributes.get("checkpoint", ""))
    if number is not None:
        name = f"{name} (epoch {number:g})" if name else f"epoch {number:g}"
    return name, number


def _structure(path: Path) -> Structure | None:
    """The class structure in a file, if it holds one."""
    try:
        return load_structure(path)
    except (ValueError, OSError):
        return None


def _explained(path: Path, structure: Structure) -> Explained:
    name, epoch = _point(structure.attributes)
    split = str(structure.attributes.get("split", ""))
    return Explained(path=path, structure=structure, split=split, checkpoint=name, epoch=epoch, run="")


def _run_of_structure(item: Explained, members: list[Member]) -> str:
    """Run of the spectra of the same network, data and loss in the same folder; else a name of its own."""
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
    return Member(
        path=path,
        spectrum=spectrum,
        matrix=DISPLAY_NAMES.get(matrix, matrix),
        split=str(attributes.get("split", "")),
        checkpoint=name,
        epoch=number,
        run="",
    )


def _with_runs(members: list[Member]) -> list[Member]:
    """Name the runs by as few attributes as tell all spectra of one matrix, split and checkpoint apart."""
    parts: list[list[str]] = [[] for _ in members]

    def tell_apart(values: list[str]) -> None:
        if len(set(values)) > 1:
            for part, value in zip(parts, values, strict=True):
                part.append(value or "?")

    for name in RUN_ATTRIBUTES:
        tell_apart([str(member.spectrum.attributes.get(name, "")) for member in members])
    sizes = [member.spectrum.attributes.get("samples_per_class") for member in members]
    for values in (
        ["" if size is None else f"n = {size}" for size in sizes],
        [member.path.parent.as_posix() for member in members],
        [member.path.name for member in members],
    ):
        keys = [(*part, m.matrix, m.split, m.checkpoint) for part, m in zip(parts, members, strict=True)]
        if len(set(keys)) == len(keys):
            break
        tell_apart(values)
    return [replace(member, run=" · ".join(part)) for member, part in zip(members, parts, strict=True)]


def _in_order(members: list[Member]) -> list[Member]:
    matrices = list(DISPLAY_NAMES.values())
    by_epoch = all(member.epoch is not None for member in members)

    def place(member: Member) -> tuple[Any, ...]:
        named = str(member.spectrum.attributes.get("checkpoint", ""))
        time = member.epoch if by_epoch else _rank(named, CHECKPOINTS, between=1)
        return (
            member.run,
            time,
            member.checkpoint,
            _rank(member.matrix, matrices),
            member.matrix,
            _rank(member.split, SPLITS),
            member.split,
        )

    return sorted(members, key=place)


def _rank(name: str, known: tuple[str, ...] | list[str], between: int | None = None) -> int:
    """Place of a name among the known ones; others come after all of them, or at `between`."""
    if name in known:
        return known.index(name)
    return len(known) if between is None else between


def _records(text: str) -> list[dict[str, float | None]]:
    records = json.loads(text)
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise ValueError("It is no list of records, one for each epoch.")
    return [{str(name): _number(value) for name, value in record.items()} for record in records]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _run_of(path: Path, members: list[Member]) -> str:
    """Run of the spectra that lie beside or below a training record."""
    return next((member.run for member in members if path.parent in member.path.parents), "")
