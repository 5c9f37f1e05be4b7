"""HTML page of a comparison: spectra on one axis, and differences with their intervals."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from hesspec.applications.comparison.difference import DISTANCE, Difference, distance_text
from hesspec.applications.comparison.figure import LINEAR, STAGGER
from hesspec.applications.comparison.record import Comparison
from hesspec.backend.csv_text import csv_text
from hesspec.backend.files import write_bytes
from hesspec.backend.number_text import with_bound
from hesspec.matrices import MATRICES, unit_of
from hesspec.plot import OKABE_ITO
from hesspec.report.figure_data import PlotlyLook, matrix_places, thinned
from hesspec.report.markup import rendered

__all__ = ["write_comparison"]

SCRIPT = ("common", "figures", "comparison")
THEMES = ("light", "dark")


def write_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> Path:
    """Write one self-contained HTML page of a comparison, which opens offline.

    Parameters
    ----------
    comparison : Comparison
        Result of `hesspec.compare`.
    path : path
        Name of the page; it is written atomically.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    OSError
        If the page cannot be written.
    """
    target = Path(path)
    places = [_place(comparison, place) for place in range(comparison.places.size)]
    names = [str(run) for run in comparison.runs]
    heading = f"{' and '.join(names[1:])} compared with {names[0]}"
    overview = comparison.overview()
    # Where the runs differ most: where they have the same weights, there is nothing to see.
    first = int(comparison.distances.max(axis=0).argmax())
    text = rendered(
        "comparison.html.j2",
        SCRIPT,
        _payload(comparison, places, first),
        heading=heading,
        contents=[
            ("spectra-title", "Spectra"),
            ("differences-title", "Differences"),
            *([("overview-title", "Everywhere")] if len(places) > 1 else []),
            ("about-title", "What was compared"),
        ],
        places=places,
        first=first,
        runs=[(name, _sizes(comparison, run)) for run, name in enumerate(names)],
        overview=overview if len(places) > 1 else None,
        texts=2 if len(names) > 2 else 1,  # columns of the overview that hold no numbers
        where={place["name"]: number for number, place in enumerate(places)},
        remarks=comparison.remarks(),
    )
    # Names of files that are not UTF-8 are shown with escapes.
    write_bytes(target, text.encode("utf-8", "backslashreplace"))
    return target


def _payload(comparison: Comparison, places: list[dict[str, Any]], first: int) -> dict[str, Any]:
    """Return all data of the page's script as JSON types."""
    return {
        "runs": [str(run) for run in comparison.runs],
        "looks": {
            theme: [PlotlyLook(run % len(OKABE_ITO), 0, theme).to_json() for run in range(comparison.runs.size)]
            for theme in THEMES
        },
        "places": [
            {key: place[key] for key in ("name", "sentence", "largest", "floor", "spectra")} for place in places
        ],
        "first": first,
        "linear": LINEAR,
        "stagger": STAGGER,
        "files": {"differences.csv": _csv(comparison)},
    }


def _csv(comparison: Comparison) -> str:
    frame = comparison.to_dataframe()
    return csv_text(frame.columns, frame.astype(object).where(frame.notna(), None).itertuples(index=False))


def _sizes(comparison: Comparison, run: int) -> str:
    return " or ".join(f"{size:,}" for size in dict.fromkeys(comparison.parameters[run].tolist()))


def _place(comparison: Comparison, place: int) -> dict[str, Any]:
    """Spectra and differences of one place."""
    name = str(comparison.places[place]) or "spectrum"
    runs = comparison.runs.size
    points = np.concatenate([comparison.eigenvalues[:, place].ravel(), comparison.curve_at[:, place].ravel()])
    shown = [each for each in comparison.shown() if each.place == str(comparison.places[place])]
    return {
        "name": name,
        "sentence": _sentence(comparison, place, shown),
        "largest": float(np.nanmax(np.abs(points), initial=0.0)) or 1.0,
        "floor": float(1 / comparison.parameters[:, place].max()),
        "spectra": [_spectrum(comparison, run, place) for run in range(runs)],
        "tables": [
            (str(run), [(each.quantity, *each.pair, each.text, each.verdict) for each in shown if each.run == run])
            for run in comparison.runs[1:]
        ],
    }


def _sentence(comparison: Comparison, place: int, shown: list[Difference]) -> str:
    """What a reader should know first of a place."""
    parts = []
    for run in range(1, comparison.runs.size):
        judged = [each for each in shown if each.run == str(comparison.runs[run]) and each.exceeds_error is not None]
        beyond = [each.quantity for each in judged if each.exceeds_error and each.quantity != DISTANCE]
        distance = distance_text(comparison.distances[run, place], comparison.distance_bounds[run, place])
        verb = "differs by more than its error" if len(beyond) == 1 else "differ by more than their errors"
        names = " and ".join(filter(None, [", ".join(beyond[:-1]), *beyond[-1:]]))
        found = f"{names} {verb}" if beyond else "no number differs by more than its error"
        whose = f"{comparison.runs[run]}: " if comparison.runs.size > 2 else ""
        parts.append(f"{whose}{found}; Wasserstein-1 distance {distance}")
    return ". ".join(f"{part[0].upper()}{part[1:]}" for part in parts)


def _spectrum(comparison: Comparison, run: int, place: int) -> dict[str, Any]:
    """Curve and points of one spectrum."""
    matrix = str(comparison.matrices.reshape(comparison.runs.size, -1)[run, place])
    symbol = PlotlyLook(matrix_places([matrix])[0], 0).symbol if matrix in _SYMBOLS else "circle"
    x, y = comparison.curve_at[run, place], comparison.curve[run, place]
    seen = y > 1e-3 / comparison.parameters[run, place]  # below: outside the figure
    x, y = thinned(x[seen], y[seen])
    values, bounds = comparison.eigenvalues[run, place], comparison.error_bounds[run, place]
    known = np.isfinite(values)
    return {
        "matrix": matrix,
        "unit": unit_of([matrix]),
        "symbol": symbol,
        "x": [float(f"{value:.5g}") for value in x],
        "y": [float(f"{value:.5g}") for value in y],
        "values": [float(f"{value:.9g}") for value in values[known]],
        "bounds": [float(f"{bound:.3g}") if np.isfinite(bound) else None for bound in bounds[known]],
        "texts": [with_bound(float(v), float(b)) for v, b in zip(values[known], bounds[known], strict=True)],
        "outlier": [bool(flag) for flag in comparison.is_outlier[run, place][known]],
    }


_SYMBOLS = {matrix.symbol for matrix in MATRICES.values()}
