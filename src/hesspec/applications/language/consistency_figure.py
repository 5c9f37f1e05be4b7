"""Matplotlib figure of tr F / tr G by parameter."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hesspec.applications.language.consistency_record import LabelConsistency
from hesspec.plot import FILL, OKABE_ITO
from hesspec.plot.figure import panel_of, styled
from hesspec.plot.style import literal
from hesspec.plot.ticks import number_ticks

__all__ = ["plot_consistency"]

# Inches for a row and for what is around the rows; rows that are drawn at most, those of the largest trace of G.
ROW, AROUND, MOST = 0.22, 1.1, 40


def plot_consistency(found: LabelConsistency, ax: Axes | None = None) -> Figure:
    """Plot tr F / tr G of each parameter as points with intervals of 95%, and that of all parameters as a band.

    See `LabelConsistency.plot`.
    """
    known = np.flatnonzero(np.isfinite(found.block_ratio) & (found.block_ratio > 0))
    largest = np.argsort(-found.block_gauss_newton[known], kind="stable")[:MOST]
    shown = np.sort(known[largest])
    with styled():
        axes, figure = panel_of(ax, 6.4, AROUND + ROW * max(len(shown), 6))
        places = np.arange(len(shown))
        ratio, low, high = (values[shown] for values in (found.block_ratio, found.block_low, found.block_high))
        axes.axvspan(found.low, found.high, color=OKABE_ITO[1], alpha=FILL, linewidth=0)
        axes.axvline(found.ratio, color=OKABE_ITO[1], linewidth=1.4, label="all parameters")
        axes.axvline(1, color="#888888", linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
        errors = np.maximum([ratio - low, high - ratio], 0)
        axes.errorbar(ratio, places, xerr=errors, fmt="o", color=OKABE_ITO[0], markersize=4.5, elinewidth=1.2)
        axes.set_yticks(places, [literal(name) for name in found.blocks[shown]])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xscale("log")
        number_ticks(axes.xaxis)
        if ax is None:
            axes.set_xlabel("tr F / tr G")
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
        return figure
