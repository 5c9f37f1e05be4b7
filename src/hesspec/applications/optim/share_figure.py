"""Matplotlib figure of dominant shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hesspec.matrices import symbol_of
from hesspec.plot import FILL, OKABE_ITO
from hesspec.plot.figure import new_figure, styled
from hesspec.plot.style import DASHES, MARKERS, literal

if TYPE_CHECKING:
    from hesspec.applications.optim.share_record import DominantShare
    from hesspec.applications.optim.share_run import DominantShareRun

__all__ = ["plot_share_run", "plot_shares"]


def plot_shares(found: DominantShare, ax: Axes | None = None) -> Figure:
    """Plot the dominant share of each vector against the number of eigenvectors, with bounds.

    Parameters
    ----------
    found : DominantShare
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.figure.Figure
        6.4 by 4.4 inches if it is new.
    """
    with styled():
        axes = new_figure(6.4, 4.4).subplots() if ax is None else ax
        counts = np.arange(1, found.k + 1)
        shares = [found.dominant(int(k)) for k in counts]
        for index, name in enumerate(found.names):
            look = index % len(OKABE_ITO)
            value, low, high = (np.array([each[part][index] for each in shares]) for part in range(3))
            colour = OKABE_ITO[look]
            axes.plot(
                counts,
                value,
                color=colour,
                marker=MARKERS[look],
                markersize=5,
                linewidth=1.6,
                linestyle=DASHES[look],
                label=literal(name),
            )
            axes.fill_between(counts, low, high, color=colour, alpha=FILL, linewidth=0)
        axes.plot(counts, np.sqrt(counts / found.dimension), color="#777777", linewidth=1.2, label="random vector")
        axes.set(xlim=(0.7, found.k + 0.3), ylim=(0, 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        matrix = literal(symbol_of(str(found.attributes.get("matrix", "matrix"))))
        axes.set(xlabel=f"number k of eigenvectors of {matrix}", ylabel="dominant share $\\|P_k v\\| / \\|v\\|$")
        if found.optimizer:
            axes.set_title(literal(found.optimizer))
        axes.legend(loc="best")
    return cast("Figure", axes.get_figure(root=True))


def plot_share_run(found: DominantShareRun, ax: Axes | None = None) -> Figure:
    """Plot the dominant share of each vector against the step, with bounds.

    Parameters
    ----------
    found : DominantShareRun
    ax : matplotlib.axes.Axes, optional

    Returns
    -------
    matplotlib.figure.Figure
        6.4 by 4 inches if it is new.

    Raises
    ------
    ValueError
        If there are no measurements.
    """
    if not found.steps.size:
        raise ValueError("There is nothing to plot: no step was measured.")
    with styled():
        axes = new_figure(6.4, 4).subplots() if ax is None else ax
        for column, name in enumerate(found.names):
            look = column % len(OKABE_ITO)
            axes.plot(
                found.steps,
                found.values[:, column],
                color=OKABE_ITO[look],
                marker=MARKERS[look],
                markersize=5,
                linewidth=1.6,
                linestyle=DASHES[look],
                label=literal(name),
            )
            low, high = found.low[:, column], found.high[:, column]
            axes.fill_between(found.steps, low, high, color=OKABE_ITO[look], alpha=FILL, linewidth=0)
        random = np.sqrt(found.eigenvectors / found.dimension)
        axes.plot(found.steps, random, color="#777777", linewidth=1.2, label="random vector")
        axes.set(ylim=(0, 1.02), xlabel="step")
        axes.set_ylabel(f"share in the top {int(found.eigenvectors.max())} eigenvectors")
        if found.optimizer:
            axes.set_title(literal(found.optimizer))
        axes.legend(loc="best")
    return cast("Figure", axes.get_figure(root=True))
