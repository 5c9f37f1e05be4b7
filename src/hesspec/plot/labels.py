"""Values of outliers, written above their points without overlap; and an enlarged bulk in the room that is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.text import Annotation, Text
from matplotlib.ticker import MaxNLocator

from hesspec.backend.number_text import three_digits
from hesspec.plot.figure import renderer_of
from hesspec.plot.panels import draw_bulk, draw_points, set_heights
from hesspec.plot.style import LABEL_PITCH, LABEL_REACH, LABEL_SIZE, Look, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes

    from hesspec.spectra.spectrum import Spectrum

__all__ = ["draw_inset", "label_outliers"]

Array = npt.NDArray[np.float64]

# Shares of the axis: a bulk narrower than this is enlarged if the empty room next to it is at least so wide.
SLIVER, ROOM = 0.2, 0.4
# Shares of the panel's height: the inset's top, and its least height.
TOP, LEAST = 0.94, 0.28


class _Owner(NamedTuple):
    """Outlier to be labelled."""

    value: float
    height: float
    look: Look


def label_outliers(
    axes: Axes,
    spectra: Sequence[Spectrum],
    looks: Sequence[Look],
    place: Callable[[Array], Array],
    *,
    scale: float = 1.0,
) -> None:
    """Write values above the outliers without overlap; those that would be too far away are omitted.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Panel with the outliers, of a figure that is laid out.
    spectra, looks : sequence
        What is drawn in it.
    place : callable
        From eigenvalues to abscissae.
    scale : float
        Size of the text, relative to 9 pt.
    """
    owners = [
        _Owner(float(value), float(height), look)
        for spectrum, look in zip(spectra, looks, strict=True)
        for value, height in zip(spectrum.outliers, spectrum.eigenvalue_weights[spectrum.is_outlier], strict=True)
    ]
    bulk = np.concatenate([spectrum.bulk_nodes for spectrum in spectra])
    taken = [float(x) for x in place(bulk)]
    placed = sorted((float(place(np.float64(owner.value))), owner) for owner in owners)  # type: ignore[arg-type]
    right = [(x, owner) for x, owner in placed if x > 0]
    left = [(x, owner) for x, owner in placed if x < 0]
    start, end = axes.get_xlim()
    _label_side(axes, right, max([start, *taken]), end, scale)
    _label_side(axes, left, start, min([end, *taken]), scale)


def _label_side(axes: Axes, placed: list[tuple[float, _Owner]], start: float, end: float, scale: float) -> None:
    """Label the outliers on one side of the bulk, given with ascending abscissae."""
    to_points, pitch = 72 / axes.figure.dpi, scale * LABEL_PITCH

    def across(x: float) -> float:
        return float(axes.transData.transform((x, axes.get_ylim()[0]))[0]) * to_points

    low, high = across(start) + 0.7 * pitch, across(end) - 0.5 * pitch
    while placed:
        targets = np.array([across(x) for x, _ in placed])
        if (len(placed) - 1) * pitch <= high - low:
            positions = spread(targets, pitch, low, high)
            if np.abs(positions - targets).max() <= scale * LABEL_REACH:
                break
        placed.remove(min(placed, key=lambda item: abs(item[1].value)))
    else:
        return
    for (x, owner), target, position in zip(placed, targets, positions, strict=True):
        axes.annotate(
            three_digits(owner.value),
            xy=(x, owner.height),
            xytext=(position - target, scale * 22),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=scale * LABEL_SIZE,
            color=owner.look.dark,
            arrowprops={
                "arrowstyle": "-",
                "color": owner.look.dark,
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": scale * 4,
            },
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
            zorder=5,
        )


def draw_inset(axes: Axes, spectra: Sequence[Spectrum], looks: Sequence[Look]) -> None:
    """Draw an enlarged bulk if outliers leave little of the linear axis to it, above the labels that are there."""
    edges = np.array([spectrum.bulk_edges for spectrum in spectra])
    if not np.isfinite(edges).any():
        return
    low, high = float(np.nanmin(edges[:, 0])), float(np.nanmax(edges[:, 1]))
    left, right = axes.get_xlim()
    if not 0 < high - low < SLIVER * (right - left):
        return
    before, after = (low - left) / (right - left), (right - high) / (right - left)
    if max(before, after) < ROOM:
        return
    figure = axes.get_figure(root=True)
    box = axes.get_window_extent()
    line = float(mpl.rcParams["font.size"]) * figure.dpi / 72  # type: ignore[union-attr]
    # The tick labels of the inset are on its left and below it.
    margin = 3.6 * line / box.width
    start, end = (1 - after + margin + 0.02, 0.99) if after > before else (margin, before - 0.04)
    renderer = renderer_of(figure)
    tops = []
    for text in axes.texts:
        if isinstance(text, Annotation):
            text.update_positions(renderer)
            tops.append(Text.get_window_extent(text, renderer).y1)
    bottom = (max([box.y0, *tops]) - box.y0 + 1.9 * line) / box.height
    bottom = max(bottom, 0.42)
    if TOP - bottom < LEAST:
        return
    inset = axes.inset_axes((start, bottom, end - start, TOP - bottom))
    for spectrum, look in zip(spectra, looks, strict=True):
        density = spectrum.density()
        draw_bulk(inset, density["eigenvalue"].to_numpy(), density["density"].to_numpy(), look)
        draw_points(inset, spectrum, spectrum.eigenvalues, look)
    set_heights(inset, min(1 / spectrum.dimension for spectrum in spectra))
    inset.set_xlim(low - 0.15 * (high - low), high + 0.15 * (high - low))
    inset.xaxis.set_major_locator(MaxNLocator(4))
    inset.set_title("99% of the bulk, enlarged", fontsize=0.9 * float(mpl.rcParams["font.size"]))
    inset.tick_params(labelsize=0.82 * float(mpl.rcParams["font.size"]))
