"""Figures of the outliers of one matrix against those of another, and of the overlaps of their eigenvectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator

from hesspec.matrices import CURVATURE
from hesspec.plot.figure import legend_above, new_figure, scale_of, styled
from hesspec.plot.panels import GRID
from hesspec.plot.style import Look, check_drawable
from hesspec.plot.ticks import number_ticks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from hesspec.spectra.spectrum import Spectrum

__all__ = ["plot_hessian_against_gauss_newton", "plot_overlaps"]

PAIRED = 6  # look of points that belong to two matrices: black

Array = npt.NDArray[np.float64]


def plot_hessian_against_gauss_newton(
    pairs: Mapping[str, tuple[Spectrum, Spectrum]], *, width: float | None = None, title: str | None = None
) -> Figure:
    """Plot the positive outliers of Hess against those of G by rank, with the line of equality.

    Parameters
    ----------
    pairs : mapping of str to (Spectrum, Spectrum)
        Spectra of Hess and of G for the same network and data, by their labels in the legend. Several pairs differ in
        colour and marker.
    width : float, optional
        Width of the figure in inches, see `plot_spectrum`; 6 by default.
    title : str, optional
        Title above the panel.

    Returns
    -------
    matplotlib.figure.Figure
        Figure with logarithmic axes of equal scale. Outliers without a partner are counted in the
        legend and not drawn.

    Raises
    ------
    ValueError
        If there are no pairs.
    """
    check_drawable(pairs)
    scale = scale_of(width)
    with styled(scale):
        figure = new_figure(width or 6.0, 1.07 * (width or 6.0))
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", aspect="equal")
        every = [np.empty(0)]
        for index, (label, (hessian, gauss_newton)) in enumerate(pairs.items()):
            # A pair belongs to both matrices, and has the colour of neither.
            look = Look.of(PAIRED, variant=index)
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
                markersize=scale * (8 if index == 0 else 6),
                color=look.dark,
                markerfacecolor=look.face,
                markeredgecolor="white" if look.filled else look.dark,
                markeredgewidth=0.6 if look.filled else 1.2,
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
            xlabel=f"outliers of G  ({CURVATURE})",
            ylabel="outliers of Hess, of the same rank",
        )
        number_ticks(axes.xaxis, axes.yaxis)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        legend_above(figure, *axes.get_legend_handles_labels(), title=title)
    return figure


def plot_overlaps(overlaps: npt.ArrayLike, *, width: float | None = None, title: str | None = None) -> Figure:
    """Plot the overlaps of the outliers' eigenvectors of Hess and of G.

    Parameters
    ----------
    overlaps : array (outliers of Hess, outliers of G)
        Squared cosines, from `hesspec.eigenvector_overlaps`; NaN is white.
    width : float, optional
        Width of the figure in inches, see `plot_spectrum`; 6.4 by default.
    title : str, optional
        Title above the panel.

    Returns
    -------
    matplotlib.figure.Figure
        Figure with cells from light (0) to dark (1).

    Raises
    ------
    ValueError
        If one of them has no outliers.
    """
    squared = np.asarray(overlaps, np.float64)
    if squared.ndim != 2 or not squared.size:
        raise ValueError(f"There are no overlaps to plot: their shape is {squared.shape}. Both matrices need outliers.")
    rows, columns = squared.shape
    with styled(scale_of(width)):
        figure = new_figure(width or 6.4, 0.875 * (width or 6.4))
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
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    return figure


def _positive(spectrum: Spectrum) -> tuple[Array, Array]:
    """Return positive outliers, largest first, and their error bounds."""
    mine = spectrum.is_outlier & (spectrum.eigenvalues > 0)
    return spectrum.eigenvalues[mine], spectrum.error_bounds[mine]
