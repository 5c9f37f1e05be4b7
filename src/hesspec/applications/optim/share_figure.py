"""Matplotlib figure of dominant shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hesspec.matrices import symbol_of
from hesspec.plot import FILL, OKABE_ITO
from hesspec.plot.figure import panel_of, styled
from hesspec.plot.style import DASHES, MARKERS, literal

if TYPE_CHECKING:
    from hesspec.applications.optim.share_record import DominantShare
    from hesspec.applications.optim.share_run import DominantShareRun
    from hesspec.spectra.record import Array, Integers

__all__ = ["plot_share_run", "plot_shares"]


def plot_shares(found: DominantShare, ax: Axes | None = None) -> Figure:
    """Plot the dominant share of each vector against the number of eigenvectors, with bounds.

    See `DominantShare.plot`.
    """
    with styled():
        axes, figure = panel_of(ax, 6.4, 4.4)
        counts = np.arange(1, found.k + 1)
        _draw(axes, found, counts, np.array([found.dominant(int(k)) for k in counts]).swapaxes(0, 1), counts)
        axes.set(xlim=(0.7, found.k + 0.3), ylim=(0, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        matrix = literal(symbol_of(str(found.attributes.get("matrix", "matrix"))))
        axes.set(xlabel=f"number k of eigenvectors of {matrix}", ylabel="dominant share $\\|P_k v\\| / \\|v\\|$")
    return figure


def plot_share_run(found: DominantShareRun, ax: Axes | None = None) -> Figure:
    """Plot the dominant share of each vector against the step, with bounds; see `DominantShareRun.plot`."""
    if not found.steps.size:
        raise ValueError("There is nothing to plot: no step was measured.")
    with styled():
        axes, figure = panel_of(ax, 6.4, 4)
        shares = np.array([found.values, found.low, found.high])
        _draw(axes, found, found.steps, shares, found.eigenvectors)
        axes.set(ylim=(0, 1.02), xlabel="step")
        axes.set_ylabel(f"share in the top {int(found.eigenvectors.max())} eigenvectors")
    return figure


def _draw(
    axes: Axes, found: DominantShare | DominantShareRun, x: Integers, shares: Array, eigenvectors: Integers
) -> None:
    """Draw shares and their bounds (3, m, n) of n vectors over x (m,), and that of random vectors."""
    for index, name in enumerate(found.names):
        look = index % len(OKABE_ITO)
        colour = OKABE_ITO[look]
        value, low, high = shares[:, :, index]
        axes.plot(
            x,
            value,
            color=colour,
            marker=MARKERS[look],
            markersize=5,
            linewidth=1.6,
            linestyle=DASHES[look],
            label=literal(name),
        )
        axes.fill_between(x, low, high, color=colour, alpha=FILL, linewidth=0)
    axes.plot(x, np.sqrt(eigenvectors / found.dimension), color="#777777", linewidth=1.2, label="random vector")
    if found.optimizer:
        axes.set_title(literal(found.optimizer))
    axes.legend(loc="best")
