"""One panel of spectra: density on a linear or logarithmic axis, eigenvalues by rank, or distribution function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from hesspec.plot.style import FILL, Look, bulk_on_logarithmic_axis, with_unit
from hesspec.plot.ticks import number_ticks
from hesspec.spectra.sampling import share_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes

    from hesspec.spectra.spectrum import Spectrum

__all__ = ["GRID", "PANELS", "draw_bulk", "draw_points", "set_heights"]

Array = npt.NDArray[np.float64]

GRID: Final = "#E6E6E6"
BAND: Final = 0.15  # opacity of a bracket, on which its curve must be visible
# Points of the curves by rank and of the distribution function.
POINTS: Final = 400
# The axis of the distribution function is linear around zero, this share of the bulk's width to each side.
LINEAR_SHARE: Final = 1e-2


def draw_linear(axes: Axes, spectra: Sequence[Spectrum], looks: Sequence[Look]) -> None:
    """Draw the density of the bulk, and resolved eigenvalues at their share of the spectrum."""
    for look, spectrum in zip(looks, spectra, strict=True):
        density = spectrum.density()
        draw_bulk(axes, density["eigenvalue"].to_numpy(), density["density"].to_numpy(), look)
        draw_points(axes, spectrum, spectrum.eigenvalues, look)
    axes.set(
        xlabel=with_unit("eigenvalue λ", spectra),
        ylabel="bulk: share of eigenvalues per unit of λ\npoints: resolved eigenvalues, 1/p each",
    )
    set_heights(axes, min(1 / spectrum.dimension for spectrum in spectra))


def draw_log(axes: Axes, spectra: Sequence[Spectrum], looks: Sequence[Look]) -> None:
    """Draw the density of log |lambda|, down to the smallest resolved |lambda|."""
    for look, spectrum in zip(looks, spectra, strict=True):
        draw_bulk(axes, *bulk_on_logarithmic_axis(spectrum), look)
        draw_points(axes, spectrum, np.abs(spectrum.eigenvalues), look)
    axes.set(
        # Zero, which is all that the zero operator has, has no logarithm.
        xscale="log" if any(spectrum.norm > 0 for spectrum in spectra) else "linear",
        xlabel=with_unit("|λ|", spectra),
        ylabel="bulk: share of eigenvalues per decade\npoints: resolved eigenvalues, 1/p each",
    )
    number_ticks(axes.xaxis)
    set_heights(axes, min(1 / spectrum.dimension for spectrum in spectra))


def draw_scree(axes: Axes, spectra: Sequence[Spectrum], looks: Sequence[Look]) -> None:
    """Draw |lambda| against its rank: resolved eigenvalues with error bounds, and the bulk with its bracket."""
    lowest = []
    for look, spectrum in zip(looks, spectra, strict=True):
        sizes, last = _ranked(spectrum)
        smallest = _smallest(spectrum)
        lowest.append(smallest)
        x = np.geomspace(smallest, max(spectrum.norm, smallest * 1.001), POINTS)
        fewest, most = _rank_bracket(spectrum, x)
        axes.fill_betweenx(x, np.maximum(fewest, 1.0), np.maximum(most, 1.0), color=look.light, alpha=BAND, linewidth=0)
        seen = sizes >= smallest
        axes.plot(last[seen], sizes[seen], color=look.light, linestyle=look.dashes, linewidth=look.line, label="bulk")
        _draw_ranked(axes, spectrum, look)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="rank, largest |λ| first",
        ylabel=with_unit("|λ|", spectra),
        xlim=(0.8, 1.3 * max(spectrum.dimension for spectrum in spectra)),
    )
    axes.set_ylim(min(lowest), 1.6 * max(spectrum.norm for spectrum in spectra) or 1.0)
    number_ticks(axes.xaxis, axes.yaxis)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def draw_cdf(axes: Axes, spectra: Sequence[Spectrum], looks: Sequence[Look]) -> None:
    """Draw the share of eigenvalues up to lambda, with the bracket that holds it at each point with 95%."""
    edges = [edge for spectrum in spectra for edge in spectrum.bulk_edges if np.isfinite(edge)]
    extent = max(map(abs, edges), default=0.0) or max(spectrum.norm for spectrum in spectra) or 1.0
    threshold = LINEAR_SHARE * extent
    low = min(0.0, *(float(spectrum.nodes[0]) for spectrum in spectra))
    high = max(0.0, *(float(spectrum.nodes[-1]) for spectrum in spectra))
    ends = np.arcsinh(np.array([1.3 * low - threshold, 1.3 * high + threshold]) / threshold)
    grid = threshold * np.sinh(np.linspace(ends[0], ends[1], POINTS))
    for look, spectrum in zip(looks, spectra, strict=True):
        x = np.sort(np.concatenate([grid, spectrum.nodes]))
        bracket = spectrum.cdf_bracket(x)
        lower, upper = bracket["operator_lower"].to_numpy(), bracket["operator_upper"].to_numpy()
        if spectrum.is_positive:
            upper = np.where(x < 0, 0.0, upper)
        axes.fill_between(x, lower, upper, color=look.light, alpha=BAND, linewidth=0)
        axes.step(
            x,
            spectrum.cdf(x)["cdf"].to_numpy(),
            where="post",
            color=look.light,
            linestyle=look.dashes,
            linewidth=look.line,
            label="bulk",
        )
    axes.set_xscale("symlog", linthresh=threshold, linscale=0.5)
    axes.set(
        xlabel=f"{with_unit('eigenvalue λ', spectra)}, linear around 0",
        ylabel="share of eigenvalues up to λ",
        xlim=grid[[0, -1]],
    )
    axes.set_ylim(-0.02, 1.02)
    number_ticks(axes.xaxis)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


PANELS: Final[dict[str, Callable[[Axes, Sequence[Spectrum], Sequence[Look]], None]]] = {
    "linear": draw_linear,
    "log": draw_log,
    "scree": draw_scree,
    "cdf": draw_cdf,
}
"""Functions that draw spectra with their looks into axes, by the kind of the panel."""


def draw_bulk(axes: Axes, x: Array, y: Array, look: Look) -> None:
    """Draw the density of a bulk as a filled curve."""
    seen = y > 0  # where kernels underflow the density is zero and has no logarithm
    axes.fill_between(x[seen], y[seen], color=look.light, alpha=FILL, linewidth=0)
    axes.plot(x[seen], y[seen], color=look.light, linestyle=look.dashes, linewidth=look.line, label="bulk")


def draw_points(axes: Axes, spectrum: Spectrum, positions: Array, look: Look) -> None:
    """Draw resolved eigenvalues at their share of the spectrum, outliers large and with error bounds."""
    outlier = spectrum.is_outlier
    heights = spectrum.eigenvalue_weights
    axes.plot(positions[~outlier], heights[~outlier], **_small(look), zorder=3)
    axes.errorbar(positions[outlier], heights[outlier], xerr=spectrum.error_bounds[outlier], **_large(look), zorder=4)


def _small(look: Look) -> dict[str, Any]:
    """Points of resolved eigenvalues of the bulk."""
    return {
        "linestyle": "none",
        "marker": look.marker,
        "markersize": look.size / 3 + 0.5,
        "color": look.light,
        "markeredgewidth": 0,
    }


def _large(look: Look) -> dict[str, Any]:
    """Points of outliers."""
    return {
        "linestyle": "none",
        "marker": look.marker,
        "markersize": look.size,
        "color": look.dark,
        "markerfacecolor": look.face,
        "markeredgecolor": "white" if look.filled else look.dark,
        "markeredgewidth": 0.6 if look.filled else 1.2,
        "elinewidth": look.line,
        "capsize": look.size / 3,
    }


def set_heights(axes: Axes, lowest: float) -> None:
    """Set a logarithmic height that holds the curves and the points, of which the lowest are at `lowest`."""
    curves = [np.asarray(line.get_ydata()) for line in axes.get_lines() if line.get_label() == "bulk"]
    peak = max((float(curve.max()) for curve in curves if curve.size), default=lowest)
    axes.set_yscale("log")
    axes.set_ylim(lowest / 3, 3 * max(peak, 10 * lowest))
    number_ticks(axes.yaxis)
    axes.margins(x=0.03)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_ranked(axes: Axes, spectrum: Spectrum, look: Look) -> None:
    """Draw resolved eigenvalues at their ranks among the resolved ones; negative ones are hollow."""
    weights = spectrum.dimension * spectrum.eigenvalue_weights
    order = np.argsort(-np.abs(spectrum.eigenvalues), kind="stable")
    values, bounds, outlier = spectrum.eigenvalues[order], spectrum.error_bounds[order], spectrum.is_outlier[order]
    ranks = np.cumsum(weights[order])
    for chosen, style in ((~outlier, {**_small(look), "markersize": 0.55 * look.size}), (outlier, _large(look))):
        for sign in (1, -1):
            mine = chosen & (np.sign(values) == sign)
            if not mine.any():
                continue
            hollow = {"markerfacecolor": "white", "markeredgecolor": style["color"], "markeredgewidth": 1.1}
            axes.errorbar(
                ranks[mine],
                np.abs(values[mine]),
                yerr=bounds[mine],
                **{"elinewidth": 1.0, **style, **(hollow if sign < 0 else {})},
                zorder=3 if chosen is not outlier else 4,
            )


def _ranked(spectrum: Spectrum) -> tuple[Array, Array]:
    """|lambda| of the whole measure, descending, and the number of eigenvalues that are at least as large."""
    sizes = np.abs(spectrum.nodes)
    order = np.argsort(-sizes, kind="stable")
    weights = spectrum.weights[order] * spectrum.dimension
    # A quadrature node stands for the eigenvalues around it: half of them are larger.
    return sizes[order], np.maximum(np.cumsum(weights) - np.where(weights > 1.5, weights / 2, 0), 1.0)


def _smallest(spectrum: Spectrum) -> float:
    """Smallest |lambda| that is resolved."""
    magnitude = bulk_on_logarithmic_axis(spectrum)[0]
    if magnitude.size:
        return float(magnitude[0])
    positive = np.abs(spectrum.nodes)[spectrum.nodes != 0]
    return float(positive.min()) / 2 if positive.size else 1e-12


def _rank_bracket(spectrum: Spectrum, sizes: Array) -> tuple[Array, Array]:
    """Fewest and most eigenvalues of at least these sizes, at 95% confidence for each, if resolved ones are simple.

    Resolved eigenvalues are counted. For the others, the Chebyshev-Markov-Stieltjes inequalities bracket the measure of
    the first probe between its nodes on both sides, and `share_limits` the share of eigenvalues from it.
    """
    resolved = np.abs(spectrum.eigenvalues)[:, None] >= sizes
    counted = (spectrum.dimension * spectrum.eigenvalue_weights) @ resolved
    first = spectrum.bulk_probe == 0
    nodes, weights = spectrum.bulk_nodes[first], spectrum.bulk_weights[first]
    rest = spectrum.dimension * float(spectrum.bulk_weights.sum())
    if not nodes.size or spectrum.exact:
        return counted, counted
    order = np.argsort(nodes, kind="stable")
    nodes, sums = nodes[order], np.concatenate([[0.0], np.cumsum(weights[order]) / weights.sum()])
    last = nodes.size
    # Nodes at least as large, and at most as large with the other sign.
    above, below = np.searchsorted(nodes, sizes), np.searchsorted(nodes, -sizes, side="right")
    fewest = 1 - sums[np.minimum(above + 1, last)] + sums[np.maximum(below - 1, 0)]
    most = 1 - sums[np.maximum(above - 1, 0)]
    if not spectrum.is_positive:
        most = most + sums[np.minimum(below + 1, last)]
    low, high = share_limits(np.clip(fewest, 0, 1), np.clip(most, 0, 1), rest)
    # They are whole numbers.
    return counted + np.floor(rest * low), counted + np.ceil(rest * high)
