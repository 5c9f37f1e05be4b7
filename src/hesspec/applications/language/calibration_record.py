"""Calibration of predicted probabilities, as a result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hesspec.backend.number_text import plus_minus
from hesspec.backend.shown import TextTable
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Integers, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Calibration"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Calibration(Record):
    """How well predicted probabilities agree with what happened, from `hesspec.language.calibration`.

    Attributes
    ----------
    ece : float
        Expected calibration error: mean over predictions of |observed - predicted|, both being means of their bin.
    rms : float
        Root of the mean square of the same differences.
    chance_ece : float
        The ECE that perfectly calibrated predictions are expected to have in these bins, which is the bias of ECE. It
        is an upper limit for outcomes between 0 and 1, which vary less.
    brier : float
        Brier score, mean (p - c)^2. For an outcome t between 0 and 1, that of outcomes of 0 and 1 of which a share of t
        is 1: (p - t)^2 + t (1 - t).
    brier_error : float
        Its standard error, for independent predictions.
    variance : float
        Mean p (1 - p): the Brier score that is expected of predictions that are calibrated.
    mean_probability, mean_outcome : float
        Means over predictions.
    mixed_pairs, ordered_pairs : float
        Weight of the pairs of an outcome of 1 and one of 0, and of those of them in which the former has the larger
        probability (half of it for equal ones); their ratio is `auroc`.
    samples : int
        Number of predictions, N.
    equal_counts : bool
        Whether bins have equal counts, or else equal widths.
    predicted, observed : array (b,)
        Mean probability and mean outcome in each bin.
    low, high : array (b,)
        Wilson interval of 95% around `observed`.
    counts : int array (b,)
        Number of predictions in each bin.
    """

    KIND: ClassVar[str] = "calibration"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_calibration_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = dict.fromkeys(
        ("predicted", "observed", "low", "high", "counts"), ("bin",)
    )
    FINITE: ClassVar[tuple[str, ...]] = ("predicted", "observed", "low", "high")
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (
        "predicted",
        "low",
        "ece",
        "rms",
        "chance_ece",
        "brier",
        "brier_error",
        "variance",
        "mean_probability",
        "mean_outcome",
        "ordered_pairs",
    )

    ece: float
    rms: float
    chance_ece: float
    brier: float
    brier_error: float
    variance: float
    mean_probability: float
    mean_outcome: float
    mixed_pairs: float
    ordered_pairs: float
    samples: int
    equal_counts: bool
    predicted: Array
    observed: Array
    low: Array
    high: Array
    counts: Integers

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        inside = (self.low <= self.observed) & (self.observed <= self.high) & (self.high <= 1) & (self.predicted <= 1)
        refuse_unless(inside.all(), "Its observed shares are outside of their intervals, or above 1.")
        whole = bool((self.counts >= 1).all()) and int(self.counts.sum()) == self.samples > 0
        refuse_unless(whole, f"Its bins do not have its {self.samples} predictions.")
        refuse_unless(self.ordered_pairs <= self.mixed_pairs, "It has more ordered pairs than pairs.")

    @property
    def auroc(self) -> float:
        """Area under the ROC curve: probability that an outcome of 1 had a larger prediction than an outcome of 0.

        Raises
        ------
        ValueError
            If all outcomes are 0, or all are 1: it compares both.
        """
        if not self.mixed_pairs:
            raise ValueError(
                f"All {self.samples:,} outcomes are {self.mean_outcome:g}; AUROC compares predictions of outcomes of 1 "
                "with those of outcomes of 0, and is not defined without both."
            )
        return self.ordered_pairs / self.mixed_pairs

    @property
    def bias(self) -> float:
        """Mean probability minus mean outcome; the derivative of the loss with respect to the bias of a logit."""
        return self.mean_probability - self.mean_outcome

    @property
    def consistency(self) -> float:
        """Brier score over mean p (1 - p): 1 in expectation if calibrated, and tr F / tr G of the bias of the logit.

        It is infinite if all probabilities are 0 or 1.
        """
        return self.brier / self.variance if self.variance else math.inf

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "predictions": f"{self.samples:,}, mean {self.mean_probability:.3f}; mean outcome {self.mean_outcome:.3f}",
            "ECE": f"{self.ece:.4f} ({self.chance_ece:.4f} expected if calibrated)",
            "RMS calibration error": f"{self.rms:.4f}",
            "Brier score": f"{plus_minus(self.brier, self.brier_error)} (standard error)",
            "Brier score expected if calibrated": f"{self.variance:.4f}",
            "AUROC": f"{self.auroc:.4f}" if self.mixed_pairs else f"undefined: all outcomes are {self.mean_outcome:g}",
        }

    def tables(self) -> list[TextTable]:
        """Table of the bins."""
        columns = zip(self.counts, self.predicted, self.observed, self.low, self.high, strict=True)
        rows = [
            (str(place), f"{count:,}", f"{predicted:.3f}", f"{observed:.3f}", f"{low:.3f} to {high:.3f}")
            for place, (count, predicted, observed, low, high) in enumerate(columns, 1)
        ]
        kind = "equal counts" if self.equal_counts else "equal widths"
        headings = ("bin", "predictions", "mean probability", "mean outcome", "95% (Wilson)")
        return [TextTable(f"Bins of {kind}", headings, rows)]

    def plot(self, ax: Axes | None = None, **line: Any) -> Figure:
        """Plot the reliability: mean outcome against mean probability of each bin, with intervals of 95%.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw on, such as those of another result's figure; by default those of a new figure.
        **line
            Properties of the line, such as `color` and `label`.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.applications.language.calibration_figure import plot_reliability  # noqa: PLC0415 - only here

        return plot_reliability(self, ax, **line)
