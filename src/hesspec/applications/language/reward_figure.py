"""Matplotlib figure of the spiked law of a reward head."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hesspec.applications.language.reward_record import RewardLaw
from hesspec.plot import FILL, OKABE_ITO
from hesspec.plot.figure import panel_of, styled

__all__ = ["plot_reward_law"]

# Points of the law, bins of the histogram between the ends of all eigenvalues.
GRID, BINS = 400, 40


def plot_reward_law(found: RewardLaw, ax: Axes | None = None) -> Figure:
    """Plot the eigenvalues as a histogram, the largest as a point, and the predicted bulk and outlier.

    See `RewardLaw.plot`.
    """
    with styled():
        axes, figure = panel_of(ax, 6, 4)
        ends = np.linspace(0, 1.02 * max(found.outlier, float(found.eigenvalues[0])), BINS + 1)
        axes.hist(found.eigenvalues, list(ends), density=True, color=OKABE_ITO[0], alpha=2 * FILL, label="eigenvalues")
        width = (found.high_edge - found.low_edge) / GRID
        x = np.linspace(found.low_edge + width / 2, found.high_edge - width / 2, GRID)
        axes.plot(x, found.density(x), color=OKABE_ITO[1], linewidth=1.6, label="predicted bulk")
        if found.visible:
            axes.axvline(
                found.outlier, color=OKABE_ITO[1], linewidth=1.4, linestyle=(0, (5, 2)), label="predicted outlier"
            )
        axes.plot(found.eigenvalues[0], 0, "o", color=OKABE_ITO[0], markersize=8, clip_on=False, label="largest")
        axes.set_xlim(0, ends[-1])
        axes.set_ylim(bottom=0)
        if ax is None:
            axes.set(xlabel="eigenvalue", ylabel="share of eigenvalues per unit")
            axes.set_title(f"Signal {found.strength:.2g}, threshold {found.threshold:.2g}")
            axes.legend(loc="upper center")
        return figure
