"""Matplotlib figure of a bound from flatness."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hesspec.applications.noise.flatness_record import FlatnessBound
from hesspec.backend.number_text import three_digits
from hesspec.plot import OKABE_ITO
from hesspec.plot.figure import panel_of, styled

__all__ = ["plot_flatness"]


def plot_flatness(found: FlatnessBound, ax: Axes | None = None) -> Figure:
    """Plot the parts of the divergence as bars; see `FlatnessBound.plot`."""
    with styled():
        axes, figure = panel_of(ax, 6.4, 3.0)
        parts = {"divergence": found.kl, "distance": found.distance, "effective curvature": found.effective_curvature}
        bars = axes.barh(
            list(parts), list(parts.values()), color=[OKABE_ITO[6], OKABE_ITO[1], OKABE_ITO[0]], height=0.6
        )
        axes.bar_label(bars, labels=[three_digits(value) for value in parts.values()], padding=4)
        axes.set_xlim(0, 1.18 * max(*parts.values(), 1e-12))
        axes.set_xlabel("nats")
        axes.set_title(f"Risk below {three_digits(found.bound)} with probability {found.confidence:g}")
        return figure
