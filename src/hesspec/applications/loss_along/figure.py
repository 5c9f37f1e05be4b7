"""Matplotlib figures of the loss along directions."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hesspec.applications.loss_along.record import LossAlong
from hesspec.backend.number_text import three_digits
from hesspec.plot import OKABE_ITO
from hesspec.plot.figure import new_figure, styled

__all__ = ["plot_slices"]

LOSS, QUADRATIC = OKABE_ITO[0], OKABE_ITO[1]
# Slices that are drawn, and levels of the plane.
MOST_SLICES, LEVELS = 4, 12


def plot_slices(found: LossAlong) -> Figure:
    """Plot the loss along each direction with its quadratic and, if there is one, the plane; see `LossAlong.plot`."""
    slices = min(len(found.slopes), MOST_SLICES)
    panels = slices + bool(found.plane_losses.size)
    with styled():
        columns = min(panels, 3)
        rows = -(-panels // columns)
        figure = new_figure(max(4.2 * columns, 5.5), 3.8 * rows)
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        for number in range(slices):
            _slice(places[number], found, number)
        if found.plane_losses.size:
            _plane(places[slices], found)
        for empty in places[panels:]:
            empty.remove()
    return figure


def _slice(axes: Axes, found: LossAlong, number: int) -> None:
    t, loss, expected = found.displacements[number], found.losses[number], found.quadratic[number]
    axes.plot(t, expected, color=QUADRATIC, linestyle=(0, (5, 2)), linewidth=1.8, label="quadratic")
    axes.plot(t, loss, color=LOSS, linewidth=1.8, label="loss")
    axes.plot(0, found.risk, "o", color="#444444", markersize=5, zorder=3)
    axes.set(xlabel="displacement", ylabel="loss" if number == 0 else "")
    axes.set_title(f"Direction {number + 1}: curvature {three_digits(float(found.curvatures[number, number]))}")
    if number == 0:
        axes.legend(loc="upper center")


def _plane(axes: Axes, found: LossAlong) -> None:
    first, second = found.displacements[:2]
    shown = np.where(np.isfinite(found.plane_losses), found.plane_losses, np.nan)
    expected = found.plane_quadratic
    low, high = float(expected.min()), float(expected.max())
    levels = np.linspace(low, high, LEVELS) if high > low else np.array([low, low + 1])
    axes.contourf(first, second, shown.T, levels=levels, cmap="Blues_r", extend="both")
    axes.contour(first, second, expected.T, levels=levels, colors=[QUADRATIC], linewidths=1.2, linestyles=[(0, (5, 2))])
    axes.plot(0, 0, "o", color="#444444", markersize=5)
    axes.set(xlabel="along direction 1", ylabel="along direction 2")
    axes.set_title("Plane: loss (filled), quadratic (dashed)")
