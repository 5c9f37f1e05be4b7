"""Matplotlib figures of stability measurements."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hesspec.applications.stability.record import LyapunovExponents, SharpnessDimension, StabilityRun
from hesspec.backend.number_text import three_digits
from hesspec.plot import FILL, OKABE_ITO
from hesspec.plot.figure import new_figure, styled
from hesspec.plot.style import literal
from hesspec.plot.ticks import number_ticks
from hesspec.spectra.record import Array

__all__ = ["plot_dimension", "plot_lyapunov", "plot_run"]

ESTIMATE, EDGE, SHARP = OKABE_ITO[0], OKABE_ITO[1], OKABE_ITO[2]


def plot_dimension(found: SharpnessDimension) -> Figure:
    """Plot exponents in decreasing order, and their cumulative sum, whose zero is the sharpness dimension.

    See `SharpnessDimension.plot`.
    """
    with styled():
        figure = new_figure(10, 4.2)
        left, right = figure.subplots(1, 2)
        curves = {
            name: (getattr(found, f"{name}exponents"), getattr(found, f"{name}counts"))
            for name in ("", "low_", "high_")
        }
        grid = np.linspace(0, found.dimension, 1_500)
        low, high = (_level_at(*curves[name], grid) for name in ("low_", "high_"))
        levels, counts = curves[""]
        left.fill_between(grid, low, high, color=ESTIMATE, alpha=FILL, linewidth=0, step="mid", label="95% bracket")
        left.stairs(levels, np.append(0.0, np.cumsum(counts)), baseline=None, color=ESTIMATE, linewidth=1.8)
        left.axhline(0, color="#444444", linewidth=0.8)
        finite = levels[np.isfinite(levels)]
        # The strongest contractions are cut off, as they would flatten everything else.
        lowest = float(np.quantile(finite, 0.02)) if finite.size else -1.0
        highest = max(found.largest_bracket[1], 0.0)
        left.set_ylim(1.15 * min(lowest, -0.05 * max(highest, 1e-12)), 1.15 * highest or 0.1)
        left.set(xlabel="direction, largest exponent first", ylabel="exponent per step")
        left.set_title("Exponents")
        low_sum, high_sum = (_sum_at(*curves[name], grid) for name in ("low_", "high_"))
        sums = _sum_at(levels, counts, grid)
        right.fill_between(grid, low_sum, high_sum, color=ESTIMATE, alpha=FILL, linewidth=0)
        right.plot(grid, sums, color=ESTIMATE, linewidth=1.8, label="sum of the largest exponents")
        right.axhline(0, color="#444444", linewidth=0.8)
        right.plot([found.low, found.high], [0, 0], color=EDGE, linewidth=3, alpha=0.6, solid_capstyle="butt")
        right.plot(found.value, 0, "o", color=EDGE, markersize=7, zorder=3)
        top = max(float(high_sum.max()), 1e-12)
        right.set_ylim(-0.6 * top, 1.15 * top)
        for axes in (left, right):
            axes.set_xlim(0, found.dimension)
        right.set(xlabel="number of directions", ylabel="sum of exponents")
        right.set_title(
            f"Sharpness dimension {three_digits(found.value)} "
            f"({three_digits(found.low)} to {three_digits(found.high)}) of {found.dimension:,}"
        )
        right.legend(loc="lower left")
        left.legend(loc="lower left")
    return figure


def _level_at(levels: Array, counts: Array, grid: Array) -> Array:
    ends = np.cumsum(counts)
    found = levels[np.minimum(np.searchsorted(ends, grid), len(ends) - 1)]
    return np.asarray(np.maximum(found, -1e9))


def _sum_at(levels: Array, counts: Array, grid: Array) -> Array:
    """Sum of the largest exponents for any number of directions."""
    ends = np.append(0.0, np.cumsum(counts))
    sums = np.append(0.0, np.cumsum(np.maximum(levels, -1e9) * counts))
    return np.asarray(np.interp(grid, ends, sums))


def plot_lyapunov(found: LyapunovExponents) -> Figure:
    """Plot Lyapunov exponents as running means over the steps; see `LyapunovExponents.plot`."""
    with styled():
        figure = new_figure(6.4, 4.2)
        axes = figure.subplots()
        steps = np.arange(1, len(found.growth) + 1)
        means = np.cumsum(found.growth, axis=0) / steps[:, None]
        for index, column in enumerate(means.T):
            axes.plot(steps + found.discarded, column, color=OKABE_ITO[index % len(OKABE_ITO)], linewidth=1.4)
        axes.axhline(0, color="#444444", linewidth=0.8)
        axes.set(xlabel="step", ylabel="mean growth per step")
        axes.set_title(f"{found.exponents.size} largest Lyapunov exponents of {found.dimension:,}")
    return figure


def plot_run(run: StabilityRun) -> Figure:
    """Plot sharpness, its threshold and the loss against the step; see `StabilityRun.plot`."""
    if not run.steps.size:
        raise ValueError("There are no measurements to plot yet: call the monitor in the training loop.")
    with styled():
        rows = 3 if run.is_preconditioned else 2
        figure = new_figure(7, 5.2 if rows == 2 else 7)
        panels = list(figure.subplots(rows, 1, sharex=True, height_ratios=[2] * (rows - 1) + [1]))
        _sharpness(panels[0], run, run.sharpness, run.sharpness_bounds, "sharpness $\\lambda_{max}$")
        deciding = panels[0]
        if run.is_preconditioned:
            deciding = panels[1]
            _sharpness(deciding, run, run.preconditioned, run.preconditioned_bounds, "preconditioned sharpness")
        deciding.plot(run.steps, run.thresholds, color=EDGE, linestyle=(0, (5, 2)), linewidth=1.6, label="threshold")
        for panel in panels[:-1]:
            panel.set_ylim(bottom=0)
            panel.legend(loc="lower right")
        panels[0].set_title(f"{literal(run.optimizer)}: last at {three_digits(float(run.ratios[-1]))} of its threshold")
        panels[-1].plot(run.steps, run.risk, color=SHARP, linewidth=1.6)
        panels[-1].set(xlabel="step", ylabel="loss")
        if (run.risk > 0).all():
            panels[-1].set_yscale("log")
            number_ticks(panels[-1].yaxis)
    return figure


def _sharpness(axes: Axes, run: StabilityRun, values: Array, bounds: Array, label: str) -> None:
    axes.fill_between(run.steps, values - bounds, values + bounds, color=ESTIMATE, alpha=FILL, linewidth=0)
    axes.plot(run.steps, values, color=ESTIMATE, linewidth=1.6, label=label)
    axes.set_ylabel("eigenvalue")
