"""Matplotlib figure of calibration: mean outcome against mean probability."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hesspec.applications.language.calibration_record import Calibration
from hesspec.plot import OKABE_ITO
from hesspec.plot.figure import panel_of, styled

__all__ = ["plot_reliability"]


def plot_reliability(found: Calibration, ax: Axes | None = None, **line: Any) -> Figure:
    """Plot mean outcome against mean probability of each bin, with intervals of 95%; calibrated bins are on the line.

    See `Calibration.plot`.
    """
    with styled():
        axes, figure = panel_of(ax, 4.8, 4.6)
        axes.axline((0, 0), (1, 1), color="#888888", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        errors = np.maximum([found.observed - found.low, found.high - found.observed], 0)
        look = {"color": OKABE_ITO[0], "marker": "o", "markersize": 5, "linewidth": 1.4, "capsize": 2.5}
        axes.errorbar(found.predicted, found.observed, errors, **{**look, "elinewidth": 1.0, **line})
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        if ax is None:
            axes.set(xlabel="predicted probability", ylabel="share of outcomes")
            area = f", AUROC {found.auroc:.3f}" if found.mixed_pairs else ""
            axes.set_title(f"ECE {found.ece:.3f}, Brier {found.brier:.3f}{area}")
        return figure
