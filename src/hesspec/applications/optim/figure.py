"""Matplotlib figures of Gauss-Newton steps and of competitors."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hesspec.applications.optim.record import CompetitorShare, StepComparison
from hesspec.backend.number_text import three_digits
from hesspec.plot import OKABE_ITO
from hesspec.plot.figure import figure_of, new_figure, panel_of, styled
from hesspec.plot.style import literal
from hesspec.plot.ticks import number_ticks

__all__ = ["plot_share", "plot_steps"]

# Beyond this number of classes, their points are not labelled.
LABELLED = 20


def plot_share(found: CompetitorShare, ax: Axes | None = None) -> Figure:
    """Plot the within-competitor share of each class against its effective number of competitors.

    See `CompetitorShare.plot`.
    """
    with styled():
        axes, figure = panel_of(ax, 5.5, 4)
        axes.plot(found.class_participations, found.class_shares, "o", color=OKABE_ITO[0], label="classes")
        if found.classes.size <= LABELLED:
            for name, x, y in zip(found.classes, found.class_participations, found.class_shares, strict=True):
                axes.annotate(literal(name), (x, y), xytext=(5, 4), textcoords="offset points", fontsize="small")
        axes.plot(found.participation, found.share, "D", color=OKABE_ITO[1], label="all samples")
        axes.set_xlim(left=1)
        axes.set_ylim(0, min(1.0, 1.3 * max(float(found.class_shares.max(initial=0)), found.share)) or 1.0)
        axes.set(xlabel="effective competitors, 1/Σq²", ylabel="share of curvature within competitors")
        axes.set_title(f"Left out by Fast Gauss-Newton: {three_digits(found.share)}")
        axes.legend(loc="lower right")
    return figure


def plot_steps(comparisons: Mapping[str, StepComparison], ax: Axes | None = None) -> Figure:
    """Plot cosines and relative errors of Fast Gauss-Newton steps over the damping, for several points.

    Parameters
    ----------
    comparisons : mapping of str to StepComparison
        By their names in the legend.
    ax : matplotlib.axes.Axes, optional
        Where to draw the relative errors; by default a new figure of 10 by 4.2 inches, with the cosines, too.

    Returns
    -------
    matplotlib.figure.Figure
    """
    with styled():
        colours = {name: OKABE_ITO[index % len(OKABE_ITO)] for index, name in enumerate(comparisons)}
        left, right = (None, ax) if ax is not None else new_figure(10, 4.2).subplots(1, 2)
        if left is not None:
            for name, found in comparisons.items():
                left.plot(found.dampings / found.norm, found.cosines, "o-", color=colours[name])
            left.set(xscale="log", xlabel="damping / largest eigenvalue of G", ylabel="cosine")
            left.set_ylim(top=1.02)
            left.set_title("Angle to the full Gauss-Newton step")
            number_ticks(left.xaxis)
        for name, found in comparisons.items():
            at = found.dampings / found.norm
            right.plot(at, found.relative_errors, "o-", color=colours[name], label=name or "measured")
            right.plot(at, found.bounds, linestyle=(0, (5, 2)), color=colours[name], linewidth=1.2)
        handles, labels = right.get_legend_handles_labels()
        bound = Line2D([], [], linestyle=(0, (5, 2)), color="#444444", linewidth=1.2)
        if left is not None and len(comparisons) > 1:
            left.legend(handles, labels, loc="lower right")
            handles, labels = [], []
        right.legend([*handles, bound], [*labels, "bound"], loc="lower left")
        errors = [float(value) for found in comparisons.values() for value in found.relative_errors if value > 0]
        right.set(xscale="log", yscale="log", xlabel="damping / largest eigenvalue of G", ylabel="relative error")
        # Bounds at small dampings are far above the errors and would flatten them.
        right.set_ylim(0.5 * min(errors, default=0.1), 3 * max(errors, default=1.0))
        right.set_title("Error relative to the full Gauss-Newton step")
        number_ticks(right.xaxis, right.yaxis)
    return figure_of(right)
