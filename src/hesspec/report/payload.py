"""Data of the page's script: spectra, laws, class structures and trainings as JSON, and files for download."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hesspec.backend.number_text import exponent_text
from hesspec.matrices import unit_of
from hesspec.report import csv_tables
from hesspec.report.across_spectra import laws_of, pairs_of
from hesspec.report.collection import Collection
from hesspec.report.figure_data import PlotlyLook, matrix_places, page_looks, training_figure, training_looks
from hesspec.report.member import Member, distinct
from hesspec.report.sentences import sentence
from hesspec.report.structure_section import structure_csv, structure_figures, structures_over

__all__ = ["Tracks", "first_shown", "has_several", "payload"]

Tracks = npt.NDArray[np.int64]


def payload(
    collection: Collection,
    drawn: Sequence[dict[str, Any]],
    tracks: Sequence[Tracks | None],
    matrices: Sequence[str],
    splits: Sequence[str],
    shown: Sequence[Member],
) -> dict[str, Any]:
    """Return all data of the page's script as JSON types.

    Parameters
    ----------
    collection : Collection
    drawn : sequence of dict
        Data of each spectrum.
    tracks : sequence of int array or None
        Track numbers of each spectrum's outliers.
    matrices, splits : sequence of str
        Names of all spectra, in the order of their colours and dashes.
    shown : sequence of Member
        Spectra that are drawn when the page opens.
    """
    members = collection.members
    runs = distinct(item.run for item in members or collection.training) or [""]
    laws, pairs = laws_of(members), pairs_of(members)
    files = {
        "outliers.csv": csv_tables.outliers(members, tracks),
        "spectra.csv": csv_tables.spectra(members),
        **({"power-laws.csv": csv_tables.power_laws(laws)} if laws else {}),
        **({"hess-against-g.csv": csv_tables.hessian_against_gauss_newton(pairs)} if pairs else {}),
        **({"training.csv": csv_tables.training(collection.training)} if collection.training else {}),
        **({"class-structure.csv": structure_csv(collection.structures)} if collection.structures else {}),
    }
    places = {member.path: index for index, member in enumerate(members)}
    return {
        "runs": [_run(run, [member for member in members if member.run == run]) for run in runs],
        "matrices": [
            {"name": name, "mark": PlotlyLook(place, 0).mark}
            for name, place in zip(matrices, matrix_places(matrices), strict=True)
        ],
        "splits": list(splits),
        "looks": page_looks(matrices, splits),
        "training_looks": training_looks(),
        "first": _first(shown, runs[0]),
        "spectra": [
            {
                "title": member.title or "operator",
                "unit": unit_of([member.matrix]),
                "sentence": sentence(member)["is"],
                "place": csv_tables.place(member),
                **data,
                "tracks": None if numbers is None else numbers.tolist(),
            }
            for member, data, numbers in zip(members, drawn, tracks, strict=True)
        ],
        "pairs": [
            {
                "hess": places[pair.hessian.path],
                "g": places[pair.gauss_newton.path],
                "overlaps": None if pair.overlaps is None or not pair.overlaps.size else _percents(pair.overlaps),
            }
            for pair in pairs
        ],
        "laws": [
            {
                "run": law.member.run,
                "matrix": law.member.matrix,
                "split": law.member.split,
                "checkpoint": law.member.checkpoint,
                "what": law.what,
                "x": law.sizes,
                "y": [law.law.prefactor * size**law.law.exponent for size in law.sizes],
                "exponent": exponent_text(law.law.exponent, law.law.lower, law.law.upper),
                "r_squared": f"{law.law.r_squared:.3f}",
                "points": law.law.points,
                "known": law.law.lower > 0 or law.law.upper < 0,
            }
            for law in laws
            if math.isfinite(law.law.prefactor)
        ],
        "structures": [structure_figures(item, members) for item in collection.structures],
        "structures_over": structures_over(collection.structures),
        "training": [
            {"run": item.run, "n": item.samples} | training_figure(item.records) for item in collection.training
        ],
        "columns": csv_tables.PLACE,
        "files": files,
    }


def _first(shown: Sequence[Member], run: str) -> dict[str, Any]:
    """Initial state of the controls: at the spectra that are shown, or at a run without spectra."""
    if not shown:
        return {"run": run, "n": None, "checkpoint": "", "split": ""}
    first = shown[0]
    return {"run": first.run, "n": first.samples, "checkpoint": first.checkpoint, "split": first.split}


def _run(name: str, members: Sequence[Member]) -> dict[str, Any]:
    """Possible states of the controls within a run: sample sizes, and checkpoints in the order of training."""
    ordered = members
    if all(member.samples is not None for member in members):
        ordered = sorted(members, key=lambda member: member.epoch or 0.0)
    return {
        "name": name,
        "sizes": sorted({member.samples for member in members if member.samples is not None}),
        "checkpoints": distinct(member.checkpoint for member in ordered),
        "epochs": list(dict.fromkeys(member.epoch for member in ordered)),
        "measured": sorted({(member.matrix, member.split) for member in members}),
    }


def _percents(overlaps: npt.NDArray[np.float64]) -> list[list[float | None]]:
    return [[round(float(part), 3) if math.isfinite(part) else None for part in row] for row in overlaps]


def has_several(members: Sequence[Member], name: str) -> bool:
    """Whether two spectra differ only in their checkpoint, or only in their sample size."""
    names = {"checkpoint", "samples"} - {name}
    other = names.pop()
    found: dict[tuple[object, ...], set[object]] = {}
    for member in members:
        key = (member.run, member.matrix, member.split, getattr(member, other))
        found.setdefault(key, set()).add(getattr(member, name))
    return any(len(values) > 1 for values in found.values())


def first_shown(members: Sequence[Member]) -> list[Member]:
    """Spectra shown when the page opens: the first run's last checkpoint, all matrices, the training set if any."""
    if not members:
        return []
    run = [member for member in members if member.run == members[0].run]
    here = [m for m in run if (m.checkpoint, m.samples) == (run[-1].checkpoint, run[-1].samples)]
    return [member for member in here if member.split == here[0].split]
