"""Matplotlib figures of exit times, tail indices and gradient noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hesspec.applications.noise.exit_record import ExitTimes
from hesspec.applications.noise.tail_record import GradientNoise, TailIndex
from hesspec.backend.number_text import plus_minus, three_digits
from hesspec.plot import FILL, OKABE_ITO
from hesspec.plot.figure import panel_of, styled
from hesspec.plot.ticks import number_ticks

__all__ = ["plot_mean_exit_times", "plot_noise", "plot_survival", "plot_tail_indices"]

MARKERS = ("o", "s", "^", "D", "v", "P")
THIN: dict[str, Any] = {"color": "#444444", "linewidth": 0.8}
LAW: dict[str, Any] = {"linestyle": (0, (5, 2)), "linewidth": 1.4}
# Of a new figure, in inches.
SIZE = (6.4, 4.2)
# Points of the law of exit times.
GRID = 400


def plot_survival(found: ExitTimes, ax: Axes | None = None) -> Figure:
    """Plot the share of runs that are still in the ball against time, and the exponential law of the same mean.

    See `ExitTimes.plot`.
    """
    with styled():
        axes, figure = panel_of(ax, *SIZE)
        times, shares = found.survival()
        end = found.horizon if found.censored else float(times[-1])
        axes.step([0, *times, end], [1, *shares, shares[-1] if shares.size else 1], where="post", color=OKABE_ITO[0])
        if found.exits:
            grid = np.linspace(0, end, GRID)
            axes.plot(grid, np.exp(-grid / found.mean), color=OKABE_ITO[1], label="exponential of this mean", **LAW)
            axes.legend(loc="lower left")
        axes.set_yscale("log")
        lowest = 0.5 * max(found.censored, 1) / found.steps.size
        axes.set(xlabel="time", ylabel="share of runs inside", xlim=(0, end), ylim=(lowest, 1.1))
        number_ticks(axes.yaxis)
        stayed = f", {found.censored:,} of {found.steps.size:,} stayed" if found.censored else ""
        axes.set_title(f"Mean exit time {three_digits(found.mean) if found.exits else 'unknown'}{stayed}")
    return figure


def plot_mean_exit_times(
    results: Mapping[str, Mapping[float, ExitTimes]],
    *,
    xlabel: str = "radius",
    laws: Mapping[str, Callable[[float], float]] | None = None,
    logarithmic: bool = True,
    ax: Axes | None = None,
) -> Figure:
    """Plot mean exit times with their 95% intervals, on logarithmic axes.

    Parameters
    ----------
    results : mapping of str to mapping of float to ExitTimes
        Series by their labels: results by the abscissa, such as the radius or the curvature.
    xlabel : str
        Label of the abscissa.
    laws : mapping of str to callable, optional
        Laws by the labels of series: the expected time as a function of the abscissa, drawn as a dashed line.
    logarithmic : bool
        Whether the abscissa is logarithmic, on which powers are straight; exponentials are straight without.
    ax : matplotlib.axes.Axes, optional
        Panel to draw into.

    Returns
    -------
    matplotlib.figure.Figure
        6.4 by 4.2 inches, or that of `ax`. Results without any exit are drawn at the lower end of their interval, as
        triangles.

    Raises
    ------
    ValueError
        If there are no results.
    """
    if not results or not all(results.values()):
        raise ValueError("There are no exit times to plot; pass {label: {radius: ExitTimes}}.")
    with styled():
        axes, figure = panel_of(ax, *SIZE)
        axes.set_yscale("log")
        if logarithmic:
            axes.set_xscale("log")
        for index, (label, series) in enumerate(results.items()):
            colour = OKABE_ITO[index % len(OKABE_ITO)]
            marker = MARKERS[index % len(MARKERS)]
            _points(axes, {x: found for x, found in series.items() if found.exits}, colour, marker, label)
            stayed = {x: found.interval[0] for x, found in series.items() if not found.exits}
            axes.plot(list(stayed), list(stayed.values()), "^", color=colour, fillstyle="none")
            if laws is not None and label in laws:
                low, high = min(series), max(series)
                grid = np.geomspace(low, high, GRID) if logarithmic else np.linspace(low, high, GRID)
                axes.plot(grid, [laws[label](float(x)) for x in grid], color=colour, **LAW)
        axes.set(xlabel=xlabel, ylabel="mean exit time")
        number_ticks(axes.yaxis, *([axes.xaxis] if logarithmic else []))
        axes.legend(loc="best")
    return figure


def _points(axes: Axes, series: Mapping[float, ExitTimes], colour: str, marker: str, label: str) -> None:
    means = np.array([found.mean for found in series.values()])
    low, high = np.array([found.interval for found in series.values()]).reshape(-1, 2).T
    errors = np.maximum([means - low, high - means], 0)
    axes.errorbar(
        list(series), means, errors, fmt=marker, color=colour, markersize=5, capsize=2, linewidth=1.2, label=label
    )


def plot_tail_indices(found: Mapping[str, TailIndex], ax: Axes | None = None) -> Figure:
    """Plot tail indices against the length of blocks, with standard errors.

    Parameters
    ----------
    found : mapping of str to TailIndex
        Results by their labels; a single one may have the label "", and then has a title instead.
    ax : matplotlib.axes.Axes, optional
        Panel to draw into.

    Returns
    -------
    matplotlib.figure.Figure
        6.4 by 4.2 inches, or that of `ax`. Circles are at the length of each result.
    """
    with styled():
        axes, figure = panel_of(ax, *SIZE)
        for index, (label, each) in enumerate(found.items()):
            colour = OKABE_ITO[index % len(OKABE_ITO)]
            values, errors = each.alpha_curve, each.alpha_curve_errors
            axes.fill_between(each.lengths, values - errors, values + errors, color=colour, alpha=FILL, linewidth=0)
            axes.plot(each.lengths, values, color=colour, linewidth=1.6, label=label)
            axes.plot(each.block, each.alpha, "o", color=colour, markersize=6)
        axes.axhline(2, **THIN)
        axes.set_xscale("log")
        axes.set(xlabel="length of blocks", ylabel="tail index α")
        number_ticks(axes.xaxis)
        if any(found):
            # Above the panel, as curves may be anywhere in it.
            axes.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
        else:
            (each,) = found.values()
            axes.set_title(f"α = {plus_minus(each.alpha, each.standard_error)} from blocks of {each.block:,}")
    return figure


def plot_noise(found: GradientNoise, ax: Axes | None = None) -> Figure:
    """Plot the tail index along each direction, with standard errors, eigenvectors first; see `GradientNoise.plot`."""
    parts = found.tail_indices()
    with styled():
        axes, figure = panel_of(ax, *SIZE)
        start = 1
        for name, each in parts.items():
            own = int(name == "bulk")
            places = np.arange(start, start + each.alphas.size)
            start += each.alphas.size
            label = f"{name}: {plus_minus(each.alpha, each.standard_error)}"
            axes.errorbar(
                places,
                each.alphas,
                each.standard_errors,
                fmt=MARKERS[own],
                color=OKABE_ITO[own],
                markersize=5,
                capsize=2,
                label=label,
            )
            axes.hlines(each.alpha, places[0] - 0.4, places[-1] + 0.4, color=OKABE_ITO[own], linewidth=1.2)
        axes.axhline(2, **THIN)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="direction, largest eigenvalue first", ylabel="tail index α")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.2 * (high - low))
        axes.legend(loc="upper right")
        block = next(iter(parts.values())).block
        axes.set_title(f"Gradient noise of {len(found.projections):,} minibatches, blocks of {block:,}")
    return figure
