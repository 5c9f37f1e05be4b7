"""Figure of the outliers and bulk edges of one matrix against the number of training samples."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter, NullLocator

from hesspec.backend.number_text import exponent_text
from hesspec.plot.figure import legend_above, new_figure, scale_of, styled
from hesspec.plot.panels import GRID
from hesspec.plot.river import draw_tracks, ranks_of
from hesspec.plot.style import FILL, check_drawable, looks_of, with_unit
from hesspec.plot.ticks import number_ticks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hesspec.spectra.spectrum import Spectrum

__all__ = ["plot_against_samples"]

LAWS = ((0, (5, 2)), (0, (6, 2, 1.5, 2)), (0, (8, 2, 1.5, 2, 1.5, 2)))
MAX_TICKS = 8  # number of sample sizes that can be labelled below an axis without overlap

Array = npt.NDArray[np.float64]


def plot_against_samples(
    spectra: Mapping[int, Spectrum], *, width: float | None = None, title: str | None = None
) -> Figure:
    """Plot the outliers and the bulk edges of one matrix against the number of training samples per class.

    Parameters
    ----------
    spectra : mapping of int to Spectrum
        Spectra by the number of training samples per class. Outliers of the same sign and rank are joined, as
        eigenvectors of different networks cannot be compared.
    width : float, optional
        Width of the figure in inches, see `plot_spectrum`; 8 by default.
    title : str, optional
        Title above the panel.

    Returns
    -------
    matplotlib.figure.Figure
        Figure with logarithmic axes. Power laws are fitted to the largest outlier and to both bulk edges, the lower one
        if it is negative, where `hesspec.spectra.power_law.earned_power_law` finds them supported. The legend shows
        their exponents with 95% intervals, and says which laws are not shown.

    Raises
    ------
    ValueError
        If there are no spectra.
    """
    check_drawable(spectra)
    sizes = sorted(spectra)
    members = [spectra[size] for size in sizes]
    x = np.array(sizes, float)
    scale = scale_of(width)
    look = looks_of({"": members[-1]}, scale=0.7 * scale)[0]
    edges = np.array([spectrum.bulk_edges for spectrum in members])
    # Without negative eigenvalues the lower edge is zero up to rounding, which a logarithmic axis would show.
    floor = np.array([spectrum.rounding for spectrum in members])
    lower, upper = (np.where(edge > floor, edge, np.nan) for edge in (-edges[:, 0], edges[:, 1]))
    # The fit ignores missing and negative values.
    largest = np.array([s.outliers.max(initial=-np.inf) for s in members])
    with styled(scale):
        figure = new_figure(width or 8.0, 0.69 * (width or 8.0))
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log")
        draw_tracks(axes, x, members, look, ranks_of(members), magnitude=True)
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
        drawn = {"largest outlier": largest, "upper edge": upper, "lower edge": lower}
        for handle, label in _draw_laws(axes, x, drawn, [spectrum.outliers.size for spectrum in members]):
            handles.append(handle)
            labels.append(label)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        if len(sizes) <= MAX_TICKS:
            axes.set_xticks(x, [f"{size}" for size in sizes])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            number_ticks(axes.xaxis)
        number_ticks(axes.yaxis)
        axes.set(xlabel="training samples per class (n)", ylabel=with_unit("|λ|", members))
        legend_above(figure, handles, labels, title=title, handler_map={tuple: HandlerTuple(ndivide=1)})
    return figure


def _draw_laws(
    axes: Axes, x: Array, quantities: Mapping[str, Array], outliers: Sequence[int]
) -> Iterator[tuple[Line2D, str]]:
    """Draw the power laws that the sizes support, and yield the entries of the legend, with what is not shown last."""
    from hesspec.spectra.power_law import earned_power_law, what_is_hidden  # noqa: PLC0415 - slow to import

    hidden = {}
    for (name, values), dashes in zip(quantities.items(), LAWS, strict=True):
        fitted = np.isfinite(values) & (values > 0)
        if not fitted.any():
            continue
        law = earned_power_law(x, values, outliers)
        if isinstance(law, str):
            hidden[name] = law
            continue
        ends = x[fitted][[0, -1]]
        axes.plot(ends, law.prefactor * ends**law.exponent, color="#000000", linewidth=1.4, linestyle=dashes, zorder=3)
        exponent = exponent_text(law.exponent, law.lower, law.upper)
        yield Line2D([], [], color="#000000", linewidth=1.4, linestyle=dashes), f"{name} ∝ $n^a$, a = {exponent}"
    if hidden:
        yield Line2D([], [], linestyle="none"), textwrap.fill(what_is_hidden(hidden), 48)
