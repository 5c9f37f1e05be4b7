"""Figures that show themselves in a notebook, and their sizes for talks and for a paper's column."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any, Final, cast

import matplotlib as mpl
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.backends.registry import BackendFilter, backend_registry
from matplotlib.figure import Figure

from hesspec.plot.style import STYLE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from matplotlib.axes import Axes

__all__ = ["ShownFigure", "figure_of", "legend_above", "new_figure", "panel_of", "renderer_of", "scale_of", "styled"]

# TrueType outlines: embedded text that can be searched and edited.
EMBEDDED: Final[dict[Any, Any]] = {"pdf.fonttype": 42, "ps.fonttype": 42}
DPI: Final = 200  # of files of pixels
NOTEBOOK_DPI: Final = 110

# Text for a talk is set in figures of at least this width, in inches; narrower ones are columns of a paper.
TALK: Final = 5.5
NARROWEST, WIDEST = 2.0, 30.0
FITS: Final = 0.96  # share of the width of a figure that a legend may have
COLUMN: Final = 0.75  # size of text, markers and lines in a column, relative to a talk
SIZES = (
    "font.size",
    "axes.labelsize",
    "axes.titlesize",
    "xtick.labelsize",
    "ytick.labelsize",
    "legend.fontsize",
    "figure.titlesize",
    "axes.linewidth",
)


class ShownFigure(Figure):
    """Matplotlib figure that notebooks display, and whose PDF files embed their fonts.

    With a notebook's inline backend or without one, the figure is displayed as the value of a cell. In a script that
    imports `matplotlib.pyplot`, `plt.show()` opens it in a window.
    """

    def _repr_png_(self) -> bytes:
        """Show the figure as the output of a notebook's cell, where no backend does it."""
        picture = io.BytesIO()
        self.savefig(picture, format="png", dpi=NOTEBOOK_DPI)
        return picture.getvalue()

    def savefig(self, fname: Any, **settings: Any) -> None:
        """Save as `matplotlib.figure.Figure.savefig` does, in the format of the suffix: .pdf, .svg, .png and others."""
        with mpl.rc_context(EMBEDDED):
            super().savefig(fname, **({"dpi": DPI} | settings))


def new_figure(width: float, height: float) -> ShownFigure:
    """Create an empty figure of a size in inches; pyplot manages it where it opens windows."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and _opens_windows():
        found: ShownFigure = pyplot.figure(FigureClass=ShownFigure, figsize=(width, height), layout="constrained")
        return found
    return ShownFigure(figsize=(width, height), layout="constrained")


def panel_of(ax: Axes | None, width: float, height: float) -> tuple[Axes, Figure]:
    """Panel to draw into and its figure: those of `ax` or, if it is None, new ones of a size in inches."""
    if ax is not None:
        return ax, figure_of(ax)
    figure = new_figure(width, height)
    return figure.subplots(), figure


def figure_of(ax: Axes) -> Figure:
    """Return the figure of a panel, that around all subfigures."""
    return cast("Figure", ax.get_figure(root=True))


def _opens_windows() -> bool:
    """Whether `plt.show()` shows figures: pyplot's backend is interactive, and not that of a notebook."""
    backend = str(mpl.get_backend()).lower()
    silent = backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)  # type: ignore[no-untyped-call]
    return "inline" not in backend and backend not in silent


def scale_of(width: float | None) -> float:
    """Size of text and markers in a figure of this width, relative to one for a talk.

    Raises
    ------
    ValueError
        If the width is not between 2 and 30 inches.
    """
    if width is None:
        return 1.0
    if not NARROWEST <= width <= WIDEST:
        raise ValueError(
            f"width is {width!r}; it is that of the figure in inches, from {NARROWEST:g} to {WIDEST:g}, such as 3.25 "
            "for a column."
        )
    return 1.0 if width >= TALK else COLUMN


def styled(scale: float = 1.0) -> AbstractContextManager[None]:
    """Settings of matplotlib with which figures are drawn."""
    settings: dict[Any, Any] = {**STYLE, **{name: scale * STYLE[name] for name in SIZES}}
    return mpl.rc_context(settings)


def renderer_of(figure: Any) -> RendererAgg:
    """Return what measures text, without a canvas of its own for the figure."""
    return RendererAgg(figure.bbox.width, figure.bbox.height, figure.dpi)  # type: ignore[no-untyped-call]


def legend_above(
    figure: Figure, handles: Sequence[Any], labels: Sequence[str], *, title: str | None = None, **settings: Any
) -> None:
    """Draw a legend above all panels, in as many columns as fit into the width."""
    renderer = renderer_of(figure)
    for columns in range(min(len(labels), 4), 0, -1):
        # Columns are filled one after another; entries are to be read row by row.
        order = [index for column in range(columns) for index in range(column, len(labels), columns)]
        legend = figure.legend(
            [handles[index] for index in order],
            [labels[index] for index in order],
            loc="outside upper left",
            ncols=columns,
            alignment="left",
            title=title,
            title_fontproperties={"size": mpl.rcParams["figure.titlesize"], "weight": "bold"},
            **settings,
        )
        # It does not begin at the edge, and letters are wider at some resolutions.
        if columns == 1 or legend.get_window_extent(renderer).width <= FITS * figure.bbox.width:
            return
        legend.remove()
