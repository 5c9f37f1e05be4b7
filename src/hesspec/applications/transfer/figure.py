"""Matplotlib figures of transfer: effective data, and its power law."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hesspec.applications.transfer.effective_record import EffectiveData
from hesspec.applications.transfer.law_record import TransferLaw
from hesspec.plot import OKABE_ITO
from hesspec.plot.figure import figure_of, new_figure, panel_of, styled
from hesspec.plot.style import literal
from hesspec.plot.ticks import number_ticks

__all__ = ["plot_effective", "plot_law"]

GREY = "#444444"
MARKERS = ("o", "s", "^", "D", "v")


def plot_effective(found: EffectiveData, ax: Axes | None = None) -> Figure:
    """Plot the curves from scratch with arrows from D_F to D_E, and D_E / D_F against D_F; see `EffectiveData.plot`."""
    with styled():
        if ax is not None:
            _multipliers(ax, found)
            return figure_of(ax)
        figure = new_figure(10, 4.2)
        left, right = figure.subplots(1, 2)
        _inversions(left, found)
        _multipliers(right, found)
        return figure


def _inversions(axes: Axes, found: EffectiveData) -> None:
    several = len(_networks(found)) > 1
    for index, network in enumerate(_networks(found)):
        color, marker = OKABE_ITO[index % len(OKABE_ITO)], MARKERS[index % len(MARKERS)]
        curve = found.scratch_networks == network
        label = f"{literal(network)}, from scratch" if several else "from scratch"
        axes.plot(
            found.scratch_sizes[curve],
            found.scratch_values[curve],
            color=color,
            marker=marker,
            markersize=4,
            linewidth=1.6,
            label=label,
        )
        mine = found.networks == network
        axes.plot(
            found.sizes[mine],
            found.values[mine],
            marker=marker,
            color=color,
            markerfacecolor="white",
            linestyle=(0, (4, 2)),
            linewidth=1.2,
            label=None if several and index else f"from {literal(found.start)}",
        )
        for place in np.flatnonzero(mine & np.isfinite(found.effective)):
            axes.annotate(
                "",
                (found.effective[place], found.values[place]),
                (found.sizes[place], found.values[place]),
                arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 0.9, "shrinkA": 4, "shrinkB": 0},
            )
    axes.set(
        xscale="log", yscale="log", xlabel=f"training set ({literal(found.unit)})", ylabel=literal(found.statistic)
    )
    number_ticks(axes.xaxis, axes.yaxis)
    axes.set_title(f"{literal(found.statistic)}: {literal(found.of)}", fontsize=11)
    axes.legend(fontsize=9.5)


def _multipliers(axes: Axes, found: EffectiveData) -> None:
    networks = _networks(found)
    known = np.isfinite(found.effective)
    for index, network in enumerate(networks):
        color, marker = OKABE_ITO[index % len(OKABE_ITO)], MARKERS[index % len(MARKERS)]
        mine = (found.networks == network) & known
        sizes, middle = found.sizes[mine], found.multiplier[mine]
        # Ends that are 0 or infinity, which the curve does not reach, are drawn out of the picture.
        low = np.maximum(found.lower[mine] / sizes, middle * 1e-6)
        high = np.minimum(found.upper[mine] / sizes, middle * 1e6)
        # Networks next to each other, so that their intervals can be told apart.
        places = sizes * 1.03 ** (index - (len(networks) - 1) / 2)
        axes.errorbar(
            places,
            middle,
            yerr=[middle - low, high - middle],
            color=color,
            marker=marker,
            markersize=5.5,
            linewidth=1.4,
            elinewidth=1,
            capsize=3,
            label=literal(network),
        )
    axes.axhline(1, color=GREY, linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel=f"fine-tuned on $D_F$ ({literal(found.unit)})", ylabel="$D_E/D_F$")
    points = found.multiplier[known]
    finite = np.concatenate([points, (found.lower / found.sizes)[known], (found.upper / found.sizes)[known]])
    finite = finite[np.isfinite(finite) & (finite > points.min() / 30) & (finite < points.max() * 30)]
    axes.set_ylim(min(finite.min(), 1) / 1.4, max(finite.max(), 1) * 1.4)
    number_ticks(axes.xaxis, axes.yaxis)
    axes.set_title(f"Effective data by {literal(found.statistic)}", fontsize=11)
    if len(networks) > 1:
        axes.legend(fontsize=9.5)


def _networks(found: EffectiveData) -> list[str]:
    return list(dict.fromkeys(map(str, found.networks)))


def plot_law(law: TransferLaw, ax: Axes | None = None) -> Figure:
    """Plot D_T against D_F for each N, and the law; see `TransferLaw.plot`."""
    if not law.used.any():
        raise ValueError("This law was given and not fitted, so that it has no points to draw.")
    with styled():
        axes, figure = panel_of(ax, 6.4, 4.2)
        for index, count in enumerate(np.unique(law.point_parameters[law.used])):
            color, marker = OKABE_ITO[index % len(OKABE_ITO)], MARKERS[index % len(MARKERS)]
            mine = law.used & (law.point_parameters == count)
            axes.plot(
                law.point_sizes[mine],
                law.point_transferred[mine],
                marker,
                color=color,
                markersize=6,
                label=f"N = {count:,.10g}",
            )
            ends = np.geomspace(law.point_sizes[law.used].min(), law.point_sizes[law.used].max(), 2)
            axes.plot(ends, law.transferred(ends, count), color=color, linewidth=1.2)
        axes.set(
            xscale="log", yscale="log", xlabel=f"$D_F$ ({literal(law.unit)})", ylabel=f"$D_T$ ({literal(law.unit)})"
        )
        number_ticks(axes.xaxis, axes.yaxis)
        left = f"; {law.left_out} left out" if law.left_out else ""
        axes.set_title(rf"$\alpha$ = {law.alpha.value:.3g}, $\beta$ = {law.beta.value:.3g}{left}")
        # Beside the lines, which may be anywhere.
        axes.legend(fontsize=9.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure
