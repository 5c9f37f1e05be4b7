"""Matplotlib figure of the expected change of the loss in one step."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hesspec.applications.noise.one_step_record import ExpectedLossChange
from hesspec.backend.number_text import three_digits
from hesspec.plot import FILL, OKABE_ITO
from hesspec.plot.figure import panel_of, styled

__all__ = ["plot_loss_change"]


def plot_loss_change(found: ExpectedLossChange, ax: Axes | None = None) -> Figure:
    """Plot the expected change of the loss against the learning rate, with and without noise.

    See `ExpectedLossChange.plot`.
    """
    with styled():
        axes, figure = panel_of(ax, 6.4, 4.2)
        best, own = found.best_learning_rate, found.learning_rate
        # To the learning rate at which the loss no longer falls, and at least a little beyond this one.
        rates = np.linspace(0, max(1.3 * own, 2.2 * best if np.isfinite(best) else 0), 400)
        ratio = rates / own
        without = ratio * found.first_order + ratio**2 * found.gradient_term
        expected, error = found.at(rates), 2 * ratio**2 * found.noise_standard_error
        axes.axhline(0, color="#444444", linewidth=0.8)
        axes.plot(rates, without, color=OKABE_ITO[1], linestyle=(0, (5, 2)), linewidth=1.6, label="all data")
        axes.fill_between(rates, expected - error, expected + error, color=OKABE_ITO[0], alpha=FILL, linewidth=0)
        label = f"minibatches of {found.batch_size:,}"
        axes.plot(rates, expected, color=OKABE_ITO[0], linewidth=1.8, label=label)
        axes.plot(own, found.value, "o", color=OKABE_ITO[0], markersize=7)
        axes.set(xlabel="learning rate", ylabel="expected change of the loss", xlim=(0, rates[-1]))
        lowest = min(float(np.min(without)), float(np.min(expected)), found.value)
        axes.set_ylim(1.1 * lowest, max(-0.6 * lowest, 1.2 * found.value))
        axes.set_title(f"A step of {three_digits(own)} changes the loss by {three_digits(found.value)}")
        axes.legend(loc="upper center")
        return figure
