"""Tables of the runs: attributes that spectra have in common, and those in which files differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hesspec.report.collection import Member, distinct

__all__ = ["common_attributes", "details", "listed"]

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
# Shown elsewhere on the page, for each spectrum.
IDENTITY = ("matrix", "split", "checkpoint", "epoch")
MANY, LONG = 6, 300  # values, and letters of them, in a cell of the table of what is common


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


def common_attributes(members: Sequence[Member]) -> list[tuple[str, str]]:
    """Return every attribute, with its value or values in the spectra."""
    found: dict[str, list[str]] = {"Lanczos steps": [f"{member.spectrum.steps}" for member in members]}
    for member in members:
        attributes = {name: value for name, value in member.spectrum.attributes.items() if name not in IDENTITY}
        for name, text in _rows(attributes):
            found.setdefault(name, []).append(text)
    rows = []
    for name, texts in found.items():
        values = distinct(texts)
        missing = "" if len(texts) >= len(members) else f" (given by {len(texts)} of {len(members)})"
        value = (
            ", ".join(values)
            if len(values) <= MANY and len("".join(values)) <= LONG
            else f"{len(values)} values, listed by file below"
        )
        rows.append((name, value + missing))
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
