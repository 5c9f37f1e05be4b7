"""Figures of Laplace approximations: evidence, predictive band of a regression, calibration of a classifier."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hesspec.applications.laplace.prediction_comparison import PredictionComparison
from hesspec.applications.laplace.record import Evidence
from hesspec.plot import FILL, OKABE_ITO
from hesspec.plot.figure import new_figure, styled
from hesspec.plot.style import literal

__all__ = ["plot_band", "plot_evidence", "plot_predictions"]

Data = npt.ArrayLike


def plot_evidence(evidence: Evidence) -> Figure:
    """Plot the log evidence and the effective number of parameters against the prior precision; see `Evidence.plot`."""
    with styled():
        figure = new_figure(9, 3.8)
        left, right = figure.subplots(1, 2)
        panels = (
            (left, "log_evidence", "log evidence  (nats)", OKABE_ITO[0]),
            (right, "effective_parameters", "effective parameters", OKABE_ITO[1]),
        )
        for axes, name, label, colour in panels:
            value, lower, upper = (getattr(evidence, name + end) for end in ("", "_lower", "_upper"))
            axes.fill_between(evidence.prior_precision, lower, upper, color=colour, alpha=FILL, linewidth=0)
            axes.plot(evidence.prior_precision, value, color=colour, linewidth=1.6)
            axes.axvspan(evidence.best_lower, evidence.best_upper, color="#888888", alpha=0.25, linewidth=0)
            axes.axvline(evidence.best, color="#444444", linewidth=1, linestyle=(0, (4, 3)))
            axes.set(xscale="log", xlabel="prior precision", ylabel=label)
        # Far from the maximum the evidence falls by thousands of nats, which would flatten the maximum.
        top, span = float(evidence.log_evidence.max()), 3 * float(evidence.effective_parameters.max())
        shown = evidence.log_evidence >= top - span
        low = float(evidence.log_evidence_lower[shown].min())
        high = float(evidence.log_evidence_upper[shown].max())
        left.set_ylim(max(low, top - 1.5 * span), high + 0.05 * (high - low))
        right.set_ylim(bottom=0)
        left.set_title(f"best prior precision: {evidence.best:.3g}")
    return figure


def plot_band(x: Data, mean: Data, variance: Data, *, noise: float, points: tuple[Data, Data] | None = None) -> Figure:
    """Plot a one-dimensional regression: mean, and two standard deviations of the function and of the targets.

    Parameters
    ----------
    x, mean, variance : array (m,)
        Inputs, and mean and variance of the targets there, noise included.
    noise : float
        Standard deviation of the noise, in units of the targets.
    points : tuple of array (n,), optional
        Inputs and targets of the training data.

    Returns
    -------
    matplotlib.figure.Figure
        6 by 3.8 inches.
    """
    x, mean, variance = (np.asarray(values, dtype=float).reshape(-1) for values in (x, mean, variance))
    order = np.argsort(x)
    x, mean, variance = x[order], mean[order], variance[order]
    function = np.sqrt(np.maximum(variance - noise**2, 0))
    with styled():
        figure = new_figure(6, 3.8)
        axes = figure.subplots()
        for deviation, alpha, label in (
            (np.sqrt(variance), 0.15, "targets, ±2 sd"),
            (function, 0.35, "function, ±2 sd"),
        ):
            axes.fill_between(
                x, mean - 2 * deviation, mean + 2 * deviation, color=OKABE_ITO[0], alpha=alpha, linewidth=0, label=label
            )
        axes.plot(x, mean, color=OKABE_ITO[0], linewidth=1.6, label="mean")
        if points is not None:
            inputs, targets = (np.asarray(values, dtype=float).reshape(-1) for values in points)
            axes.plot(inputs, targets, "o", color="#222222", markersize=3, label="training data")
        axes.set(xlabel="input", ylabel="target")
        figure.legend(*axes.get_legend_handles_labels(), fontsize=9, ncols=4, loc="outside upper left")
    return figure


def plot_predictions(found: PredictionComparison) -> Figure:
    """Plot the calibration of several predictions of the same classes; see `PredictionComparison.plot`."""
    with styled():
        figure = new_figure(4.8, 4.4)
        axes: Axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        for colour, i in zip(OKABE_ITO, range(found.names.size), strict=False):
            seen = found.counts[i] > 0
            predicted, observed, counts = found.predicted[i][seen], found.observed[i][seen], found.counts[i][seen]
            axes.plot(
                predicted,
                observed,
                color=colour,
                linewidth=1.4,
                label=f"{literal(found.names[i])}, ECE {found.ece[i]:.3f}",
            )
            axes.scatter(
                predicted, observed, s=12 + 120 * counts / counts.sum(), color=colour, edgecolor="white", linewidth=0.5
            )
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="probability of the most likely class", ylabel="accuracy")
        # Placed above the axes, as curves may be in every corner.
        figure.legend(*axes.get_legend_handles_labels(), fontsize=9, ncols=1, loc="outside upper left")
    return figure
