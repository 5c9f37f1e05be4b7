"""Text of the page about spectra and the progress of a study: heading, sentences and tables of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hesspec.backend.number_text import duration, three_digits, with_bound
from hesspec.report import csv_tables
from hesspec.report.collection import Collection, Training
from hesspec.report.member import Member, distinct
from hesspec.report.progress import Requested
from hesspec.spectra.informative import negative_text, trace_text
from hesspec.spectra.views import outlier_words

__all__ = [
    "glance",
    "heading",
    "not_measured",
    "outlier_table",
    "overview",
    "sentence",
    "unmeasured",
]

# In the place of a number whose interval says nothing.
NOT_KNOWN = "not known"


def _values(members: Sequence[Member], name: str) -> list[str]:
    return distinct(str(m.spectrum.attributes[name]) for m in members if name in m.spectrum.attributes)


def heading(members: Sequence[Member], folder: str) -> str:
    """Heading of the page, with the networks and data of the spectra."""
    if not members:
        return f"Study {folder}"
    networks, datasets = _values(members, "network"), _values(members, "dataset")
    what = " and ".join(distinct(member.matrix for member in members)[:3])
    if len(networks) == 1 and len(datasets) == 1:
        return f"Spectra of {networks[0]} on {datasets[0]}"
    if len(networks) == 1:
        return f"Spectra of {networks[0]}"
    return f"Spectra in {folder}" if len(members) > 1 else f"Spectrum of {what}"


def overview(members: Sequence[Member], folder: str) -> list[tuple[str, str]]:
    """Names and values of the line below the heading."""
    if not members:
        return [("spectra", "0"), ("folder", folder)]
    sizes = sorted({member.spectrum.dimension for member in members})
    span = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    seconds = [member.spectrum.attributes.get("seconds") for member in members]
    total = sum(value for value in seconds if isinstance(value, int | float) and math.isfinite(value))
    runs = len({member.run for member in members})
    return [
        *([("runs", f"{runs}")] if runs > 1 else []),
        ("spectra", f"{len(members)}"),
        ("parameters (p)", span),
        ("matvecs in all", f"{sum(member.spectrum.matvecs for member in members):,}"),
        *([("time in all", duration(total))] if total else []),
        ("folder", folder),
    ]


def not_measured(collection: Collection) -> dict[str, str]:
    """Progress of a study without spectra."""
    known = _requested(collection)
    parts = [f"trainings begun: {len(collection.training)}" + (f" of {known.trainings}" if known else "")]
    if collection.training:
        parts[0] += (
            f", the furthest at epoch {_epoch_of(max(item.reached for item in collection.training), collection)}"
        )
    parts.append("the first spectra are measured when all trainings of the first network have ended")
    parts.append("make this page again then")
    return {"of": "Not measured yet", "is": "; ".join(parts)}


def _epoch_of(reached: float, collection: Collection) -> str:
    """An epoch, and the total number of epochs if it is the same for all trainings."""
    known = _requested(collection)
    last = known.epochs if known else []
    return f"{reached:g}" + (f" of {last[0]}" if len(last) == 1 else "")


def _requested(collection: Collection) -> Requested | None:
    return None if collection.study is None else collection.study.requested


def unmeasured(collection: Collection) -> list[tuple[str, list[str]]]:
    """Return a row for each training without spectra: its folder, its progress, and its last record."""
    return [
        (
            item.path.parent.as_posix(),
            [_epoch_of(item.reached, collection), *(_last(item, name) for name in csv_tables.RECORD[:4])],
        )
        for item in collection.unmeasured
    ]


def _last(item: Training, name: str) -> str:
    value = item.records[-1].get(name)
    if value is None:
        return "–"
    return f"{value:#.4g}" if name.endswith("loss") else f"{value:.2%}"


def sentence(member: Member, *, with_run: bool = False) -> dict[str, str]:
    """Describe the result of one spectrum as text, with the name of its run where there are several."""
    spectrum = member.spectrum
    count = spectrum.outliers.size
    classes = spectrum.attributes.get("classes")
    words = outlier_words(spectrum)
    if count and classes == count and not isinstance(classes, bool):
        words += ", as many as classes"
    parts = [words]
    if count:
        value, bound = _first_outlier(member)
        parts.append(f"the largest is {value} ± {bound}")
    low, high = spectrum.bulk_edges
    if math.isfinite(low):
        parts.append(f"99% of the bulk lies between {three_digits(low)} and {three_digits(high)}")
    title = member.title or "operator"
    return {"of": f"{member.run} · {title}" if with_run else title, "is": "; ".join(parts)}


def _first_outlier(member: Member) -> tuple[str, str]:
    bounds = member.spectrum.error_bounds[member.spectrum.is_outlier]
    return with_bound(float(member.spectrum.outliers[0]), float(bounds[0]))


def glance(member: Member) -> list[str]:
    """Return a row of the table of numbers."""
    spectrum = member.spectrum
    low, high = spectrum.bulk_edges
    risk = spectrum.attributes.get("risk")
    return [
        f"{spectrum.outliers.size}",
        " ± ".join(_first_outlier(member)) if spectrum.outliers.size else "–",
        f"{three_digits(low)} to {three_digits(high)}" if math.isfinite(low) else "–",
        trace_text(spectrum) or NOT_KNOWN,
        negative_text(spectrum) or NOT_KNOWN,
        f"{risk:.4g}" if isinstance(risk, int | float) else "–",
    ]


def outlier_table(member: Member) -> dict[str, Any]:
    """Return the outliers of a spectrum with their error bounds, one per row."""
    spectrum = member.spectrum
    bounds = spectrum.error_bounds[spectrum.is_outlier]
    return {
        "title": member.title or "operator",
        "run": member.run,
        "rows": [
            with_bound(float(value), float(bound)) for value, bound in zip(spectrum.outliers, bounds, strict=True)
        ],
    }
