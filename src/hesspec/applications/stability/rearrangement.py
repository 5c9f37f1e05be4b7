"""Decreasing rearrangements of exponents: bounds from a spectrum, means of several, and their dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hesspec.applications.stability.exponents import LinearStep
from hesspec.spectra.sampling import residual_bound
from hesspec.spectra.spectrum import Spectrum

__all__ = ["Exponents", "bracket", "dimension_of", "ordered", "pooled", "with_partners"]

Array = npt.NDArray[np.float64]


class Exponents(NamedTuple):
    """Decreasing step function on [0, count]: the exponents of `count` directions, largest first.

    Attributes
    ----------
    levels : array (n,)
        Exponents, descending; -inf for a direction that vanishes in one step.
    counts : array (n,)
        Numbers of directions, positive, not necessarily integers.
    """

    levels: Array
    counts: Array

    @classmethod
    def of(cls, levels: Array, counts: Array) -> Exponents:
        """Sort exponents and drop those of zero weight."""
        kept = counts > 0
        order = np.argsort(-levels[kept], kind="stable")
        return cls(levels[kept][order], counts[kept][order])

    def first(self, count: float) -> Exponents:
        """The largest `count` exponents."""
        ends = np.minimum(np.cumsum(self.counts), count)
        return Exponents.of(self.levels, np.diff(ends, prepend=0.0))


def dimension_of(exponents: Exponents) -> float:
    """Largest s for which the sum of the s largest exponents is nonnegative, interpolated within an exponent.

    It is j + (sum of the first j) / |exponent j + 1| with the largest j whose sum is nonnegative: the Kaplan-Yorke
    formula, and definition 4.2 of arXiv 2604.19740.
    """
    sums = np.cumsum(exponents.levels * exponents.counts)
    below = np.flatnonzero(sums < 0)
    if not below.size:
        return float(exponents.counts.sum())
    last = int(below[0])
    left = float(sums[last - 1]) if last else 0.0
    return float(exponents.counts[:last].sum() - left / exponents.levels[last])


def pooled(several: Sequence[Exponents]) -> Exponents:
    """Mean of the measures: all directions with equal weight."""
    return Exponents.of(
        np.concatenate([exponents.levels for exponents in several]),
        np.concatenate([exponents.counts for exponents in several]) / len(several),
    )


def ordered(several: Sequence[Exponents]) -> Exponents:
    """Mean of the step functions: mean of the k-th largest exponents for each k."""
    ends = [np.cumsum(exponents.counts) for exponents in several]
    # Measures of the same total weight may differ by rounding at the end.
    total = min(float(end[-1]) for end in ends)
    breaks = np.unique(np.concatenate([[0.0], *(end[end < total] for end in ends), [total]]))
    middles = (breaks[:-1] + breaks[1:]) / 2
    mean = np.zeros(middles.size)
    for exponents, end in zip(several, ends, strict=True):
        mean += exponents.levels[np.minimum(np.searchsorted(end, middles), len(end) - 1)] / len(several)
    return Exponents.of(mean, np.diff(breaks))


def with_partners(exponents: Exponents, step: LinearStep) -> Exponents:
    """Add the exponents of the smaller roots, ln D minus those of the larger ones; no change without momentum."""
    if not step.momentum > 0:
        return exponents
    levels = np.concatenate([exponents.levels, 2 * step.lowest - exponents.levels])
    return Exponents.of(levels, np.tile(exponents.counts, 2))


def bracket(spectrum: Spectrum, step: LinearStep) -> tuple[Exponents, Exponents]:
    """Lower and upper step functions for the leading exponents of a measured operator.

    An exponent decreases with the eigenvalue up to the centre and increases beyond it. So the exponents are largest
    with as many eigenvalues on the left as the upper bound of the CDF allows and as many on the right as its lower
    bound allows. For the smallest exponents the bounds are swapped, and the remaining eigenvalues are at the centre.
    """
    x, lower, upper = _cdf_steps(spectrum, step.centre)
    levels, left = step.leading(x), x <= step.centre
    least, most = np.diff(lower), np.diff(upper)
    count = float(spectrum.dimension)
    high = Exponents.of(levels, np.where(left, most, least)).first(count)
    low = Exponents.of(levels, np.where(left, least, most))
    rest = max(count - float(low.counts.sum()), 0.0)
    return Exponents.of(np.append(low.levels, step.lowest), np.append(low.counts, rest)), high


def _cdf_steps(spectrum: Spectrum, centre: float) -> tuple[Array, Array, Array]:
    """Bounds on the number of eigenvalues <= x, as step functions.

    Returns
    -------
    x : array (n,)
        Positions of possible jumps, ascending, including `centre`.
    lower, upper : array (n + 1,)
        Bounds before the first jump, between consecutive ones, and after the last.
    """
    p, bounds = spectrum.dimension, spectrum.error_bounds
    copies = np.maximum(np.rint(spectrum.eigenvalue_weights * p), 1.0)
    below, above = spectrum.eigenvalues - bounds, spectrum.eigenvalues + bounds
    jumps = [below, above, np.array([centre])]
    if not spectrum.exact:
        # No eigenvalue is assumed to lie beyond the outermost node by more than its bound, as in
        # `Spectrum.wasserstein_bound`; the quadrature alone would allow a little of the measure anywhere.
        nodes = np.array([spectrum.nodes[0], spectrum.nodes[-1]])
        reach = np.array([residual_bound(spectrum, float(node)) for node in nodes]) + spectrum.rounding
        first = spectrum.ritz_values[spectrum.ritz_probe == 0]
        shift = float(np.sqrt(spectrum.rounding) * np.sqrt(spectrum.norm))
        jumps += [np.array([nodes[0] - reach[0], nodes[1] + reach[1]]), first - shift, first + shift]
    x = np.unique(np.concatenate(jumps))
    # Both are constant between jumps.
    middles = (x[:-1] + x[1:]) / 2
    lower = (above <= middles[:, None]) @ copies
    upper = p - (below > middles[:, None]) @ copies
    if not spectrum.exact:
        found = spectrum.cdf_bracket(middles)
        # There are no eigenvalues outside the ends.
        begin, end = float(nodes[0] - reach[0]), float(nodes[-1] + reach[1])
        lower = np.where(middles > end, p, np.maximum(lower, p * found["operator_lower"].to_numpy()))
        upper = np.where(middles < begin, 0.0, np.minimum(upper, p * found["operator_upper"].to_numpy()))
    lower, upper = np.maximum.accumulate(lower), np.minimum.accumulate(upper[::-1])[::-1]
    # Rigorous limits take precedence over the 95% interval.
    upper = np.maximum(upper, lower)
    return x, np.concatenate([[0.0], lower, [p]]), np.concatenate([[0.0], upper, [p]])
