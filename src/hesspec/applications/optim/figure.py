"""Matplotlib figures of Gauss-Newton steps and of competitors."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hesspec.applications.optim.record import CompetitorShare, StepComparison
from hesspec.backend.number_text import three_digits
from hesspec.plot import OKABE_ITO
from hesspec.plot.figure import new_figure, styled
from hesspec.plot.ticks import number_ticks

__all__ = ["plot_share", "plot_steps"]

# Beyond this number of classes, their points are not labelled.
LABELLED = 20


def plot_share(found: CompetitorShare, ax: Axes | None = None) -> Figure:
    """Plot the within-competitor share of each class against its effective number of competitors.

    Parameters
    ----------
    found : CompetitorShare
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure of 5.5 by 4 inches.

    Returns
    -------
    matplotlib.figure.Figure
    """
    with styled():
        figure = new_figure(5.5, 4) if ax is None else ax.get_figure(root=True)
        axes = figure.subplots() if ax is None else ax
        axes.plot(found.class_participations, found.class_shares, "o", color=OKABE_ITO[0], label="classes")
        if found.classes.size <= LABELLED:
            for name, *place in zip(found.classes, found.class_participations, found.class_shares, strict=True):
                axes.annotate(str(name), place, xytext=(5, 4), textcoords="offset points", fontsize="small")
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
        if ax is None:
            figure = new_figure(10, 4.2)
            left, right = figure.subplots(1, 2)
            for index, (name, found) in enumerate(comparisons.items()):
                colour = OKABE_ITO[index % len(OKABE_ITO)]
                left.plot(found.dampings / found.norm, found.cosines, "o-", color=colour, label=name or None)
            left.set(xscale="log", xlabel="damping / largest eigenvalue of G", ylabel="cosine")
            left.set_ylim(top=1.02)
            left.set_title("Angle to the full Gauss-Newton step")
            number_ticks(left.xaxis)
            if len(comparisons) > 1:
                left.legend(loc="lower right")
        else:
            figure, right = ax.get_figure(root=True), ax
        for index, (name, found) in enumerate(comparisons.items()):
            colour, at = OKABE_ITO[index % len(OKABE_ITO)], found.dampings / found.norm
            right.plot(at, found.relative_errors, "o-", color=colour, label=name or "measured")
            right.plot(
                at,
                found.bounds,
                linestyle=(0, (5, 2)),
                color=colour,
                linewidth=1.2,
                label=f"bound, {name}" if name else "bound",
            )
        errors = [float(value) for found in comparisons.values() for value in found.relative_errors if value > 0]
        right.set(xscale="log", yscale="log", xlabel="damping / largest eigenvalue of G", ylabel="relative error")
        # Bounds at small dampings are far above the errors and would flatten them.
        right.set_ylim(0.5 * min(errors, default=0.1), 3 * max(errors, default=1.0))
        right.set_title("Error relative to the full Gauss-Newton step")
        right.legend(loc="lower left")
        number_ticks(right.xaxis, right.yaxis)
    return figure
