"""Matplotlib figure of the spectra of blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hesspec.matrices import symbol_of
from hesspec.plot import OKABE_ITO
from hesspec.plot.figure import figure_of, new_figure, styled
from hesspec.plot.style import literal

if TYPE_CHECKING:
    from hesspec.applications.blocks.record import BlockSpectra

__all__ = ["plot_blocks"]

# Inches for each block, and for axes and titles; with more blocks than this, only some are named.
ROW: Final = 0.2
FRAME: Final = 1.3
MOST_NAMED: Final = 40


def plot_blocks(found: BlockSpectra, ax: Axes | None = None) -> Figure:
    """Plot the largest eigenvalue and the share of the trace of each block, and the distances between blocks.

    See `BlockSpectra.plot`.
    """
    with styled():
        if ax is not None:
            _draw_largest(ax, found)
            return figure_of(ax)
        height = FRAME + ROW * max(min(len(found), MOST_NAMED), 8)
        several = len(found) > 1
        figure = new_figure(11.0 if several else 7.0, height)
        panels = figure.subplots(1, 3 if several else 2, width_ratios=[1, 1, 1.15] if several else [1, 1])
        _draw_largest(panels[0], found)
        _draw_shares(panels[1], found)
        if several:
            _draw_distances(figure, panels[2], found)
    return figure


def _rows(axes: Axes, found: BlockSpectra, *, named: bool = True) -> None:
    count = len(found)
    every = max(1, -(-count // MOST_NAMED))
    axes.set_yticks(range(0, count, every), [literal(name) for name in found.names[::every]] if named else [])
    axes.set_ylim(count - 0.5, -0.5)


def _draw_largest(axes: Axes, found: BlockSpectra) -> None:
    """Largest |eigenvalue| with its bound, and the mean |eigenvalue|, of each block."""
    places, largest = np.arange(len(found)), found.largest
    means = np.array([np.abs(each.nodes) @ each.weights for each in found.spectra.values()])
    for sign, marker, label in ((largest >= 0, "o", "largest eigenvalue"), (largest < 0, "s", "most negative")):
        if sign.any():
            axes.errorbar(
                np.abs(largest)[sign],
                places[sign],
                xerr=found.largest_bounds[sign],
                fmt=marker,
                color=OKABE_ITO[0],
                markersize=5,
                linewidth=1.2,
                label=label,
            )
    axes.plot(means, places, "D", color=OKABE_ITO[1], markersize=4, linestyle="", label="mean |eigenvalue|")
    if (means > 0).any():
        axes.set_xscale("log")
    axes.set_xlabel(f"eigenvalue of {literal(symbol_of(str(found.attributes.get('matrix', 'the matrix'))))}")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    _rows(axes, found)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handletextpad=0.2, columnspacing=0.9, fontsize=9)


def _draw_shares(axes: Axes, found: BlockSpectra) -> None:
    """Share of the trace and of the parameters, or the trace where that of the whole is not known."""
    places, known = np.arange(len(found)), found.is_whole and found.trace != 0
    values = 100 * found.trace_shares if known else found.traces
    errors = 200 * found.trace_share_errors if known else 2 * found.trace_errors
    axes.barh(places, values, height=0.62, color=OKABE_ITO[5], label="trace")
    axes.errorbar(values, places, xerr=errors, fmt="none", ecolor="#333333", elinewidth=1)
    if known:
        axes.plot(
            100 * found.parameters / found.whole,
            places,
            "|",
            color="#000000",
            markersize=9,
            markeredgewidth=1.8,
            label="parameters",
        )
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handletextpad=0.4, columnspacing=0.9, fontsize=9)
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.set_xlabel("share of the whole in %" if known else "trace")
    _rows(axes, found, named=False)


def _draw_distances(figure: Figure, axes: Axes, found: BlockSpectra) -> None:
    image = axes.imshow(found.distances[0], cmap="cividis", vmin=0, vmax=1, aspect="auto")
    _rows(axes, found, named=False)
    axes.set_xticks([])
    axes.set_xlabel("same blocks, in the same order")
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03)
    bar.set_label("distance of shapes")
