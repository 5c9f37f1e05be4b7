"""Numbers of a spectrum that are compared, each with its 95% interval, and the overlap of two eigenspaces."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.stats

from hesspec.spectra.sampling import Estimate, node_bounds
from hesspec.spectra.spectrum import Spectrum

__all__ = ["QUANTITIES", "distance_of", "estimates_of", "overlap_of_pairs", "overlap_of_sketches"]

Array = npt.NDArray[np.float64]

QUANTITIES: Final = (
    "largest eigenvalue",
    "smallest eigenvalue",
    "trace",
    "mean eigenvalue",
    "lower bulk edge",
    "upper bulk edge",
    "effective rank",
    "negative share",
    "outliers",
)
"""Names of the compared numbers: those up to the edges have the unit of eigenvalues, the others have none."""


def estimates_of(spectrum: Spectrum) -> dict[str, Estimate]:
    """Compute the numbers named in `QUANTITIES`.

    Returns
    -------
    dict of str to Estimate
        In the order of `QUANTITIES`. NaN where a number does not exist, such as the edges of a spectrum without a bulk.
        The interval of the number of outliers is NaN: it is a count by a rule, whose error is not known.

    Notes
    -----
    The extreme eigenvalues are the extreme points of the measure with their error bounds. If such a point is a Ritz
    value that is not resolved, the eigenvalue is not inside of it, and, under the condition of
    `Spectrum.wasserstein_bound`, not beyond it by more than its residual bound. The mean of |lambda| is 1-Lipschitz in
    the measure, so its error is at most `Spectrum.wasserstein_bound`; for a positive semi-definite matrix it is that of
    the trace.
    """
    p, negative = spectrum.dimension, spectrum.num_negative
    error = spectrum.trace_error
    trace = Estimate(spectrum.trace, spectrum.trace - error, spectrum.trace + error)
    low, high = spectrum.bulk_edge_estimates
    count = float(spectrum.outliers.size)
    return {
        "largest eigenvalue": _extreme(spectrum, 1),
        "smallest eigenvalue": _extreme(spectrum, -1),
        "trace": trace,
        "mean eigenvalue": Estimate(*(number / p for number in trace)),
        "lower bulk edge": low,
        "upper bulk edge": high,
        "effective rank": _effective_rank(spectrum, trace),
        "negative share": Estimate(*(number / p for number in negative)),
        "outliers": Estimate(count, np.nan, np.nan),
    }


def _extreme(spectrum: Spectrum, sign: int) -> Estimate:
    """Largest (1) or smallest (-1) eigenvalue."""
    points = sign * np.concatenate([spectrum.eigenvalues, spectrum.bulk_nodes])
    place = int(np.argmax(points))
    if place < spectrum.eigenvalues.size:
        inward = outward = float(spectrum.error_bounds[place])
    else:
        inward, outward = spectrum.rounding, float(node_bounds(spectrum)[place - spectrum.eigenvalues.size])
    value = float(points[place])
    ends = sorted((sign * (value - inward), sign * (value + outward)))
    value *= sign
    if spectrum.is_positive:
        value, ends = max(value, 0.0), [max(end, 0.0) for end in ends]
    return Estimate(value, *ends)


def _effective_rank(spectrum: Spectrum, trace: Estimate) -> Estimate:
    value, p = spectrum.effective_rank, spectrum.dimension
    if not spectrum.norm > 0:
        return Estimate(value, 0.0, float(p))
    if spectrum.is_positive:
        low, high = trace.lower, trace.upper
    else:
        total, error = value * spectrum.norm, p * spectrum.wasserstein_bound
        low, high = total - error, total + error
    places = np.flatnonzero(np.abs(spectrum.eigenvalues) == np.abs(spectrum.eigenvalues).max(initial=0.0))
    bound = float(spectrum.error_bounds[places[0]]) if places.size else spectrum.norm
    lower = max(low, 0.0) / (spectrum.norm + bound)
    upper = high / (spectrum.norm - bound) if bound < spectrum.norm else float(p)
    return Estimate(value, min(lower, value), max(min(upper, float(p)), value))


def distance_of(first: Spectrum, second: Spectrum) -> tuple[float, float]:
    """Compute the Wasserstein-1 distance of two measures of mass 1, and a bound on its error.

    Returns
    -------
    distance : float
        Distance of the two estimated measures, computed exactly, in units of eigenvalues.
    bound : float
        Sum of both `Spectrum.wasserstein_bound`: by the triangle inequality, the distance of the true measures differs
        by at most as much, each with a confidence of 95%.
    """
    distance = scipy.stats.wasserstein_distance(first.nodes, second.nodes, first.weights, second.weights)
    return float(distance), first.wasserstein_bound + second.wasserstein_bound


def overlap_of_sketches(first: Spectrum, second: Spectrum) -> tuple[float, float, int]:
    r"""Estimate the overlap of the spans of k outliers' eigenvectors, from their sketches.

    Returns
    -------
    overlap : float
        Mean squared cosine of the principal angles, ||U^T V||_F^2 / k, in [0, 1]; about k/p for unrelated spaces. NaN
        if a spectrum has no outlier with a sketch.
    error : float
        Two standard errors. For sketches of d numbers, an inner product c of unit vectors has the variance (1 + c^2)/d,
        so that the expectation of the sum of their squares is larger by (k^2 + S)/d, S = k overlap, which is
        subtracted. With the singular values s of U^T V, its variance is
        :math:`4 \sum_i (s_i^2 + s_i^4) / d + 2 k^2 / d^2`. Zero for at most d parameters, where sketches are exact.
    count : int
        Number k of eigenvectors of either spectrum: the smaller of the numbers of outliers.
    """
    count = min(_sketched(first), _sketched(second))
    if not count:
        return np.nan, np.nan, 0
    u, v = (_rows(spectrum, count) for spectrum in (first, second))
    size = u.shape[1]
    cosines = u @ v.T
    total = float((cosines**2).sum())
    if first.dimension <= size:
        return min(total / count, 1.0), 0.0, count
    squares = np.linalg.svd(cosines, compute_uv=False) ** 2
    variance = 4 * float((squares + squares**2).sum()) / size + 2 * count**2 / size**2
    overlap = (total - count**2 / size) / (1 + 1 / size) / count
    return float(np.clip(overlap, 0, 1)), 2 * float(np.sqrt(variance)) / count, count


def _sketched(spectrum: Spectrum) -> int:
    """Number of outliers with a sketch."""
    return int(spectrum.is_outlier[: len(spectrum.eigenvector_sketches)].sum())


def _rows(spectrum: Spectrum, count: int) -> Array:
    sketches = spectrum.eigenvector_sketches.astype(np.float64)
    rows = sketches[np.flatnonzero(spectrum.is_outlier[: len(sketches)])[:count]]
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def overlap_of_pairs(first: Any, second: Any) -> tuple[float, float, int]:
    """Compute the overlap of the spans of the first k eigenvectors of two `hesspec.Eigenpairs`.

    Returns
    -------
    overlap, error, count
        See `overlap_of_sketches`. The error is a bound: with sines s_i of the angles between computed and true
        eigenvectors, the projector on k of them changes by at most sqrt(2 sum s_i^2) in the Frobenius norm, and the
        projector on the others has the norm sqrt(k).
    """
    count = min(first.values.size, second.values.size)
    if not count:
        return np.nan, np.nan, 0
    u, v = (np.asarray(pairs.vectors[:, :count].cpu().double()) for pairs in (first, second))
    overlap = float(((u.T @ v) ** 2).sum()) / count
    bounds = [float(np.sqrt(2 * (pairs.vector_errors[:count] ** 2).sum() / count)) for pairs in (first, second)]
    return min(overlap, 1.0), sum(bounds), count
