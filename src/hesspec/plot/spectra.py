"""Figures of spectra at one point of training: overlaid, and with the tail of the bulk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hesspec.backend.number_text import exponent_text, three_digits
from hesspec.plot.style import (
    FILL,
    LABEL_PITCH,
    LABEL_REACH,
    STYLE,
    Look,
    bulk_on_logarithmic_axis,
    check_not_empty,
    law_text,
    settle,
    spread,
    tail_verdict,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from hesspec.spectra.marchenko_pastur import MarchenkoPasturFit
    from hesspec.spectra.spectrum import Spectrum
    from hesspec.spectra.tails import TailFit

__all__ = ["plot_spectrum", "plot_tail"]

Array = npt.NDArray[np.float64]


class _Owner(NamedTuple):
    """Outlier to be labelled."""

    value: float
    height: float
    look: Look


def plot_spectrum(spectra: Mapping[str, Spectrum], *, title: str | None = None) -> Figure:
    """Plot one or several spectra, on a linear axis and on a logarithmic axis.

    The bulk is a light filled curve. Resolved eigenvalues are points at their share of the spectrum, 1/p for simple
    ones; outliers among them are dark, with error bounds as horizontal bars and with their values, largest first as far
    as there is space. Use it to compare train with test, or Hess, G and H: the labels tell them apart.

    Parameters
    ----------
    spectra : mapping of str to Spectrum
        Spectra by their labels in the legend, in the order in which they are drawn.
    title : str, optional
        Title above both panels.

    Returns
    -------
    matplotlib.figure.Figure
        Figure of 11 by 5 inches, with text of at least 9 pt.

    Raises
    ------
    ValueError
        If there are no spectra.
    """
    check_not_empty(spectra)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 5), layout="constrained")
        linear, logarithmic = figure.subplots(1, 2)
        looks = [Look.of(index) for index in range(len(spectra))]
        for look, spectrum in zip(looks, spectra.values(), strict=True):
            density = spectrum.density()
            _draw_bulk(linear, density["eigenvalue"].to_numpy(), density["density"].to_numpy(), look)
            _draw_points(linear, spectrum, spectrum.eigenvalues, look)
            _draw_bulk(logarithmic, *bulk_on_logarithmic_axis(spectrum), look)
            _draw_points(logarithmic, spectrum, np.abs(spectrum.eigenvalues), look)
        linear.set(
            title="linear axis",
            xlabel="eigenvalue λ  (loss per squared parameter)",
            ylabel="bulk: share of eigenvalues per unit of λ\npoints: resolved eigenvalues, 1/p each",
        )
        logarithmic.set(
            title="logarithmic axis, both signs, as far down as resolved",
            xscale="log",
            xlabel="|λ|  (loss per squared parameter)",
            ylabel="bulk: share of eigenvalues per decade\npoints: resolved eigenvalues, 1/p each",
        )
        lowest = min(1 / spectrum.dimension for spectrum in spectra.values())
        for axes in (linear, logarithmic):
            _set_heights(axes, lowest)
        _draw_inset(linear, list(spectra.values()), looks)
        _draw_legend(figure, spectra, looks, title)
        _label_outliers(figure, (linear, logarithmic), list(spectra.values()), looks)
    return figure


def _draw_bulk(axes: Axes, x: Array, y: Array, look: Look) -> None:
    seen = y > 0  # where kernels underflow the density is zero and has no logarithm
    axes.fill_between(x[seen], y[seen], color=look.light, alpha=FILL, linewidth=0)
    axes.plot(x[seen], y[seen], color=look.light, linestyle=look.dashes, linewidth=1.4, label="bulk")


def _draw_points(axes: Axes, spectrum: Spectrum, positions: Array, look: Look) -> None:
    outlier = spectrum.is_outlier
    heights = spectrum.eigenvalue_weights
    axes.plot(
        positions[~outlier],
        heights[~outlier],
        linestyle="none",
        marker=look.marker,
        markersize=3,
        color=look.light,
        markeredgewidth=0,
        zorder=3,
    )
    axes.errorbar(
        positions[outlier],
        heights[outlier],
        xerr=spectrum.error_bounds[outlier],
        linestyle="none",
        marker=look.marker,
        markersize=look.size,
        color=look.dark,
        markeredgecolor="white",
        markeredgewidth=0.6,
        elinewidth=1.4,
        capsize=3,
        zorder=4,
    )


def _set_heights(axes: Axes, lowest: float) -> None:
    curves = [np.asarray(line.get_ydata()) for line in axes.get_lines() if line.get_label() == "bulk"]
    peak = max((float(curve.max()) for curve in curves if curve.size), default=lowest)
    axes.set_yscale("log")
    axes.set_ylim(lowest / 3, 3 * max(peak, 10 * lowest))
    axes.margins(x=0.03)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_inset(axes: Axes, spectra: Sequence[Spectrum], looks: Sequence[Look]) -> None:
    """Draw an enlarged bulk if outliers leave little of the linear axis to it."""
    edges = np.array([spectrum.bulk_edges for spectrum in spectra])
    if not np.isfinite(edges).any():
        return
    low, high = float(np.nanmin(edges[:, 0])), float(np.nanmax(edges[:, 1]))
    left, right = axes.get_xlim()
    if not 0 < high - low < 0.2 * (right - left):
        return
    before, after = (low - left) / (right - left), (right - high) / (right - left)
    if max(before, after) < 0.4:
        return
    # The tick labels of the inset are on its left.
    start, end = (1 - after + 0.16, 0.99) if after > before else (0.12, before - 0.04)
    inset = axes.inset_axes((start, 0.42, end - start, 0.5))
    for spectrum, look in zip(spectra, looks, strict=True):
        density = spectrum.density()
        _draw_bulk(inset, density["eigenvalue"].to_numpy(), density["density"].to_numpy(), look)
        _draw_points(inset, spectrum, spectrum.eigenvalues, look)
    _set_heights(inset, min(1 / spectrum.dimension for spectrum in spectra))
    inset.set_xlim(low - 0.15 * (high - low), high + 0.15 * (high - low))
    inset.set_title("the bulk, enlarged", fontsize=10)
    inset.tick_params(labelsize=9)


def _draw_legend(figure: Figure, spectra: Mapping[str, Spectrum], looks: Sequence[Look], title: str | None) -> None:
    matrices = {spectrum.attributes.get("matrix") for spectrum in spectra.values()}
    handles: list[Any] = []
    labels = []
    for (label, spectrum), look in zip(spectra.items(), looks, strict=True):
        count = spectrum.outliers.size
        equation = " = G + H" if label == "Hess" and {"Hessian", "GaussNewton", "Residual"} <= matrices else ""
        handles.append(_legend_handle(look))
        labels.append(f"{label}{equation}: {count or 'no'} outlier{'' if count == 1 else 's'}")
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=4,
        handler_map={tuple: HandlerTuple(ndivide=1)},
        handlelength=2.6,
        alignment="left",
        title=title,
        title_fontproperties={"size": 14, "weight": "bold"},
    )


def _legend_handle(look: Look) -> tuple[Patch, Line2D, Line2D]:
    area = Patch(facecolor=(*to_rgb(look.light), FILL), linewidth=0)
    line = Line2D([], [], color=look.light, linestyle=look.dashes, linewidth=1.4)
    point = Line2D([], [], color=look.dark, marker=look.marker, markersize=look.size, linestyle="none")
    return area, line, point


def _label_outliers(
    figure: Figure, panels: tuple[Axes, Axes], spectra: Sequence[Spectrum], looks: Sequence[Look]
) -> None:
    """Write values above the outliers without overlap; those that would be too far away are omitted."""
    settle(figure)
    owners = [
        _Owner(float(value), float(height), look)
        for spectrum, look in zip(spectra, looks, strict=True)
        for value, height in zip(spectrum.outliers, spectrum.eigenvalue_weights[spectrum.is_outlier], strict=True)
    ]
    bulk = np.concatenate([spectrum.bulk_nodes for spectrum in spectra])
    for axes, place in zip(panels, (np.positive, np.abs), strict=True):
        taken = [float(x) for x in place(bulk)]
        placed = sorted((float(place(owner.value)), owner) for owner in owners)
        right = [(x, owner) for x, owner in placed if x > 0]
        left = [(x, owner) for x, owner in placed if x < 0]
        start, end = axes.get_xlim()
        _label_side(axes, right, max([start, *taken]), end)
        _label_side(axes, left, start, min([end, *taken]))


def _label_side(axes: Axes, placed: list[tuple[float, _Owner]], start: float, end: float) -> None:
    """Label the outliers on one side of the bulk, given with ascending abscissae."""
    to_points = 72 / axes.figure.dpi

    def across(x: float) -> float:
        return float(axes.transData.transform((x, axes.get_ylim()[0]))[0]) * to_points

    low, high = across(start) + 0.7 * LABEL_PITCH, across(end) - 0.5 * LABEL_PITCH
    while placed:
        targets = np.array([across(x) for x, _ in placed])
        if (len(placed) - 1) * LABEL_PITCH <= high - low:
            positions = spread(targets, LABEL_PITCH, low, high)
            if np.abs(positions - targets).max() <= LABEL_REACH:
                break
        placed.remove(min(placed, key=lambda item: abs(item[1].value)))
    else:
        return
    for (x, owner), target, position in zip(placed, targets, positions, strict=True):
        axes.annotate(
            three_digits(owner.value),
            xy=(x, owner.height),
            xytext=(position - target, 22),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=9,
            color=owner.look.dark,
            arrowprops={
                "arrowstyle": "-",
                "color": owner.look.dark,
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 4,
            },
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
            zorder=5,
        )


def plot_tail(spectra: Mapping[str, Spectrum], *, title: str | None = None) -> Figure:
    """Plot one or several spectra on logarithmic axes, with a power law fitted to the tail of each bulk.

    Parameters
    ----------
    spectra : mapping of str to Spectrum
        Spectra by their labels in the legend. The tail is that of |lambda|, both signs. The fit is drawn if
        `hesspec.spectra.tails.fit_tail` finds enough points and these resolve the tail, dashed if it does not show a
        power law. For a Gauss-Newton matrix with known numbers of samples and classes, the Marchenko-Pastur law for
        rows of noise is drawn as well.
    title : str, optional
        Title above the panel.

    Returns
    -------
    matplotlib.figure.Figure
        Figure of 8 by 5.5 inches, with text of at least 9 pt. The legend shows the exponent of the density per unit of
        |lambda| with its 95% interval, and whether a power law fits.

    Raises
    ------
    ValueError
        If there are no spectra.
    """
    check_not_empty(spectra)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 5.5), layout="constrained")
        axes = figure.subplots()
        handles: list[Any] = []
        labels = []
        for index, (label, spectrum) in enumerate(spectra.items()):
            look = Look.of(index)
            _draw_bulk(axes, *bulk_on_logarithmic_axis(spectrum), look)
            _draw_points(axes, spectrum, np.abs(spectrum.eigenvalues), look)
            handles.append(_legend_handle(look))
            labels.append(label)
            law = _law(spectrum)
            if law is not None:
                axes.plot(*law.per_decade(), color="#5A626B", linewidth=1.6, linestyle=(0, (6, 2, 1.5, 2)), zorder=4)
                handles.append(Line2D([], [], color="#5A626B", linewidth=1.6, linestyle=(0, (6, 2, 1.5, 2))))
                labels.append(f"Marchenko–Pastur law of {label}: {law_text(law)}")
            tail = _tail(spectrum)
            if tail is not None and tail.resolved:
                magnitude = np.geomspace(tail.start, tail.top, 50)
                per_decade = tail.density(magnitude) * magnitude * np.log(10)
                style: Any = "-" if tail.is_power_law else (0, (3, 1))
                axes.plot(magnitude, per_decade, color="white", linewidth=4.5, zorder=5)
                axes.plot(magnitude, per_decade, color=look.dark, linewidth=2.2, linestyle=style, zorder=5)
                exponent = exponent_text(tail.exponent, tail.lower, tail.upper)
                handles.append(Line2D([], [], color=look.dark, linewidth=2.2, linestyle=style))
                labels.append(f"tail of {label}: density ∝ |λ|^−a, a = {exponent}; {tail_verdict(tail)}")
        axes.set(
            xscale="log",
            xlabel="|λ|  (loss per squared parameter)",
            ylabel="bulk: share of eigenvalues per decade\npoints: resolved eigenvalues, 1/p each",
        )
        _set_heights(axes, min(1 / spectrum.dimension for spectrum in spectra.values()))
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            handler_map={tuple: HandlerTuple(ndivide=1)},
            handlelength=2.6,
            alignment="left",
            title=title,
            title_fontproperties={"size": 14, "weight": "bold"},
        )
    return figure


def _law(spectrum: Spectrum) -> MarchenkoPasturFit | None:
    from hesspec.spectra.marchenko_pastur import law_of_gauss_newton  # noqa: PLC0415 - slow to import, as below

    return law_of_gauss_newton(spectrum)


def _tail(spectrum: Spectrum) -> TailFit | None:
    from hesspec.spectra.tails import fit_tail  # noqa: PLC0415 - slow to import, and only needed here

    try:
        return fit_tail(spectrum, sign=0)
    except ValueError:
        return None  # too few points, or nearly all mass at one of them
