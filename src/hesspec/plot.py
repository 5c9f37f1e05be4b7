"""Figures of spectra for talks and papers, in matplotlib."""

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

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from hesspec.result import Spectrum

__all__ = ["plot_spectrum", "plot_training"]

Array = npt.NDArray[np.float64]

# Okabe and Ito's palette without its yellow, which is too light for lines on white.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (3, 1.5)),
    (0, (8, 3)),
    (0, (1, 3)),
)

DISPLAY_NAMES = {
    "Hessian": "Hess",
    "GaussNewton": "G",
    "Residual": "H",
    "GaussNewtonClass": "G_class",
    "GaussNewtonCross": "G_cross",
    "GaussNewtonWithin": "G_within",
    "GaussNewtonSame": "G_same",
}

FILL = 0.16  # opacity of the bulk, under points that must be seen on it

LABEL_PITCH = 12.0  # points between neighbouring labels, a line of 9 pt text set upright
LABEL_REACH = 40.0  # points; further from its eigenvalue a label would not be read as its own

STYLE: dict[Any, Any] = {
    "font.size": 11.0,
    "axes.labelsize": 11.0,
    "axes.titlesize": 12.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.linewidth": 0.8,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.fontsize": 11.0,
    "legend.frameon": False,
    "figure.titlesize": 14.0,
}


class _Look(NamedTuple):
    """How one spectrum of an overlay is told from the others: by colour, marker and dashes."""

    light: str
    dark: tuple[float, float, float]
    marker: str
    dashes: Any
    size: float  # of markers, in points

    @classmethod
    def of(cls, index: int) -> _Look:
        colour = OKABE_ITO[index % len(OKABE_ITO)]
        # Later spectra get smaller markers, so that eigenvalues that coincide are both seen.
        return cls(
            colour,
            darkened(colour),
            MARKERS[index % len(MARKERS)],
            DASHES[index % len(DASHES)],
            (9.0, 5.5, 4.5)[min(index, 2)],
        )


class _Owner(NamedTuple):
    """An outlier that wants a label."""

    value: float
    height: float
    look: _Look


def darkened(colour: str) -> tuple[float, float, float]:
    """Colour of the points that belong to an area: the same hue at 60% of its brightness."""
    red, green, blue = (0.6 * channel for channel in to_rgb(colour))
    return red, green, blue


def spread(targets: Array, pitch: float, low: float, high: float) -> Array:
    """Positions at least `pitch` apart in [low, high], nearest to the targets in least squares.

    Parameters
    ----------
    targets : array (n,)
        Where the labels would be if they could overlap, ascending.
    pitch, low, high : float
        In the unit of the targets; n labels must fit, (n - 1) pitch <= high - low.

    Returns
    -------
    array (n,)
        Ascending.

    Notes
    -----
    With u_i = x_i - i pitch the constraint is that u ascends: isotonic regression, which pooling
    adjacent violators solves.
    """
    pools: list[tuple[float, int]] = []
    for index, target in enumerate(targets):
        mean, count = float(target) - index * pitch, 1
        while pools and pools[-1][0] >= mean:
            earlier, size = pools.pop()
            mean, count = (earlier * size + mean * count) / (size + count), size + count
        pools.append((mean, count))
    level: Array = np.repeat([mean for mean, _ in pools], [count for _, count in pools])
    level = np.clip(level, low, high - (len(targets) - 1) * pitch)
    return np.asarray(level + pitch * np.arange(len(targets)))


def bulk_on_logarithmic_axis(spectrum: Spectrum) -> tuple[Array, Array]:
    """|lambda|, shape (n,), and the density of its decimal logarithm there, of both signs."""
    density = spectrum.log_density()
    return 10 ** density["log10_magnitude"].to_numpy(), density["density"].to_numpy()


def three_digits(value: float) -> str:
    """Value to three significant digits with a true minus sign, for labels in figures."""
    size = abs(value)
    if size == 0 or 1e-3 <= size < 999.5:
        text = f"{value:#.3g}".rstrip(".") if size else "0"
    elif 999.5 <= size < 1e5:
        text = f"{value:.0f}"
    else:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "\N{MINUS SIGN}")


def plot_spectrum(spectra: Mapping[str, Spectrum], *, title: str | None = None) -> Figure:
    """Figure of one or several spectra, on a linear axis and on a logarithmic one beside it.

    The bulk is a light filled curve. Resolved eigenvalues are points at their share of the spectrum, 1/p unless an
    exact spectrum has them several times; of these, outliers are dark and carry their error bounds as horizontal bars
    and their values, largest first as far as there is room. The same function draws train against test, and Hess, G and
    H over one another: the labels say which is which.

    Parameters
    ----------
    spectra : mapping of str to Spectrum
        Label in the legend and spectrum, in the order in which they are drawn.
    title : str, optional
        Above both panels.

    Returns
    -------
    matplotlib.figure.Figure
        11 by 5 inches, no text below 9 pt.

    Raises
    ------
    ValueError
        If there is no spectrum.
    """
    _check_not_empty(spectra)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 5), layout="constrained")
        linear, logarithmic = figure.subplots(1, 2)
        looks = [_Look.of(index) for index in range(len(spectra))]
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


def _check_not_empty(spectra: Mapping[str, Spectrum]) -> None:
    if not spectra:
        raise ValueError("There is no spectrum to plot: the mapping is empty. Give {label: spectrum}.")


def _draw_bulk(axes: Axes, x: Array, y: Array, look: _Look) -> None:
    seen = y > 0  # where the kernels have underflowed there is nothing to draw, and no logarithm
    axes.fill_between(x[seen], y[seen], color=look.light, alpha=FILL, linewidth=0)
    axes.plot(x[seen], y[seen], color=look.light, linestyle=look.dashes, linewidth=1.4, label="bulk")


def _draw_points(axes: Axes, spectrum: Spectrum, positions: Array, look: _Look) -> None:
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


def _draw_inset(axes: Axes, spectra: Sequence[Spectrum], looks: Sequence[_Look]) -> None:
    """Enlarge the bulk where outliers leave it a sliver of the linear axis."""
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
    # The inset's own tick labels stand to its left.
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


def _draw_legend(figure: Figure, spectra: Mapping[str, Spectrum], looks: Sequence[_Look], title: str | None) -> None:
    matrices = {spectrum.attributes.get("matrix") for spectrum in spectra.values()}
    handles: list[Any] = []
    labels = []
    for (label, spectrum), look in zip(spectra.items(), looks, strict=True):
        area = Patch(facecolor=(*to_rgb(look.light), FILL), linewidth=0)
        line = Line2D([], [], color=look.light, linestyle=look.dashes, linewidth=1.4)
        point = Line2D([], [], color=look.dark, marker=look.marker, markersize=look.size, linestyle="none")
        count = spectrum.outliers.size
        equation = " = G + H" if label == "Hess" and {"Hessian", "GaussNewton", "Residual"} <= matrices else ""
        handles.append((area, line, point))
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


def _settle(figure: Figure) -> None:
    """Lay the figure out: only then is it known how long an axis is in points."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)


def _label_outliers(
    figure: Figure, panels: tuple[Axes, Axes], spectra: Sequence[Spectrum], looks: Sequence[_Look]
) -> None:
    """Write values above the outliers, pushed apart; those that would land too far are left out."""
    _settle(figure)
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
    """Label the outliers of one side of the bulk, given with their abscissae in ascending order."""
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


def plot_training(spectra: Mapping[str, Spectrum], *, title: str | None = None) -> Figure:
    """Figure of the outliers and of the bulk's edges at checkpoints of one training run.

    Parameters
    ----------
    spectra : mapping of str to Spectrum
        Name of the checkpoint and spectrum of one matrix there, in the order of training. Where
        each has an attribute `epoch`, and they ascend, the axis is the epoch; otherwise the names
        stand side by side.
    title : str, optional
        Above the panel.

    Returns
    -------
    matplotlib.figure.Figure
        8 by 5 inches. The vertical axis is linear as far from zero as the bulk reaches at any
        checkpoint, and logarithmic beyond.

    Raises
    ------
    ValueError
        If there is no spectrum.
    """
    _check_not_empty(spectra)
    members = list(spectra.values())
    epochs = [spectrum.attributes.get("epoch") for spectrum in members]
    numbers = [float(epoch) for epoch in epochs if isinstance(epoch, int | float)]
    by_epoch = len(numbers) == len(members) and all(np.diff(numbers) > 0)
    x = np.array(numbers) if by_epoch else np.arange(len(members), dtype=float)
    look = _Look.of(0)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        edges = np.array([spectrum.bulk_edges for spectrum in members])
        finite = np.abs(edges[np.isfinite(edges) & (edges != 0)])
        threshold = float(finite.max()) if finite.size else 1e-3 * max(s.norm for s in members) or 1.0
        axes.set_yscale("symlog", linthresh=threshold)
        axes.fill_between(x, edges[:, 0], edges[:, 1], color=look.light, alpha=FILL, linewidth=0)
        for column in range(2):
            axes.plot(x, edges[:, column], color=look.light, linewidth=1.4)
        for positive in (True, False):
            _draw_ranks(axes, x, members, look, positive=positive)
        axes.axhline(0, color="#888888", linewidth=0.6, zorder=0)
        axes.grid(axis="y", color="#E6E6E6", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.margins(x=0.06)
        axes.set(
            ylabel="eigenvalue λ  (loss per squared parameter)",
            xlabel="epoch" if by_epoch else "checkpoint",
        )
        if not by_epoch:
            axes.set_xticks(x, list(spectra))
        if title is not None:
            axes.set_title(title, fontsize=14, fontweight="bold", pad=12)
        _draw_training_legend(figure, look)
        _label_last(figure, axes, float(x[-1]), members[-1], look)
    return figure


def _draw_ranks(axes: Axes, x: Array, spectra: Sequence[Spectrum], look: _Look, *, positive: bool) -> None:
    """Draw the outliers of one sign, those of the same rank joined by a line."""
    values, bounds = [], []
    for spectrum in spectra:
        mine = spectrum.is_outlier & ((spectrum.eigenvalues > 0) == positive)
        values.append(spectrum.eigenvalues[mine])
        bounds.append(spectrum.error_bounds[mine])
    for rank in range(max(map(len, values))):
        # Not a number where there is no outlier of this rank: no line leaps over such a checkpoint.
        height = np.array([found[rank] if len(found) > rank else np.nan for found in values])
        axes.plot(x, height, color=look.light, linewidth=0.8, alpha=0.6, zorder=2)
        axes.errorbar(
            x,
            height,
            yerr=[found[rank] if len(found) > rank else np.nan for found in bounds],
            linestyle="none",
            marker=look.marker,
            markersize=6,
            color=look.dark,
            markeredgecolor="white",
            markeredgewidth=0.6,
            elinewidth=1.4,
            capsize=3,
            zorder=4,
        )


def _label_last(figure: Figure, axes: Axes, x: float, spectrum: Spectrum, look: _Look) -> None:
    """Write the last checkpoint's outliers beside their points, pushed apart."""
    outliers = np.sort(spectrum.outliers)
    _settle(figure)
    to_points = 72 / figure.dpi
    low, high = (float(axes.bbox.y0) * to_points, float(axes.bbox.y1) * to_points)
    while outliers.size and (outliers.size - 1) * LABEL_PITCH > high - low:
        outliers = np.delete(outliers, np.argmin(np.abs(outliers)))
    targets = np.array([float(axes.transData.transform((x, value))[1]) * to_points for value in outliers])
    for value, target, position in zip(outliers, targets, spread(targets, LABEL_PITCH, low, high), strict=True):
        axes.annotate(
            three_digits(float(value)),
            xy=(x, float(value)),
            xytext=(16, position - target),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=look.dark,
            arrowprops={
                "arrowstyle": "-",
                "color": look.dark,
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 4,
            },
            annotation_clip=False,
        )


def _draw_training_legend(figure: Figure, look: _Look) -> None:
    area = Patch(facecolor=(*to_rgb(look.light), FILL), linewidth=0)
    line = Line2D([], [], color=look.light, linewidth=1.4)
    point = Line2D([], [], color=look.dark, marker=look.marker, markersize=6, linestyle="none")
    handles: list[Any] = [point, (area, line)]
    figure.legend(
        handles,
        ["outliers, those of one rank joined", "bulk, between its edges"],
        loc="outside lower left",
        ncols=2,
        handler_map={tuple: HandlerTuple(ndivide=1)},
    )
