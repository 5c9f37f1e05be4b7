"""Matplotlib figure of a comparison: the spectra of all runs on one axis for each matrix, split and checkpoint."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hesspec.applications.comparison.difference import distance_text
from hesspec.applications.comparison.record import Comparison
from hesspec.matrices import MATRICES, unit_of
from hesspec.plot import FILL, OKABE_ITO, darkened
from hesspec.plot.figure import new_figure, styled
from hesspec.plot.style import DASHES, MARKERS, literal
from hesspec.plot.ticks import number_ticks

__all__ = ["MOST_PANELS", "plot_comparison"]

MOST_PANELS = 9
COLUMNS = 3
# Fraction of the largest |lambda| up to which the axis is linear.
LINEAR = 1e-3
# Ratio of the heights of the points of successive runs.
STAGGER = 3.0
# Of the ends of the axis to the largest points.
MARGIN = 1.5
SYMBOLS = [matrix.symbol for matrix in MATRICES.values()]


def plot_comparison(comparison: Comparison) -> Figure:
    """Plot the spectra of all runs, one panel for each place; see `Comparison.plot`."""
    shown = min(comparison.places.size, MOST_PANELS)
    columns = min(shown, COLUMNS)
    rows = math.ceil(shown / columns)
    with styled():
        figure = new_figure(8 if shown == 1 else 4.6 * columns, 1.1 + 4.1 * rows)
        axes = np.asarray(figure.subplots(rows, columns, squeeze=False))
        for place, panel in enumerate(axes.flat):
            if place < shown:
                _draw(panel, comparison, place)
            else:
                panel.set_axis_off()
        for panel in axes[:, 0]:
            panel.set_ylabel("bulk: share of eigenvalues per unit of λ")
        handles = [
            Line2D([], [], color=_colour(run), linewidth=2, linestyle=_dashes(run))
            for run in range(comparison.runs.size)
        ]
        labels = [literal(run) for run in comparison.runs]
        for symbol in dict.fromkeys(map(str, comparison.matrices)):
            handles.append(Line2D([], [], color="#555555", marker=_marker(symbol), markersize=7, linestyle="none"))
            labels.append(f"outliers{' of ' if symbol else ''}{literal(symbol)} (small: resolved in the bulk)")
        figure.legend(handles, labels, loc="outside upper left", ncols=columns + 1, alignment="left")
    return figure


def _colour(run: int) -> str:
    return OKABE_ITO[run % len(OKABE_ITO)]


def _dashes(run: int) -> Any:
    return DASHES[run % len(DASHES)]


def _marker(symbol: str) -> str:
    return MARKERS[SYMBOLS.index(symbol) % len(MARKERS)] if symbol in SYMBOLS else "o"


def _draw(axes: Axes, comparison: Comparison, place: int) -> None:
    runs = comparison.runs.size
    matrices = comparison.matrices.reshape(runs, -1)
    points = np.concatenate([comparison.eigenvalues[:, place].ravel(), comparison.curve_at[:, place].ravel()])
    largest = float(np.nanmax(np.abs(points), initial=0.0)) or 1.0
    axes.set_xscale("symlog", linthresh=LINEAR * largest, linscale=0.5)
    peak, lowest = 0.0, float(1 / comparison.parameters[:, place].max())
    for run in range(runs):
        x, y = comparison.curve_at[run, place], comparison.curve[run, place]
        seen = y > 0
        light: Any = _colour(run)
        axes.fill_between(x[seen], y[seen], color=light, alpha=FILL, linewidth=0)
        axes.plot(x[seen], y[seen], color=light, linestyle=_dashes(run), linewidth=1.6)
        peak = max(peak, float(y[seen].max(initial=0.0)))
        values, bounds = comparison.eigenvalues[run, place], comparison.error_bounds[run, place]
        outlier = comparison.is_outlier[run, place] == 1
        # Runs lie below one another, so that equal eigenvalues are all seen.
        height, marker = lowest / STAGGER**run, _marker(str(matrices[run, place]))
        resolved = np.isfinite(values) & ~outlier
        axes.plot(
            values[resolved],
            np.full(int(resolved.sum()), height),
            linestyle="none",
            marker=marker,
            markersize=3,
            color=light,
            markeredgewidth=0,
            zorder=3,
        )
        axes.errorbar(
            values[outlier],
            np.full(int(outlier.sum()), height),
            xerr=bounds[outlier],
            linestyle="none",
            marker=marker,
            markersize=7,
            color=darkened(light),
            markeredgecolor="white",
            markeredgewidth=0.6,
            elinewidth=1.2,
            zorder=4,
        )
    axes.set_yscale("log")
    axes.set_ylim(lowest / STAGGER ** (runs + 0.5), 3 * max(peak, 10 * lowest))
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    _limit(axes, points[np.isfinite(points)])
    number_ticks(axes.xaxis, axes.yaxis)
    distances = [
        f"W1: {distance_text(comparison.distances[run, place], comparison.distance_bounds[run, place])}"
        for run in range(1, runs)
    ]
    name = literal(comparison.places[place])
    below = f"\n{distances[0]}" if len(distances) == 1 else ""
    axes.set_title(f"{name}{below}", fontsize=11)
    unit = unit_of(map(str, matrices[:, place]))
    axes.set_xlabel(f"eigenvalue λ  ({unit})" if unit else "eigenvalue λ")


def _limit(axes: Axes, points: Any) -> None:
    """Set the ends of the horizontal axis: those of the points with a margin, and zero."""
    threshold = LINEAR * (float(np.abs(points).max()) or 1.0)
    low, high = float(points.min(initial=0.0)), float(points.max(initial=0.0))
    axes.set_xlim(MARGIN * low if low < -threshold else -threshold, MARGIN * high or threshold)
