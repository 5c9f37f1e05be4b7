"""Small multiples: the same panel for many checkpoints or sample sizes, all on one pair of axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.legend_handler import HandlerTuple

from hesspec.backend.numbers import check_counts
from hesspec.backend.suggest import unknown
from hesspec.plot.figure import legend_above, new_figure, scale_of, styled
from hesspec.plot.panels import PANELS
from hesspec.plot.spectra import legend_handle
from hesspec.plot.style import Look, check_drawable, looks_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hesspec.spectra.spectrum import Spectrum

__all__ = ["plot_multiples"]

Overlaid = Mapping[str, "Spectrum"]
Place = str | tuple[str, str]

SIZE = 0.62  # of text and markers, relative to a figure of one panel
RATIO = 0.95  # height of a panel over its width
MOST_COLUMNS = 4


def plot_multiples(
    spectra: Mapping[Place, Spectrum | Overlaid],
    *,
    kind: Literal["linear", "log", "scree", "cdf"] = "log",
    columns: int | None = None,
    width: float | None = None,
    title: str | None = None,
) -> Figure:
    """Plot many spectra in small panels with the same axes, such as those of all epochs, or of all sample sizes.

    Parameters
    ----------
    spectra : mapping of str or (str, str) to Spectrum, or to a mapping of str to Spectrum
        What each panel shows, by its title: one spectrum, or several over one another by their labels. Panels are
        filled row by row; titles that are pairs (row, column), such as ("epoch 20", "n = 10"), form a table with a
        heading for each row and column, whose cells may be empty.
    kind : str
        What is drawn, see `plot_spectrum`.
    columns : int, optional
        Number of panels in a row, up to 4 by default; not for pairs.
    width : float, optional
        Width of the figure in inches; 11 by default.
    title : str, optional
        Title above all panels.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If there are no spectra, titles of both kinds, or an argument is out of range.
    """
    check_drawable(spectra)
    if kind not in PANELS:
        raise ValueError(unknown("kind", str(kind), tuple(PANELS)))
    if columns is not None:
        check_counts(columns=columns)
    paired = {isinstance(place, tuple) for place in spectra}
    if len(paired) > 1:
        raise ValueError("Some titles are strings and some are pairs (row, column); all must be of one kind.")
    cells = _table(spectra) if paired == {True} else _wrapped(spectra, columns)
    count = (1 + max(row for row, _ in cells), 1 + max(column for _, column in cells))
    wide = width or min(11.0, 1.0 + 3.4 * count[1])
    scale = scale_of(width) * SIZE
    labels, handles = _legend(spectra, scale)
    with styled(max(scale, 0.7 * scale_of(width))):
        figure = new_figure(wide, RATIO * wide * count[0] / count[1] + 0.7)
        grid = figure.subplots(*count, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat:
            axes.set_visible(False)
        limits = []
        for place, (name, overlaid) in cells.items():
            axes = grid[place]
            axes.set_visible(True)
            PANELS[kind](axes, list(overlaid.values()), looks_of(overlaid, scale=scale))
            limits.append((*axes.get_xlim(), *axes.get_ylim()))
            axes.set_title(name)
        _share(grid, limits)
        _headings(figure, grid, spectra, paired == {True})
        if labels:
            legend_above(figure, handles, labels, title=title, handler_map={tuple: HandlerTuple(ndivide=1)})
        elif title is not None:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def _overlaid(shown: Spectrum | Overlaid) -> Overlaid:
    return shown if isinstance(shown, Mapping) else {"": shown}


def _wrapped(spectra: Mapping[Any, Spectrum | Overlaid], columns: int | None) -> dict[tuple[int, int], Any]:
    """Panels with their titles by row and column, filled row by row."""
    across = columns or _columns(len(spectra))
    return {divmod(index, across): (name, _overlaid(shown)) for index, (name, shown) in enumerate(spectra.items())}


def _columns(count: int) -> int:
    """Number of columns that leaves the fewest cells empty, as many as fit."""
    return min(range(min(count, MOST_COLUMNS), 0, -1), key=lambda columns: (-count % columns > 1, -columns))


def _table(spectra: Mapping[Any, Spectrum | Overlaid]) -> dict[tuple[int, int], Any]:
    """Panels by the places of their rows and columns; columns have their titles above the first row."""
    rows, columns = (list(dict.fromkeys(place[axis] for place in spectra)) for axis in range(2))
    return {
        (rows.index(row), columns.index(column)): ("", _overlaid(shown)) for (row, column), shown in spectra.items()
    }


def _share(grid: Any, limits: list[tuple[float, ...]]) -> None:
    """Set the limits that hold all panels; axes are shared, so that one is enough."""
    ends = np.array(limits)
    grid[0, 0].set_xlim(ends[:, 0].min(), ends[:, 1].max())
    grid[0, 0].set_ylim(ends[:, 2].min(), ends[:, 3].max())


def _headings(figure: Figure, grid: Any, spectra: Mapping[Any, Any], paired: bool) -> None:
    """Label the axes once, and the rows and columns of a table."""
    shown = [axes for axes in grid.flat if axes.get_visible()]
    figure.supxlabel(shown[0].get_xlabel())
    figure.supylabel(shown[0].get_ylabel())
    for axes in shown:
        axes.set(xlabel="", ylabel="")
    last = [[axes for axes in column if axes.get_visible()][-1] for column in grid.T if column[0].get_visible()]
    for axes in last:
        axes.tick_params(labelbottom=True)
    if not paired:
        return
    rows, columns = (list(dict.fromkeys(place[axis] for place in spectra)) for axis in range(2))
    for axes, name in zip(grid[0], columns, strict=True):
        _head(axes, name, (0.5, 1.04), "bottom", 0)
    for axes, name in zip(grid[:, -1], rows, strict=True):
        _head(axes, name, (1.03, 0.5), "center", 270)


def _head(axes: Axes, name: str, place: tuple[float, float], vertical: str, rotation: int) -> None:
    """Write a heading next to axes, even if there is nothing in them."""
    if not axes.get_visible():
        axes.set_visible(True)
        axes.axis("off")
    settings: Any = {"ha": "center" if not rotation else "left", "va": vertical, "rotation": rotation}
    axes.text(*place, name, transform=axes.transAxes, fontweight="bold", **settings)


def _legend(spectra: Mapping[Any, Spectrum | Overlaid], scale: float) -> tuple[list[str], list[Any]]:
    """Labels of overlaid spectra with their symbols; none for panels of one spectrum."""
    looks: dict[str, Look] = {}
    for shown in spectra.values():
        if isinstance(shown, Mapping):
            for label, look in zip(shown, looks_of(shown, scale=scale), strict=True):
                looks.setdefault(label, look)
    return list(looks), [legend_handle(look) for look in looks.values()]
