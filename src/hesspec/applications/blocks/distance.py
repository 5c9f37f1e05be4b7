"""Distances between the shapes of spectra, independent of their scales, with bounds on their errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import wasserstein_distance

from hesspec.spectra.record import Array
from hesspec.spectra.spectrum import Spectrum

__all__ = ["shape_distances"]


def shape_distances(spectra: Sequence[Spectrum]) -> tuple[Array, Array]:
    """Compute distances between spectra in units of their mean |eigenvalue|, and bounds on the errors.

    Parameters
    ----------
    spectra : sequence of Spectrum

    Returns
    -------
    distances : array (k, k)
        D(a, b) = W1(a / m_a, b / m_b) / 2, with W1 the Wasserstein-1 distance and m the mean of |lambda| of each
        measure: 0 for spectra that differ in scale only, and at most 1, as both have a mean |lambda| of 1. NaN where a
        spectrum is zero.
    bounds : array (k, k)
        Largest error of each distance at 95% confidence for each spectrum, at most 1.

    Notes
    -----
    Ours. Let a' be an estimate of a with W1(a', a) <= w (`Spectrum.wasserstein_bound`). Then |m' - m| <= w, and
    W1(a'/m', a/m) <= W1(a', a)/m + |1/m' - 1/m| m' <= 2 w / m <= 2 w / (m' - w) if w < m'; half of it enters for each
    of the two spectra. Zhang et al., "Why Transformers Need Adam: A Hessian Perspective" (arXiv 2402.16788) compare
    blocks by the Jensen-Shannon distance of their densities, which depends on how these are smoothed.
    """
    count = len(spectra)
    scales = np.array([float(np.abs(each.nodes) @ each.weights) for each in spectra])
    errors = np.array([_error(each, scale) for each, scale in zip(spectra, scales, strict=True)])
    distances, bounds = np.zeros((count, count)), np.zeros((count, count))
    for i in range(count):
        for j in range(i):
            a, b = spectra[i], spectra[j]
            found = bound = np.nan
            if scales[i] > 0 and scales[j] > 0:
                found = wasserstein_distance(a.nodes / scales[i], b.nodes / scales[j], a.weights, b.weights) / 2
                bound = min(errors[i] + errors[j], 1.0)
            distances[i, j] = distances[j, i] = found
            bounds[i, j] = bounds[j, i] = bound
    return distances, bounds


def _error(spectrum: Spectrum, scale: float) -> float:
    bound = spectrum.wasserstein_bound
    return bound / (scale - bound) if bound < scale else 1.0
