"""Calibration of predicted probabilities: means of predictions and outcomes in bins, and intervals of shares."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from hesspec.spectra.record import Array, Integers

__all__ = ["TWO_SIDED_95", "Bins", "binned", "wilson_interval"]

TWO_SIDED_95: Final = 1.959963984540054
"""Quantile of the normal distribution for two-sided intervals of 95%."""


class Bins(NamedTuple):
    """Predictions in bins of their probability.

    Attributes
    ----------
    predicted, observed : array (b,)
        Mean probability and mean outcome of each bin.
    counts : int array (b,)
        Number of predictions, at least 1.
    deviation : array (b,)
        Standard deviation that `observed` would have if every outcome were drawn with its predicted probability.
    places : int array (b,)
        Number of each bin, from 0; without those of empty bins.
    """

    predicted: Array
    observed: Array
    counts: Integers
    deviation: Array
    places: Integers

    @property
    def error(self) -> float:
        """Expected calibration error: mean of |observed - predicted| over predictions (Guo et al. 2017)."""
        return float(np.abs(self.observed - self.predicted) @ self.counts / self.counts.sum())


def binned(probabilities: Array, outcomes: Array, bins: int, *, equal_counts: bool) -> Bins:
    """Sort predictions into bins of their probability.

    Parameters
    ----------
    probabilities, outcomes : array (n,)
        Predictions and what happened, in [0, 1].
    bins : int
        Number of bins, at most n.
    equal_counts : bool
        Whether bins have equal numbers of predictions (up to 1), or else equal widths of 1/bins; empty bins are then
        left out.

    Notes
    -----
    Equal probabilities may fall into two bins of equal counts. Which outcomes fall into which would depend on the order
    of the data: each of them is given the mean outcome of all predictions of this probability (ours).
    """
    levels, which, ties = np.unique(probabilities, return_inverse=True, return_counts=True)
    means = np.bincount(which, outcomes) / ties
    if equal_counts:
        places = np.empty(probabilities.size, dtype=np.intp)
        for place, chosen in enumerate(np.array_split(np.argsort(probabilities, kind="stable"), bins)):
            places[chosen] = place
    else:
        places = np.minimum((probabilities * bins).astype(np.intp), bins - 1)
    counts = np.bincount(places, minlength=bins)
    seen = counts > 0
    # A pair is a bin and a level of probability in it.
    pairs, members = np.unique(places * levels.size + which, return_counts=True)
    at, level = pairs // levels.size, pairs % levels.size
    weights = members / counts[at]
    spread = weights**2 * levels[level] * (1 - levels[level]) / ties[level]

    def summed(values: Array) -> Array:
        found: Array = np.bincount(at, values, minlength=bins)[seen].astype(np.float64)
        return found

    predicted, observed = summed(weights * levels[level]), summed(weights * means[level])
    return Bins(predicted, observed, counts[seen], np.sqrt(summed(spread)), np.flatnonzero(seen))


def wilson_interval(shares: Array, counts: Integers) -> tuple[Array, Array]:
    """Intervals of 95% for probabilities of which shares were observed in numbers of independent trials (Wilson 1927).

    Parameters
    ----------
    shares : array (b,)
        Observed shares, in [0, 1]. Means of outcomes between 0 and 1 vary less than those of 0 and 1 of the same mean,
        so the intervals are then too wide rather than too narrow.
    counts : int array (b,)
        Numbers of trials, at least 1.

    Returns
    -------
    low, high : array (b,)
    """
    square = TWO_SIDED_95**2
    middle = (shares + square / (2 * counts)) / (1 + square / counts)
    half = np.sqrt(shares * (1 - shares) / counts + square / (4 * counts**2)) * TWO_SIDED_95 / (1 + square / counts)
    # Rounding must not put a share of 0 or 1 outside.
    return np.minimum(np.maximum(middle - half, 0), shares), np.maximum(np.minimum(middle + half, 1), shares)
