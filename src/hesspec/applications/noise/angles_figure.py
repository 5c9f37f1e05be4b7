"""Matplotlib figure of principal angles."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hesspec.applications.noise.angles_record import PrincipalAngles
from hesspec.plot import FILL, OKABE_ITO
from hesspec.plot.figure import panel_of, styled
from hesspec.plot.style import literal

__all__ = ["plot_angles"]


def plot_angles(found: PrincipalAngles, ax: Axes | None = None, **line: Any) -> Figure:
    """Plot the cosines of principal angles with their bounds; see `PrincipalAngles.plot`."""
    with styled():
        axes, figure = panel_of(ax, 6.4, 4.2)
        numbers = np.arange(1, found.cosines.size + 1)
        (drawn,) = axes.plot(numbers, found.cosines, **{"color": OKABE_ITO[0], "marker": "o", "linewidth": 1.4, **line})
        axes.fill_between(numbers, found.low, found.high, color=drawn.get_color(), alpha=FILL, linewidth=0)
        axes.set_ylim(0, 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if ax is None:
            axes.set(xlabel="principal angle, smallest first", ylabel="cosine")
            axes.set_title(
                f"Eigenspaces of {literal(found.first)} and {literal(found.second)}, {found.cosines.size} dimensions"
            )
        return figure
