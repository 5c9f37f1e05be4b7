"""Figure of a spectrum through training: a river of eigenvalues around its bulk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from hesspec.backend.number_text import three_digits
from hesspec.plot.figure import legend_above, new_figure, scale_of, styled
from hesspec.plot.panels import GRID
from hesspec.plot.style import FILL, LABEL_PITCH, LABEL_SIZE, Look, check_drawable, looks_of, settle, spread, with_unit
from hesspec.plot.ticks import number_ticks
from hesspec.spectra.densities import bulk_atoms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hesspec.spectra.spectrum import Spectrum

__all__ = ["draw_tracks", "plot_training", "ranks_of"]

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]

# Shares of the bulk inside the bands of a river, from the widest to the narrowest.
BANDS: Final = (0.99, 0.9, 0.5)
# Resolved eigenvalues of each sign that are drawn at least, outliers or not.
FEWEST: Final = 5


def plot_training(
    spectra: Mapping[str, Spectrum],
    *,
    width: float | None = None,
    title: str | None = None,
    tracks: Sequence[Numbers] | None = None,
) -> Figure:
    """Plot a spectrum through training as a river: its largest eigenvalues, and bands that hold the bulk.

    At every checkpoint, as many of the largest resolved eigenvalues of each sign are drawn as are outliers at any of
    them, and at least five: solid where they are outliers, and hollow where they are part of the bulk.

    Parameters
    ----------
    spectra : mapping of str to Spectrum
        Spectra of one matrix by the names of the checkpoints, in the order of training. If each has an attribute
        `epoch`, and these ascend, the axis is the epoch; otherwise the names are evenly spaced.
    width : float, optional
        Width of the figure in inches, see `plot_spectrum`; 8 by default.
    title : str, optional
        Title above the panel.
    tracks : sequence of int array (outliers,), optional
        Track numbers of each spectrum's outliers, from `hesspec.track_outliers`: outliers with the same number
        are joined, which shows crossings. By default eigenvalues of the same rank and sign are joined.

    Returns
    -------
    matplotlib.figure.Figure
        Figure whose vertical axis is linear up to the largest extent of the bulk, and logarithmic beyond. Bands hold
        50%, 90% and 99% of the bulk, the measure without outliers.

    Raises
    ------
    ValueError
        If there are no spectra, or the tracks do not match the outliers.
    """
    check_drawable(spectra)
    members = list(spectra.values())
    numbers = None if tracks is None else _checked(tracks, members)
    epochs = [spectrum.attributes.get("epoch") for spectrum in members]
    known = [float(epoch) for epoch in epochs if isinstance(epoch, int | float)]
    by_epoch = len(known) == len(members) and all(np.diff(known) > 0)
    x = np.array(known) if by_epoch else np.arange(len(members), dtype=float)
    scale = scale_of(width)
    look = looks_of({"": members[-1]}, scale=0.7 * scale)[0]
    with styled(scale):
        figure = new_figure(width or 8.0, 0.64 * (width or 8.0))
        axes = figure.subplots()
        edges = np.array([spectrum.bulk_edges for spectrum in members])
        finite = np.abs(edges[np.isfinite(edges) & (edges != 0)])
        threshold = float(finite.max()) if finite.size else 1e-3 * max(s.norm for s in members) or 1.0
        axes.set_yscale("symlog", linthresh=threshold, linscale=0.6)
        _draw_bands(axes, x, members, look)
        _draw_in_bulk(axes, x, members, look, joined=tracks is None)
        draw_tracks(axes, x, members, look, ranks_of(members) if numbers is None else numbers)
        axes.axhline(0, color="#888888", linewidth=0.6, zorder=0)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.margins(x=0.06)
        axes.set(
            ylabel=with_unit("eigenvalue λ", members),
            xlabel="epoch" if by_epoch else "checkpoint",
        )
        number_ticks(axes.yaxis)
        if by_epoch:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        else:
            axes.set_xticks(x, list(spectra))
        _draw_legend(figure, look, "rank" if tracks is None else "eigenvector", title)
        _label_last(figure, axes, float(x[-1]), members[-1], look, scale)
    return figure


def _draw_bands(axes: Axes, x: Array, spectra: Sequence[Spectrum], look: Look) -> None:
    """Draw bands between quantiles of the bulk, and lines along the widest."""
    for share in BANDS:
        tail = (1 - share) / 2
        ends = np.array([_quantiles(spectrum, (tail, 1 - tail)) for spectrum in spectra])
        axes.fill_between(x, ends[:, 0], ends[:, 1], color=look.light, alpha=FILL, linewidth=0)
    edges = np.array([spectrum.bulk_edges for spectrum in spectra])
    for column in range(2):
        axes.plot(x, edges[:, column], color=look.light, linewidth=1.4)


def _quantiles(spectrum: Spectrum, shares: tuple[float, float]) -> Array:
    """Quantiles of the bulk, the measure without outliers; the outermost are its edges."""
    nodes, weights, _ = bulk_atoms(spectrum)
    if not nodes.size:
        return np.full(2, np.nan)
    sums = np.cumsum(weights)
    low, high = spectrum.bulk_edges
    found = nodes[np.minimum(np.searchsorted(sums, np.array(shares) * sums[-1]), nodes.size - 1)]
    return np.clip(found, low, high) if shares[0] > (1 - BANDS[0]) / 2 + 1e-12 else np.array([low, high])


def ranks_of(spectra: Sequence[Spectrum]) -> list[Numbers]:
    """Number the outliers of each spectrum by sign and rank."""
    found = []
    for spectrum in spectra:
        positive = spectrum.outliers > 0
        found.append(np.where(positive, 2 * np.cumsum(positive), 2 * np.cumsum(~positive) + 1))
    return found


def _checked(tracks: Sequence[Numbers], spectra: Sequence[Spectrum]) -> Sequence[Numbers]:
    given, wanted = [len(numbers) for numbers in tracks], [spectrum.outliers.size for spectrum in spectra]
    if given != wanted:
        raise ValueError(f"tracks has {given} numbers for spectra with {wanted} outliers; pass one for each outlier.")
    return tracks


def _draw_in_bulk(axes: Axes, x: Array, spectra: Sequence[Spectrum], look: Look, *, joined: bool) -> None:
    """Draw the largest resolved eigenvalues that are not outliers."""
    for sign in (1, -1):
        count = max(FEWEST, *(int((np.sign(spectrum.outliers) == sign).sum()) for spectrum in spectra))
        heights = np.full((count, x.size), np.nan)
        inside = np.zeros((count, x.size), dtype=bool)
        for place, spectrum in enumerate(spectra):
            mine = np.flatnonzero(np.sign(spectrum.eigenvalues) == sign)[:count]
            heights[: mine.size, place] = spectrum.eigenvalues[mine]
            inside[: mine.size, place] = ~spectrum.is_outlier[mine]
        for row, hidden in zip(heights, inside, strict=True):
            if not hidden.any():
                continue
            if joined:
                axes.plot(x, row, color=look.light, linewidth=0.8, alpha=0.6, zorder=2)
            axes.plot(
                x[hidden],
                row[hidden],
                linestyle="none",
                marker=look.marker,
                markersize=0.7 * look.size,
                markerfacecolor="white",
                markeredgecolor=look.light,
                zorder=3,
            )


def draw_tracks(
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
            markersize=look.size,
            color=look.dark,
            markerfacecolor="white" if negative else look.dark,
            markeredgecolor=look.dark if negative else "white",
            markeredgewidth=1.2 if negative else 0.6,
            elinewidth=1.4,
            capsize=3,
            zorder=4,
        )


def _label_last(figure: Figure, axes: Axes, x: float, spectrum: Spectrum, look: Look, scale: float) -> None:
    """Write the values of the last checkpoint's outliers next to their points, without overlap."""
    outliers = np.sort(spectrum.outliers)
    settle(figure)
    to_points, pitch = 72 / figure.dpi, scale * LABEL_PITCH
    low, high = (float(axes.bbox.y0) * to_points, float(axes.bbox.y1) * to_points)
    while outliers.size and (outliers.size - 1) * pitch > high - low:
        outliers = np.delete(outliers, np.argmin(np.abs(outliers)))
    targets = np.array([float(axes.transData.transform((x, value))[1]) * to_points for value in outliers])
    for value, target, position in zip(outliers, targets, spread(targets, pitch, low, high), strict=True):
        axes.annotate(
            three_digits(float(value)),
            xy=(x, float(value)),
            xytext=(scale * 16, position - target),
            textcoords="offset points",
            va="center",
            fontsize=scale * LABEL_SIZE,
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


def _draw_legend(figure: Figure, look: Look, joined: str, title: str | None) -> None:
    line = Line2D([], [], color=look.light, linewidth=1.4)
    point = Line2D([], [], color=look.dark, marker=look.marker, markersize=look.size, linestyle="none")
    hollow = Line2D(
        [],
        [],
        color=look.light,
        markerfacecolor="white",
        marker=look.marker,
        markersize=0.7 * look.size,
        linestyle="none",
    )
    # Bands lie on one another: the narrowest is the darkest.
    areas = [Patch(facecolor=(*to_rgb(look.light), 1 - (1 - FILL) ** (count + 1)), linewidth=0) for count in range(3)]
    legend_above(
        figure,
        [point, hollow, (areas[0], line), areas[1], areas[2]],
        [f"outliers, those of one {joined} joined", "resolved, not outliers", "99% of the bulk", "90%", "50%"],
        title=title,
        handler_map={tuple: HandlerTuple(ndivide=1)},
    )
