"""Figures of spectra at one point of training: overlaid, and with the tail of the bulk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hesspec.backend.number_text import exponent_text
from hesspec.backend.suggest import unknown
from hesspec.plot.figure import legend_above, new_figure, panel_of, scale_of, styled
from hesspec.plot.labels import draw_inset, label_outliers
from hesspec.plot.panels import PANELS
from hesspec.plot.style import (
    FILL,
    Look,
    check_drawable,
    law_text,
    looks_of,
    settle,
    tail_verdict,
    without_unit,
)
from hesspec.spectra.views import outlier_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hesspec.spectra.marchenko_pastur import MarchenkoPasturFit
    from hesspec.spectra.spectrum import Spectrum
    from hesspec.spectra.tails import TailFit

__all__ = ["KINDS", "Kind", "legend_handle", "legend_labels", "plot_spectrum", "plot_tail"]

Kind = Literal["overview", "linear", "log", "scree", "cdf"]
KINDS: tuple[Kind, ...] = ("overview", "linear", "log", "scree", "cdf")
"""What `plot_spectrum` can draw."""


def plot_spectrum(
    spectra: Mapping[str, Spectrum],
    *,
    kind: Kind = "overview",
    ax: Axes | None = None,
    width: float | None = None,
    title: str | None = None,
) -> Figure:
    """Plot one or several spectra over one another.

    A matrix has the same colour and marker in all figures: Hess blue circles, G red squares, H green triangles. Use it
    to compare train with test, or Hess, G and H: the labels tell them apart.

    Parameters
    ----------
    spectra : mapping of str to Spectrum
        Spectra by their labels in the legend, in the order in which they are drawn.
    kind : str
        "linear" and "log" show the density of the bulk as a light filled curve, of lambda and of log |lambda|, and
        resolved eigenvalues as points at their share of the spectrum, 1/p for simple ones; outliers among them are
        dark, with error bounds as horizontal bars and with their values, largest first as far as there is space. If
        the bulk is a sliver of the linear axis, it is enlarged in an inset. "overview" has both next to each other.
        "scree" shows |lambda| against its rank, with error bounds of resolved eigenvalues (hollow if negative) and the
        bracket of the rest; "cdf" shows the share of eigenvalues up to lambda with its bracket (see
        `Spectrum.cdf_bracket`; each end holds with a probability of 95%).
    ax : matplotlib.axes.Axes, optional
        Panel to draw into, for any kind but "overview".
    width : float, optional
        Width of the figure in inches; below 5.5, text and markers have the size for a column of a paper. By default
        11, or 7.5 for one panel.
    title : str, optional
        Title above all panels.

    Returns
    -------
    matplotlib.figure.Figure
        The figure, that of `ax` if it is given. With the default width, text has at least 9 pt.

    Raises
    ------
    ValueError
        If there are no spectra, or an argument is out of range.
    """
    _check(spectra, kind, ax, width)
    scale = scale_of(width)
    looks, members = looks_of(spectra, scale=scale), list(spectra.values())
    with styled(scale):
        panels, figure = _panels(kind, ax, width)
        for axes, name in panels:
            PANELS[name](axes, members, looks)
            if scale < 1:
                _shorten(axes)
        if kind == "overview":
            panels[0][0].set_title("linear axis")
            panels[1][0].set_title("logarithmic axis, |λ|")
        _draw_legend(figure, ax, spectra, looks, title)
        settle(figure)
        for axes, name in panels:
            if name in _PLACES:
                label_outliers(axes, members, looks, _PLACES[name], scale=scale)
            if name == "linear":
                draw_inset(axes, members, looks)
    return figure


def _check(spectra: Mapping[str, Spectrum], kind: Kind, ax: Axes | None, width: float | None) -> None:
    check_drawable(spectra)
    if kind not in KINDS:
        raise ValueError(unknown("kind", str(kind), KINDS))
    if ax is not None and (kind == "overview" or width is not None):
        raise ValueError(
            f"kind is {kind!r} and width is {width!r}, but ax is a single panel of a figure of its own width; choose "
            "kind='linear', 'log', 'scree' or 'cdf', and leave out width."
        )


def _draw_legend(
    figure: Figure, ax: Axes | None, spectra: Mapping[str, Spectrum], looks: Sequence[Look], title: str | None
) -> None:
    handles, labels = [legend_handle(look) for look in looks], legend_labels(spectra)
    settings: dict[str, Any] = {"handler_map": {tuple: HandlerTuple(ndivide=1)}, "handlelength": 2.2}
    if ax is None:
        legend_above(figure, handles, labels, title=title, **settings)
        return
    # Above the panel, where it hides neither points nor their labels.
    ax.legend(handles, labels, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, **settings)
    if title is not None:
        ax.set_title(title, pad=6 + 16 * len(labels))


# From eigenvalues to abscissae, for the kinds whose points are labelled by their values.
_PLACES: dict[str, Any] = {"linear": np.positive, "log": np.abs}


def _panels(kind: Kind, ax: Axes | None, width: float | None) -> tuple[list[tuple[Axes, str]], Figure]:
    """Axes with the kinds that are drawn in them."""
    if kind != "overview":
        wide = width or 7.5
        axes, figure = panel_of(ax, wide, (0.68 if scale_of(width) == 1.0 else 0.8) * wide)
        return [(axes, kind)], figure
    wide = width or 11.0
    side_by_side = scale_of(width) == 1.0
    figure = new_figure(wide, (5 / 11 if side_by_side else 1.5) * wide)
    linear, logarithmic = figure.subplots(*((1, 2) if side_by_side else (2, 1)))
    return [(linear, "linear"), (logarithmic, "log")], figure


def _shorten(axes: Axes) -> None:
    """Shorten labels of axes for a column; what is left out is in its caption."""
    axes.set_xlabel(without_unit(axes.get_xlabel()).replace(", linear around 0", ""))
    label = without_unit(axes.get_ylabel())
    axes.set_ylabel(label.replace("bulk: share", "share").replace("share of eigenvalues", "share").split("\n")[0])


def legend_labels(spectra: Mapping[str, Spectrum]) -> list[str]:
    """Labels with the numbers of outliers; that of Hess says what it is the sum of, if both parts are there."""
    matrices = {spectrum.attributes.get("matrix") for spectrum in spectra.values()}
    labels = []
    for label, spectrum in spectra.items():
        equation = " = G + H" if label == "Hess" and {"Hessian", "GaussNewton", "Residual"} <= matrices else ""
        labels.append(f"{label}{equation}: {outlier_words(spectrum)}")
    return labels


def legend_handle(look: Look) -> tuple[Patch, Line2D, Line2D]:
    """Symbol of a spectrum in a legend: area, curve and point."""
    area = Patch(facecolor=(*to_rgb(look.light), FILL), linewidth=0)
    line = Line2D([], [], color=look.light, linestyle=look.dashes, linewidth=look.line)
    point = Line2D(
        [], [], color=look.dark, markerfacecolor=look.face, marker=look.marker, markersize=look.size, linestyle="none"
    )
    return area, line, point


def plot_tail(spectra: Mapping[str, Spectrum], *, width: float | None = None, title: str | None = None) -> Figure:
    """Plot one or several spectra on logarithmic axes, with a power law fitted to the tail of each bulk.

    Parameters
    ----------
    spectra : mapping of str to Spectrum
        Spectra by their labels in the legend. The tail is that of |lambda|, both signs. The fit is drawn if
        `hesspec.spectra.tails.fit_tail` finds enough points and these resolve the tail, dashed if it does not show a
        power law. For a Gauss-Newton matrix with known numbers of samples and classes, the Marchenko-Pastur law for
        rows of noise is drawn as well.
    width : float, optional
        Width of the figure in inches, see `plot_spectrum`; 8 by default.
    title : str, optional
        Title above the panel.

    Returns
    -------
    matplotlib.figure.Figure
        Figure with text of at least 9 pt, unless it is narrow. The legend shows the exponent of the density per unit of
        |lambda| with its 95% interval, and whether a power law fits.

    Raises
    ------
    ValueError
        If there are no spectra.
    """
    check_drawable(spectra)
    scale = scale_of(width)
    with styled(scale):
        figure = new_figure(width or 8.0, 0.69 * (width or 8.0))
        axes = figure.subplots()
        handles: list[Any] = []
        labels = []
        looks = looks_of(spectra, scale=scale)
        PANELS["log"](axes, list(spectra.values()), looks)
        for look, (label, spectrum) in zip(looks, spectra.items(), strict=True):
            handles.append(legend_handle(look))
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
                labels.append(f"tail of {label}: density ∝ |λ|$^{{−a}}$, a = {exponent}; {tail_verdict(tail)}")
        legend_above(
            figure,
            handles,
            labels,
            title=title,
            handler_map={tuple: HandlerTuple(ndivide=1)},
            handlelength=2.6,
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
