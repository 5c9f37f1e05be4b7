"""Figures of outliers and bulk edges: during training, against sample size, and of one matrix against another."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullFormatter

from hesspec.backend.number_text import exponent_text, three_digits
from hesspec.plot.style import FILL, LABEL_PITCH, STYLE, Look, check_not_empty, label_few_decades, settle, spread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from hesspec.spectra.power_law import PowerLaw
    from hesspec.spectra.spectrum import Spectrum

__all__ = ["plot_against_samples", "plot_hessian_against_gauss_newton", "plot_overlaps", "plot_training"]

MAX_TICKS = 8  # number of sample sizes that can be labelled below an axis without overlap

Array = npt.NDArray[np.float64]


def plot_training(
    spectra: Mapping[str, Spectrum],
    *,
    title: str | None = None,
    tracks: Sequence[npt.NDArray[np.int64]] | None = None,
) -> Figure:
    """Plot the outliers and the bulk edges at checkpoints of one training run.

    Parameters
    ----------
    spectra : mapping of str to Spectrum
        Spectra of one matrix by the names of the checkpoints, in the order of training. If each has an attribute
        `epoch`, and these ascend, the axis is the epoch; otherwise the names are evenly spaced.
    title : str, optional
        Title above the panel.
    tracks : sequence of int array (outliers,), optional
        Track numbers of each spectrum's outliers, from `hesspec.track_outliers`: outliers with the same number
        are joined, which shows crossings. By default outliers of the same rank and sign are joined.

    Returns
    -------
    matplotlib.figure.Figure
        Figure of 8 by 5 inches. The vertical axis is linear up to the largest extent of the bulk, and logarithmic
        beyond.

    Raises
    ------
    ValueError
        If there are no spectra, or the tracks do not match the outliers.
    """
    check_not_empty(spectra)
    members = list(spectra.values())
    epochs = [spectrum.attributes.get("epoch") for spectrum in members]
    numbers = [float(epoch) for epoch in epochs if isinstance(epoch, int | float)]
    by_epoch = len(numbers) == len(members) and all(np.diff(numbers) > 0)
    x = np.array(numbers) if by_epoch else np.arange(len(members), dtype=float)
    look = Look.of(0)
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
        _draw_outliers(axes, x, members, look, _ranks(members) if tracks is None else _checked(tracks, members))
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
        _draw_training_legend(figure, look, "rank" if tracks is None else "eigenvector")
        _label_last(figure, axes, float(x[-1]), members[-1], look)
    return figure


def _ranks(spectra: Sequence[Spectrum]) -> list[npt.NDArray[np.int64]]:
    """Number the outliers of each spectrum by sign and rank."""
    found = []
    for spectrum in spectra:
        positive = spectrum.outliers > 0
        found.append(np.where(positive, 2 * np.cumsum(positive), 2 * np.cumsum(~positive) + 1))
    return found


def _checked(tracks: Sequence[npt.NDArray[np.int64]], spectra: Sequence[Spectrum]) -> Sequence[npt.NDArray[np.int64]]:
    given, wanted = [len(numbers) for numbers in tracks], [spectrum.outliers.size for spectrum in spectra]
    if given != wanted:
        raise ValueError(f"tracks has {given} numbers for spectra with {wanted} outliers; pass one for each outlier.")
    return tracks


def _draw_outliers(
    axes: Axes,
    x: Array,
    spectra: Sequence[Spectrum],
    look: Look,
    numbers: Sequence[npt.NDArray[np.int64]],
    *,
    magnitude: bool = False,
) -> None:
    """Draw all outliers; those with the same number are joined by a line, except for negative numbers."""
    lines: dict[tuple[int, int], list[tuple[int, float, float]]] = {}
    for place, (spectrum, mine) in enumerate(zip(spectra, numbers, strict=True)):
        bounds = spectrum.error_bounds[spectrum.is_outlier]
        for rank, (value, bound, number) in enumerate(zip(spectrum.outliers, bounds, mine, strict=True)):
            key = (int(number), 0) if number >= 0 else (-1, 1000 * place + rank)
            lines.setdefault(key, []).append((place, float(value), float(bound)))
    for line in lines.values():
        # NaN if there is no outlier with this number, so that no line crosses the gap.
        height, bounds = np.full(x.size, np.nan), np.full(x.size, np.nan)
        for place, value, bound in line:
            height[place], bounds[place] = value, bound
        negative = magnitude and (height[np.isfinite(height)] < 0).all()
        if magnitude:
            height = np.abs(height)
        axes.plot(x, height, color=look.light, linewidth=0.8, alpha=0.6, zorder=2)
        axes.errorbar(
            x,
            height,
            yerr=bounds,
            linestyle="none",
            marker=look.marker,
            markersize=6,
            color=look.dark,
            markerfacecolor="white" if negative else look.dark,
            markeredgecolor=look.dark if negative else "white",
            markeredgewidth=1.2 if negative else 0.6,
            elinewidth=1.4,
            capsize=3,
            zorder=4,
        )


def _label_last(figure: Figure, axes: Axes, x: float, spectrum: Spectrum, look: Look) -> None:
    """Write the values of the last checkpoint's outliers next to their points, without overlap."""
    outliers = np.sort(spectrum.outliers)
    settle(figure)
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


def _draw_training_legend(figure: Figure, look: Look, joined: str) -> None:
    area = Patch(facecolor=(*to_rgb(look.light), FILL), linewidth=0)
    line = Line2D([], [], color=look.light, linewidth=1.4)
    point = Line2D([], [], color=look.dark, marker=look.marker, markersize=6, linestyle="none")
    handles: list[Any] = [point, (area, line)]
    figure.legend(
        handles,
        [f"outliers, those of one {joined} joined", "bulk, between its edges"],
        loc="outside lower left",
        ncols=2,
        handler_map={tuple: HandlerTuple(ndivide=1)},
    )


def plot_against_samples(spectra: Mapping[int, Spectrum], *, title: str | None = None) -> Figure:
    """Plot the outliers and the bulk edges of one matrix against the number of training samples per class.

    Parameters
    ----------
    spectra : mapping of int to Spectrum
        Spectra by the number of training samples per class. Outliers of the same sign and rank are joined, as
        eigenvectors of different networks cannot be compared.
    title : str, optional
        Title above the panel.

    Returns
    -------
    matplotlib.figure.Figure
        Figure of 8 by 5.5 inches, with logarithmic axes. Power laws are fitted to the largest outlier and to both bulk
        edges, the lower one if it is negative, where `hesspec.spectra.power_law.earned_power_law` finds them supported.
        The legend shows their exponents with 95% intervals, and says which laws are not shown.

    Raises
    ------
    ValueError
        If there are no spectra.
    """
    from hesspec.spectra.power_law import earned_power_law, what_is_hidden  # noqa: PLC0415 - slow to import

    check_not_empty(spectra)
    sizes = sorted(spectra)
    members = [spectra[size] for size in sizes]
    x = np.array(sizes, float)
    look = Look.of(0)
    edges = np.array([spectrum.bulk_edges for spectrum in members])
    # Without negative eigenvalues the lower edge is zero up to rounding, which a logarithmic axis would show.
    floor = np.array([spectrum.rounding for spectrum in members])
    lower, upper = (np.where(edge > floor, edge, np.nan) for edge in (-edges[:, 0], edges[:, 1]))
    # The fit ignores missing and negative values.
    largest = np.array([s.outliers.max(initial=-np.inf) for s in members])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 5.5), layout="constrained")
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log")
        _draw_outliers(axes, x, members, look, _ranks(members), magnitude=True)
        axes.plot(x, upper, color=look.light, linewidth=1.6, marker="_", markersize=9)
        axes.plot(x, lower, color=look.light, linewidth=1.4, linestyle=(0, (1.5, 1.5)), marker="_", markersize=9)
        low = axes.get_ylim()[0]
        axes.fill_between(x, np.full(x.size, low), upper, color=look.light, alpha=FILL, linewidth=0)
        axes.set_ylim(bottom=low)
        handles: list[Any] = [
            Line2D([], [], color=look.dark, marker=look.marker, markersize=6, linestyle="none"),
            (
                Patch(facecolor=(*to_rgb(look.light), FILL), linewidth=0),
                Line2D([], [], color=look.light, linewidth=1.6),
            ),
        ]
        labels = ["outliers, those of one rank joined", "bulk, up to its upper edge"]
        if np.isfinite(lower).any():
            handles.append(Line2D([], [], color=look.light, linewidth=1.4, linestyle=(0, (1.5, 1.5))))
            labels.append("its lower edge, |λ|")
        if any((spectrum.outliers < 0).any() for spectrum in members):
            handles.append(
                Line2D([], [], color=look.dark, marker=look.marker, markerfacecolor="white", linestyle="none")
            )
            labels.append("negative outliers, |λ|")
        counts, hidden = [spectrum.outliers.size for spectrum in members], {}
        for name, values, dashes in (
            ("largest outlier", largest, (0, (5, 2))),
            ("upper edge", upper, (0, (6, 2, 1.5, 2))),
            ("lower edge", lower, (0, (8, 2, 1.5, 2, 1.5, 2))),
        ):
            if not (np.isfinite(values) & (values > 0)).any():
                continue
            law = earned_power_law(x, values, counts)
            if isinstance(law, str):
                hidden[name] = law
                continue
            _draw_law(axes, x, values, law, dashes)
            handles.append(Line2D([], [], color="#000000", linewidth=1.4, linestyle=dashes))
            labels.append(f"{name} ∝ n^a, a = {exponent_text(law.exponent, law.lower, law.upper)}")
        if hidden:
            handles.append(Line2D([], [], linestyle="none"))
            labels.append(textwrap.fill(what_is_hidden(hidden), 48))
        axes.grid(axis="y", color="#E6E6E6", linewidth=0.6)
        axes.set_axisbelow(True)
        if len(sizes) <= MAX_TICKS:
            axes.set_xticks(x, [f"{size}" for size in sizes])
            axes.xaxis.set_minor_formatter(NullFormatter())
        label_few_decades(axes.yaxis)
        axes.set(xlabel="training samples per class (n)", ylabel="|λ|  (loss per squared parameter)")
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=2,
            handler_map={tuple: HandlerTuple(ndivide=1)},
            alignment="left",
            title=title,
            title_fontproperties={"size": 14, "weight": "bold"},
        )
    return figure


def _draw_law(axes: Axes, x: Array, values: Array, law: PowerLaw, dashes: Any) -> None:
    """Draw a fitted power law between the first and the last size in the fit."""
    ends = x[np.isfinite(values) & (values > 0)][[0, -1]]
    axes.plot(ends, law.prefactor * ends**law.exponent, color="#000000", linewidth=1.4, linestyle=dashes, zorder=3)


def plot_hessian_against_gauss_newton(
    pairs: Mapping[str, tuple[Spectrum, Spectrum]], *, title: str | None = None
) -> Figure:
    """Plot the positive outliers of Hess against those of G by rank, with the line of equality.

    Parameters
    ----------
    pairs : mapping of str to (Spectrum, Spectrum)
        Spectra of Hess and of G for the same network and data, by their labels in the legend. Several pairs differ in
        colour and marker.
    title : str, optional
        Title above the panel.

    Returns
    -------
    matplotlib.figure.Figure
        Figure of 6 by 6 inches, with logarithmic axes of equal scale. Outliers without a partner are counted in the
        legend and not drawn.

    Raises
    ------
    ValueError
        If there are no pairs.
    """
    check_not_empty(pairs)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 6.4), layout="constrained")
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", aspect="equal")
        every = [np.empty(0)]
        for index, (label, (hessian, gauss_newton)) in enumerate(pairs.items()):
            look = Look.of(index)
            (y, y_bounds), (x, x_bounds) = _positive(hessian), _positive(gauss_newton)
            count = min(x.size, y.size)
            every += [x[:count], y[:count]]
            alone = [
                f"{v.size - count} of {name} without a partner" for name, v in (("Hess", y), ("G", x)) if v.size > count
            ]
            axes.errorbar(
                x[:count],
                y[:count],
                xerr=x_bounds[:count],
                yerr=y_bounds[:count],
                linestyle="none",
                marker=look.marker,
                markersize=8 if index == 0 else 6,
                color=look.dark,
                markeredgecolor="white",
                markeredgewidth=0.6,
                elinewidth=1.4,
                capsize=3,
                zorder=4,
                label=f"{label}: {count} pair{'' if count == 1 else 's'}" + "".join(f", {words}" for words in alone),
            )
        values = np.concatenate(every)
        low, high = (values.min() / 1.3, values.max() * 1.3) if values.size else (0.1, 10.0)
        axes.plot(
            [low, high], [low, high], color="#555555", linewidth=1, linestyle=(0, (5, 2)), label="equal", zorder=1
        )
        axes.set(
            xlim=(low, high),
            ylim=(low, high),
            xlabel="outliers of G  (loss per squared parameter)",
            ylabel="outliers of Hess, of the same rank",
        )
        label_few_decades(axes.xaxis, axes.yaxis)
        axes.grid(color="#E6E6E6", linewidth=0.6)
        axes.set_axisbelow(True)
        figure.legend(
            loc="outside upper left",
            alignment="left",
            title=title,
            title_fontproperties={"size": 14, "weight": "bold"},
        )
    return figure


def plot_overlaps(overlaps: npt.ArrayLike, *, title: str | None = None) -> Figure:
    """Plot the overlaps of the outliers' eigenvectors of Hess and of G.

    Parameters
    ----------
    overlaps : array (outliers of Hess, outliers of G)
        Squared cosines, from `hesspec.eigenvector_overlaps`; NaN is white.
    title : str, optional
        Title above the panel.

    Returns
    -------
    matplotlib.figure.Figure
        Figure of 6.4 by 5.6 inches, from light (0) to dark (1).

    Raises
    ------
    ValueError
        If one of them has no outliers.
    """
    squared = np.asarray(overlaps, np.float64)
    if squared.ndim != 2 or not squared.size:
        raise ValueError(f"There are no overlaps to plot: their shape is {squared.shape}. Both matrices need outliers.")
    rows, columns = squared.shape
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        axes = figure.subplots()
        colours = LinearSegmentedColormap.from_list("overlaps", ["#F5F7F8", "#004569"]).with_extremes(bad="white")
        image = axes.imshow(
            squared, cmap=colours, vmin=0, vmax=1, extent=(0.5, columns + 0.5, rows + 0.5, 0.5), interpolation="none"
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
        axes.set(xlabel="outlier of G, by size", ylabel="outlier of Hess, by size")
        figure.colorbar(image, label="squared overlap of the eigenvectors", shrink=0.9)
        if title is not None:
            figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    return figure


def _positive(spectrum: Spectrum) -> tuple[Array, Array]:
    """Return positive outliers, largest first, and their error bounds."""
    mine = spectrum.is_outlier & (spectrum.eigenvalues > 0)
    return spectrum.eigenvalues[mine], spectrum.error_bounds[mine]
