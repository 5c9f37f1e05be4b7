"""Several predictions of the same classes: their accuracy, likelihood and calibration, as a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from hesspec.backend.shown import TextTable
from hesspec.errors import InputError
from hesspec.measure.calibration import binned
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Record, Strings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PredictionComparison", "compare_predictions"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PredictionComparison(Record):
    """Accuracy, likelihood and calibration of several predictions of the same classes.

    Attributes
    ----------
    names : str array (k,)
        Names of the predictions.
    accuracy : array (k,)
        Fraction of samples whose most likely class is the true one.
    negative_log_likelihood : array (k,)
        Mean of -log p(true class), in nats.
    ece : array (k,)
        Expected calibration error: mean |observed - predicted| over samples, with the means of their bins (Guo et al.
        2017).
    predicted, observed : array (k, b)
        Mean probability of the most likely class, and accuracy, of the samples of each bin; NaN for empty bins. Bins
        have equal widths in that probability.
    counts : array (k, b)
        Samples of each bin.
    """

    KIND: ClassVar = "comparison of predictions"
    FORMAT_ATTRIBUTE: ClassVar = "hesspec_predictions_format"
    FORMAT: ClassVar = 1
    DIMENSIONS: ClassVar = {
        **dict.fromkeys(("names", "accuracy", "negative_log_likelihood", "ece"), ("prediction",)),
        **dict.fromkeys(("predicted", "observed", "counts"), ("prediction", "bin")),
    }
    FINITE: ClassVar = ("accuracy", "negative_log_likelihood", "ece", "counts")
    NOT_NEGATIVE: ClassVar = ("accuracy", "negative_log_likelihood", "ece", "counts")

    names: Strings
    accuracy: Array
    negative_log_likelihood: Array
    ece: Array
    predicted: Array
    observed: Array
    counts: Array

    def _coordinates(self) -> dict[str, Any]:
        bins = self.counts.shape[1]
        # Their centres: all have one width.
        return {"prediction": self.names, "bin": (np.arange(bins) + 0.5) / max(bins, 1)}

    def check(self) -> None:
        """Raise ValueError unless accuracies and errors are fractions, and all predictions are of as many samples."""
        for name in ("accuracy", "ece"):
            refuse_unless(bool((getattr(self, name) <= 1 + 1e-12).all()), f"Its {name} is above 1.")
        refuse_unless(self.names.size > 0, "It has no predictions.")
        totals = self.counts.sum(axis=1)
        refuse_unless(
            bool((totals > 0).all() and (totals == totals[0]).all()), "Its predictions are not of the same samples."
        )

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        prior = self.attributes.get("prior_precision")
        return {
            "samples": f"{int(self.counts[0].sum()):,}",
            **({} if prior is None else {"prior precision": f"{prior:.4g}"}),
        }

    def tables(self) -> list[TextTable]:
        """Table of the predictions."""
        rows = [
            (str(name), f"{100 * accuracy:.2f}%", f"{likelihood:.4g}", f"{100 * ece:.2f}%")
            for name, accuracy, likelihood, ece in zip(
                self.names, self.accuracy, self.negative_log_likelihood, self.ece, strict=True
            )
        ]
        columns = ("prediction", "accuracy", "negative log-likelihood (nats)", "expected calibration error")
        return [TextTable("", columns, rows)]

    def plot(self) -> Figure:
        """Plot accuracy against the probability of the most likely class.

        Returns
        -------
        matplotlib.figure.Figure
            4.8 by 4.4 inches; the area of a marker grows with the number of samples in its bin.
        """
        from hesspec.applications.laplace.figure import plot_predictions  # noqa: PLC0415 - imports matplotlib

        return plot_predictions(self)


def compare_predictions(
    predictions: Mapping[str, npt.ArrayLike],
    targets: npt.ArrayLike,
    *,
    bins: int = 10,
    attributes: Mapping[str, Any] | None = None,
) -> PredictionComparison:
    """Compare several predictions of the same classes, such as those of a network and of posteriors of its weights.

    Parameters
    ----------
    predictions : mapping of str to array (n, C)
        Class probabilities, by name.
    targets : int array (n,)
        True classes.
    bins : int
        Number of bins of equal width in the probability of the most likely class.
    attributes : mapping, optional
        Attributes of the result, such as `prior_precision`, which it shows.

    Raises
    ------
    ValueError
        If there are no predictions or targets, or their numbers differ.

    Notes
    -----
    For more about a single prediction, such as intervals of its bins, see `hesspec.language.calibration`.
    """
    classes = np.asarray(targets)
    if not predictions or not classes.size:
        raise InputError("A comparison needs predictions of at least one sample, by name.")
    columns: dict[str, list[Any]] = {name: [] for name in PredictionComparison.DIMENSIONS if name != "names"}
    for name, probabilities in predictions.items():
        given = np.asarray(probabilities, dtype=float)
        if given.ndim != 2 or len(given) != len(classes):
            raise InputError(
                f"The predictions {name!r} have shape {given.shape}, but there are {len(classes)} targets; they must "
                "have shape (n, C)."
            )
        right = (given.argmax(axis=1) == classes).astype(float)
        in_bins = binned(given.max(axis=1), right, bins, equal_counts=False)
        # Files have all bins, so that those of all predictions are as many.
        every = np.full((3, bins), np.nan)
        every[2] = 0.0
        every[:, in_bins.places] = in_bins.predicted, in_bins.observed, in_bins.counts
        likely = np.maximum(given[np.arange(len(classes)), classes], np.finfo(float).tiny)
        found = (right.mean(), -np.log(likely).mean(), in_bins.error, *every)
        for column, value in zip(columns.values(), found, strict=True):
            column.append(value)
    return PredictionComparison(
        names=np.array(list(predictions)),
        attributes=dict(attributes or {}),
        **{name: np.array(values) for name, values in columns.items()},
    )
