"""Matplotlib figure of objectives at the same weights."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hesspec.applications.language.objectives_record import ObjectiveComparison
from hesspec.matrices import symbol_of
from hesspec.plot import FILL, OKABE_ITO
from hesspec.plot.figure import new_figure, styled
from hesspec.plot.style import DASHES, MARKERS, literal
from hesspec.plot.ticks import number_ticks

__all__ = ["plot_objectives"]


def plot_objectives(found: ObjectiveComparison) -> Figure:
    """Plot the largest |lambda| of each objective and matrix, and cosines of principal angles of the first matrix.

    See `ObjectiveComparison.plot`.
    """
    with styled():
        panels = 2 if found.first.size else 1
        figure = new_figure(5.4 * panels, 4.4)
        axes = np.atleast_1d(figure.subplots(1, panels))
        _eigenvalues(axes[0], found)
        if panels == 2:
            _cosines(axes[1], found)
        for panel in axes:
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return figure


def _eigenvalues(axes: Axes, found: ObjectiveComparison) -> None:
    names, matrices = found.objectives, list(dict.fromkeys(map(str, found.matrix)))
    ranks = np.arange(1, found.eigenvalues.shape[1] + 1)
    for place, name in enumerate(found.objective):
        colour, kind = OKABE_ITO[names.index(str(name)) % len(OKABE_ITO)], matrices.index(str(found.matrix[place]))
        values = np.abs(found.eigenvalues[place])
        axes.errorbar(
            ranks,
            values,
            # A bound above the value itself has no lower end on a logarithmic axis.
            [np.minimum(found.bounds[place], 0.999 * values), found.bounds[place]],
            color=colour,
            linestyle=DASHES[kind % len(DASHES)],
            marker=MARKERS[kind % len(MARKERS)],
            fillstyle="full" if kind == 0 else "none",
            markersize=4.5,
            linewidth=1.2,
            label=literal(f"{name}, {symbol_of(str(found.matrix[place]))}"),
        )
    axes.set_yscale("log")
    number_ticks(axes.yaxis)
    axes.set(xlabel="rank", ylabel="|eigenvalue|")


def _cosines(axes: Axes, found: ObjectiveComparison) -> None:
    shown = np.flatnonzero(found.pair_matrix == found.pair_matrix[0])
    ranks = np.arange(1, found.cosines.shape[1] + 1)
    for index, place in enumerate(shown):
        # Colours of pairs are none of the first objectives'.
        colour = OKABE_ITO[(index + 3) % len(OKABE_ITO)]
        marker = MARKERS[(index + 1) % len(MARKERS)]
        label = literal(f"{found.first[place]} and {found.second[place]}")
        axes.plot(ranks, found.cosines[place], color=colour, marker=marker, markersize=4.5, linewidth=1.4, label=label)
        axes.fill_between(ranks, found.low[place], found.high[place], color=colour, alpha=FILL, linewidth=0)
    axes.set(
        xlabel=f"principal angle of {literal(symbol_of(str(found.pair_matrix[0])))}", ylabel="cosine", ylim=(0, 1.03)
    )
