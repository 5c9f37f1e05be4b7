"""Result of the calibration of several predictions of the same classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from hesspec.applications.laplace.figure import calibration
from hesspec.backend.shown import TextTable
from hesspec.errors import InputError
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Record, Strings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Calibration", "calibrate"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Calibration(Record):
    """Accuracy, likelihood and calibration of several predictions of the same classes.

    Attributes
    ----------
    names : str array (k,)
        Names of the predictions.
    accuracy : array (k,)
        Fraction of samples whose most likely class is the true one.
    negative_log_likelihood : array (k,)
        Mean of -log p(true class), in nats.
    error : array (k,)
        Expected calibration error: mean |accuracy - confidence| over bins of equal width in the confidence, weighted by
        their counts (Guo et al. 2017).
    confidence, observed : array (k, b)
        Mean confidence and accuracy of the samples of each bin; NaN for empty bins.
    counts : array (k, b)
        Samples of each bin.
    prior_precision : float
        Prior precision of the posterior.
    """

    KIND: ClassVar = "calibration of predictions"
    FORMAT_ATTRIBUTE: ClassVar = "hesspec_laplace_calibration_format"
    FORMAT: ClassVar = 1
    DIMENSIONS: ClassVar = {
        **dict.fromkeys(("names", "accuracy", "negative_log_likelihood", "error"), ("prediction",)),
        **dict.fromkeys(("confidence", "observed", "counts"), ("prediction", "bin")),
    }
    FINITE: ClassVar = ("accuracy", "negative_log_likelihood", "error", "counts")
    NOT_NEGATIVE: ClassVar = ("accuracy", "negative_log_likelihood", "error", "counts")

    names: Strings
    accuracy: Array
    negative_log_likelihood: Array
    error: Array
    confidence: Array
    observed: Array
    counts: Array
    prior_precision: float

    def check(self) -> None:
        """Raise ValueError unless accuracies and errors are fractions, and all predictions are of as many samples."""
        for name in ("accuracy", "error"):
            refuse_unless(bool((getattr(self, name) <= 1 + 1e-12).all()), f"Its {name} is above 1.")
        totals = self.counts.sum(axis=1)
        refuse_unless(
            bool((totals > 0).all() and (totals == totals[0]).all()), "Its predictions are not of the same samples."
        )
        refuse_unless(self.prior_precision > 0, f"Its 'prior_precision' is {self.prior_precision}.")

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "samples": f"{int(self.counts[0].sum()):,}",
            "prior precision": f"{self.prior_precision:.4g}",
        }

    def tables(self) -> list[TextTable]:
        """Table of the predictions."""
        rows = [
            (str(name), f"{100 * accuracy:.2f}%", f"{likelihood:.4g}", f"{100 * error:.2f}%")
            for name, accuracy, likelihood, error in zip(
                self.names, self.accuracy, self.negative_log_likelihood, self.error, strict=True
            )
        ]
        columns = ("prediction", "accuracy", "negative log-likelihood (nats)", "calibration error")
        return [TextTable("", columns, rows)]

    def plot(self) -> Figure:
        """Plot accuracy against confidence.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.applications.laplace.figure import plot_curves  # noqa: PLC0415 - imports matplotlib

        curves = {}
        for i, name in enumerate(self.names):
            seen = self.counts[i] > 0
            curves[str(name)] = (self.confidence[i][seen], self.observed[i][seen], self.counts[i][seen], self.error[i])
        return plot_curves(curves)


def calibrate(
    predictions: Mapping[str, npt.ArrayLike],
    targets: npt.ArrayLike,
    *,
    prior_precision: float,
    bins: int = 10,
    attributes: Mapping[str, Any] | None = None,
) -> Calibration:
    """Compute the calibration of several predictions of the same targets.

    Parameters
    ----------
    predictions : mapping of str to array (n, C)
        Class probabilities, by name.
    targets : int array (n,)
        True classes.
    prior_precision : float
        Prior precision of the posterior that the predictions are from.
    bins : int
        Number of bins of equal width in the confidence.
    attributes : mapping, optional
        Attributes of the result.

    Raises
    ------
    ValueError
        If there are no predictions or targets, or their numbers differ.
    """
    classes = np.asarray(targets)
    if not predictions or not classes.size:
        raise InputError("Calibration needs predictions of at least one sample, by name.")
    columns: dict[str, list[Any]] = {name: [] for name in Calibration.DIMENSIONS if name != "names"}
    for name, probabilities in predictions.items():
        given = np.asarray(probabilities, dtype=float)
        if given.ndim != 2 or len(given) != len(classes):
            raise InputError(
                f"The predictions {name!r} have shape {given.shape}, but there are {len(classes)} targets; they must "
                "have shape (n, C)."
            )
        confidence, accuracy, counts, error = calibration(given, classes, bins)
        # Curves have no empty bins; files have all of them.
        place = np.minimum((given.max(axis=1) * bins).astype(int), bins - 1)
        full = np.full((3, bins), np.nan)
        full[2] = 0.0
        full[:, np.unique(place)] = confidence, accuracy, counts
        likely = np.maximum(given[np.arange(len(classes)), classes], np.finfo(float).tiny)
        found = {
            "accuracy": float((given.argmax(axis=1) == classes).mean()),
            "negative_log_likelihood": float(-np.log(likely).mean()),
            "error": error,
            "confidence": full[0],
            "observed": full[1],
            "counts": full[2],
        }
        for column, value in found.items():
            columns[column].append(value)
    return Calibration(
        names=np.array(list(predictions)),
        prior_precision=prior_precision,
        attributes=dict(attributes or {}),
        **{name: np.array(values) for name, values in columns.items()},
    )
