"""Tables of the runs: results of each, where it was measured, and the attributes that files state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from hesspec.backend.number_text import duration
from hesspec.report.member import Member, distinct
from hesspec.report.sentences import glance

__all__ = ["checkpoint_table", "details", "facts", "listed", "run_table"]

WORDS = {
    "samples_per_class": "samples per class (n)",
    "risk": "mean loss",
    "created": "measured at (UTC)",
    "seconds": "seconds",
    "build_seconds": "seconds to build the operator",
    "mode": "mode of the matvec",
    "mode_reason": "why this mode",
    "terms": "loss terms",
    "train_samples_per_class": "training samples per class (n)",
    "training_seed": "seed of the training",
}
# Rows of "What was run": names in the files, in this order; all others are listed by file.
NETWORK = ("network", "params", "weights")
DATA = ("dataset", "classes", "samples_per_class", "train_samples_per_class", "samples", "terms")
OPTIONS = ("loss", "reduction", "precision", "dtype", "basis", "seed", "training_seed", "learning_rate", "mode")
MACHINE = ("device", "machine", "threads", "hesspec", "torch", "numpy", "scipy", "python")
MANY = 6  # values in a cell; more are counted
LOSSES = ("risk", "train_error", "test_error")


def _word(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def _rows(attributes: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(_word(name), _text(value)) for name, value in attributes.items()]


def _values(members: Sequence[Member], name: str) -> list[str]:
    return distinct(_text(m.spectrum.attributes[name]) for m in members if name in m.spectrum.attributes)


def facts(members: Sequence[Member]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what was run in groups of names and values: network, data, options, time and machine."""
    dimensions = distinct(f"{member.spectrum.dimension:,}" for member in members)
    steps = distinct(f"{member.spectrum.steps:,}" for member in members)
    probes = distinct(f"{member.spectrum.probes:,}" for member in members)
    times = _values(members, "created")
    groups = [
        ("Network", [*_of(members, NETWORK), ("parameters (p)", _shortened(dimensions))]),
        ("Data", _of(members, DATA)),
        (
            "Options",
            [*_of(members, OPTIONS), ("Lanczos steps", _shortened(steps)), ("probes", _shortened(probes))],
        ),
        (
            "Time and machine",
            [
                *([("seconds", _seconds(members))] if _seconds(members) else []),
                *([("measured at (UTC)", " to ".join(distinct((min(times), max(times)))))] if times else []),
                *_of(members, MACHINE),
            ],
        ),
    ]
    return [(title, rows) for title, rows in groups if rows]


def _of(members: Sequence[Member], names: Iterable[str]) -> list[tuple[str, str]]:
    return [(_word(name), _shortened(values)) for name in names if (values := _values(members, name))]


def _shortened(values: Sequence[str]) -> str:
    return (
        ", ".join(values)
        if len(values) <= MANY
        else f"{', '.join(values[: MANY - 1])} and {len(values) - MANY + 1} more"
    )


def _seconds(members: Sequence[Member]) -> str:
    found = [member.spectrum.attributes.get("seconds") for member in members]
    known = [value for value in found if isinstance(value, int | float) and math.isfinite(value)]
    return f"{duration(sum(known))} in all, at most {duration(max(known))} for a spectrum" if known else ""


def checkpoint_table(members: Sequence[Member]) -> dict[str, Any]:
    """Return a table of all checkpoints: the run and sample size where there are several, losses, and errors."""
    splits = distinct(member.split for member in members)
    several = len({member.run for member in members}) > 1
    sizes = any(member.samples is not None for member in members)
    points: dict[tuple[object, ...], dict[str, str]] = {}
    for member in members:
        row = points.setdefault((member.run, member.samples, member.checkpoint), {})
        for name in LOSSES:
            value = member.spectrum.attributes.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                word = f"mean loss, {member.split}" if name == "risk" and member.split else _word(name)
                row[word] = f"{value:.4g}" if name == "risk" else f"{value:.2%}"
    wanted = [f"mean loss, {split}" if split else "mean loss" for split in splits]
    columns = [name for name in (*wanted, "train error", "test error") if any(name in row for row in points.values())]
    return {
        "columns": [*(["run"] if several else []), *(["n"] if sizes else []), "checkpoint", *columns],
        "texts": several + sizes + 1,
        "rows": [
            [
                *([run] if several else []),
                *(["–" if samples is None else f"{samples}"] if sizes else []),
                checkpoint or "not given",
                *(row.get(name, "–") for name in columns),
            ]
            for (run, samples, checkpoint), row in points.items()
        ],
    }


def run_table(members: Sequence[Member]) -> list[dict[str, Any]]:
    """Return a row for each run: its last spectrum of Hess, or else of its first matrix, on the first split."""
    rows = []
    for run in distinct(member.run for member in members):
        mine = [member for member in members if member.run == run]
        last = [m for m in mine if (m.samples, m.checkpoint) == (mine[-1].samples, mine[-1].checkpoint)]
        shown = next((member for member in last if member.matrix == "Hess"), last[0])
        outliers, largest, bulk, trace, _, loss = glance(shown)
        rows.append(
            {
                "run": run,
                "address": "#" + urlencode({"run": run}),
                "of": shown.title or "operator",
                "parameters": f"{shown.spectrum.dimension:,}",
                "values": [outliers, largest, bulk, trace, loss],
                "spectra": len(mine),
            }
        )
    return rows


def listed(members: Sequence[Member]) -> dict[str, Any]:
    """Return a table of all files, with a column for every attribute in which they differ."""
    rows = [
        dict(_rows(member.spectrum.attributes)) | {"Lanczos steps": f"{member.spectrum.steps}"} for member in members
    ]
    names = distinct(name for row in rows for name in row)
    columns = [name for name in names if len({row.get(name) for row in rows}) > 1]
    return {
        "columns": columns,
        "rows": [
            (member.path.as_posix(), [row.get(name, "–") for name in columns])
            for member, row in zip(members, rows, strict=True)
        ],
    }


def details(member: Member) -> dict[str, Any]:
    """Return the page's entry of a file: its name, the summary of its spectrum, and all attributes."""
    return {
        "file": member.path.as_posix(),
        "title": member.title or "operator",
        "summary": list(member.spectrum.summary().items()),
        "attributes": _rows(member.spectrum.attributes),
    }
