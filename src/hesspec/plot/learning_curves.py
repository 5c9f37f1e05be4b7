"""Learning curves: loss and error against the epoch."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hesspec.plot.figure import legend_above, new_figure, scale_of, styled
from hesspec.plot.panels import GRID
from hesspec.plot.style import Look
from hesspec.plot.ticks import number_ticks
from hesspec.spectra.study_names import SPLITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

__all__ = ["epochs_of", "plot_learning_curves", "rate_changes"]

Array = npt.NDArray[np.float64]

# A rate that changes more often decreases steadily: lines at its changes would fill the figure.
MAX_RATE_CHANGES = 8
# Points of more epochs would overlap.
MAX_MARKERS = 30
CHANGE: dict[str, Any] = {"color": "#8A929A", "linewidth": 1.0, "linestyle": (0, (1.5, 1.5))}


def epochs_of(records: Sequence[Mapping[str, float | None]]) -> list[float]:
    """Return the epoch numbers of the records, or 1, 2, ... if one of them has none."""
    epochs = [record.get("epoch") for record in records]
    given = [epoch for epoch in epochs if epoch is not None]
    return given if len(given) == len(epochs) else [float(place) for place in range(1, len(epochs) + 1)]


def rate_changes(records: Sequence[Mapping[str, float | None]]) -> list[tuple[float, float]]:
    """Return epochs after which the learning rate changes, and the new rates; none if there are more than 8."""
    rates = [record.get("learning_rate") for record in records]
    changes = [
        (epoch, after)
        for epoch, (before, after) in zip(epochs_of(records), itertools.pairwise(rates), strict=False)
        if before and after and before != after
    ]
    return changes if len(changes) <= MAX_RATE_CHANGES else []


def plot_learning_curves(
    records: Sequence[Mapping[str, float | None]], *, width: float | None = None, title: str | None = None
) -> Figure:
    """Plot loss and error of one training run against the epoch, on the training and the test set.

    Parameters
    ----------
    records : sequence of mapping of str to float or None
        Records by ascending epoch: `epoch`, `train_loss`, `test_loss` (mean, in nats), `train_error`, `test_error`
        (fractions) and `learning_rate`. Values that are None or missing are omitted.
    width : float, optional
        Width of the figure in inches, see `plot_spectrum`; 10 by default.
    title : str, optional
        Title above both panels.

    Returns
    -------
    matplotlib.figure.Figure
        The axis of the loss is logarithmic if all values are positive; dotted lines mark
        changes of the learning rate, unless there are more than eight.

    Raises
    ------
    ValueError
        If there are no records.
    """
    if not records:
        raise ValueError("There is nothing to plot: the list of records is empty. Pass one record for each epoch.")
    epochs, changes = epochs_of(records), rate_changes(records)
    handles: list[Any] = []
    scale = scale_of(width)
    with styled(scale):
        figure = new_figure(width or 10.0, (0.4 if scale == 1 else 1.3) * (width or 10.0))
        loss, error = figure.subplots(*((1, 2) if scale == 1 else (2, 1)))
        for index, split in enumerate(SPLITS):
            look = Look.of(index)
            style: dict[str, Any] = {
                "color": look.light,
                "linestyle": look.dashes,
                "linewidth": 1.6,
                "markersize": 5 * scale,
            }
            style |= {"marker": look.marker} if len(records) < MAX_MARKERS else {}
            for axes, name in ((loss, "loss"), (error, "error")):
                axes.plot(epochs, _values(records, f"{split}_{name}"), **style)
            handles.append(Line2D([], [], label=f"{split} set", **style))
        for axes in (loss, error):
            for epoch, _ in changes:
                axes.axvline(epoch, **CHANGE, zorder=0)
            axes.grid(axis="y", color=GRID, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        losses = np.concatenate([_values(records, f"{split}_loss") for split in SPLITS])
        if (losses[np.isfinite(losses)] > 0).all():
            loss.set_yscale("log")
            number_ticks(loss.yaxis)
        loss.set_ylabel("mean loss  (nats)")
        error.set_ylabel("error")
        error.set_ylim(bottom=0)
        error.yaxis.set_major_formatter(PercentFormatter(1.0))
        if changes:
            rates = ", ".join(f"{rate:.3g} after epoch {epoch:g}" for epoch, rate in changes)
            handles.append(Line2D([], [], **CHANGE, label=f"learning rate {rates}"))
        legend_above(figure, handles, [handle.get_label() for handle in handles], title=title)
    return figure


def _values(records: Sequence[Mapping[str, float | None]], name: str) -> Array:
    return np.array([record.get(name) for record in records], dtype=np.float64)
