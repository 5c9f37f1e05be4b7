"""Errors of eigenspaces: how far the span of computed eigenvectors is from that of the true ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from hesspec.measure.eigenpairs import Eigenpairs
from hesspec.spectra.record import Array
from hesspec.spectra.sampling import node_bounds

__all__ = ["PrincipalCosines", "eigenspace_errors", "principal_cosines"]


class PrincipalCosines(NamedTuple):
    """Cosines of the principal angles between two eigenspaces.

    Attributes
    ----------
    values : array (k,)
        In decreasing order.
    low, high : array (k,)
        Bounds.
    errors : tuple of float
        Bounds on the sine of the largest angle between each computed and its true space.
    """

    values: Array
    low: Array
    high: Array
    errors: tuple[float, float]


def principal_cosines(first: Eigenpairs, second: Eigenpairs, count: int) -> PrincipalCosines:
    """Compute the cosines of the principal angles between two eigenspaces of the same dimension, with bounds.

    Parameters
    ----------
    first, second : Eigenpairs
        At least `count` eigenpairs each, of matrices of the same size.
    count : int
        Dimension k of both spaces, those of the eigenvectors of largest absolute eigenvalue.

    Notes
    -----
    The cosines are the singular values of P^T Q, with orthonormal bases P and Q (Björck and Golub 1973). Every angle is
    known within the sum of the angles of `eigenspace_errors`.
    """
    chosen = [pairs.vectors[:, :count].to(first.vectors.device, torch.float64) for pairs in (first, second)]
    bases = [torch.linalg.qr(vectors)[0] for vectors in chosen]
    cosines = torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(max=1).cpu().numpy()
    one, other = (float(eigenspace_errors(pairs, count)[-1]) for pairs in (first, second))
    reach, angles = math.asin(one) + math.asin(other), np.arccos(cosines)
    low = np.where(angles + reach < math.pi / 2, np.cos(angles + reach).clip(0, cosines), 0.0)
    high = np.cos(np.maximum(angles - reach, 0)).clip(cosines, 1)
    return PrincipalCosines(cosines, low, high, (one, other))


def eigenspace_errors(pairs: Eigenpairs, count: int) -> Array:
    r"""Bounds on the sine of the largest angle between the span of the first eigenvectors and their true span.

    Parameters
    ----------
    pairs : Eigenpairs
    count : int
        Largest number of eigenvectors, those of largest absolute eigenvalue.

    Returns
    -------
    array (count,)
        Bounds for 1, ..., `count` eigenvectors, at most 1, which gives no information.

    Notes
    -----
    With unit vectors v_i, residuals r_i and distances d_i of their values to the eigenvalues outside of the space,

    .. math:: \sin^2 \theta \le \sum_i (r_i / d_i)^2 / \sigma_{min}(V)^2

    (Davis and Kahan 1970), unless an eigenvalue may be multiple. The angles of the single vectors, with the sines
    `vector_errors`, bound it as well. Both hold if no eigenvalue in a gap was missed.
    """
    found, values, residuals = pairs.spectrum, pairs.values[:count], pairs.residuals[:count]
    points = np.concatenate([found.eigenvalues, found.bulk_nodes])
    radii = np.concatenate([found.error_bounds, node_bounds(found)])
    own = _own_places(found.eigenvalues, pairs.values)[:count]
    distances = np.abs(points - values[:, None]) - radii
    distances[np.arange(count), own] = np.inf
    # Eigenvalues that may be multiple have the error 1 although they are far from others.
    multiple = (pairs.vector_errors[:count] >= 1) & (residuals < distances.min(axis=1, initial=np.inf))
    # Vectors that are not quite orthogonal span a space that can be further away than each of them.
    least = float(torch.linalg.svdvals(pairs.vectors[:, :count].double()).min())
    errors = np.ones(count)
    for place in range(count):
        distances[:, own[place]] = np.inf
        inside = slice(place + 1)
        sine = float(np.linalg.norm(pairs.vector_errors[inside]))
        gaps = distances[inside].min(axis=1, initial=np.inf)
        if not multiple[inside].any() and (residuals[inside] < gaps).all():
            sine = min(sine, float(np.linalg.norm(residuals[inside] / gaps)))
        if sine < least:
            errors[place] = sine / least
    return errors


def _own_places(eigenvalues: Array, values: Array) -> npt.NDArray[np.intp]:
    """Return the index of each value's eigenvalue in the spectrum; both are in the order of absolute value."""
    places: npt.NDArray[np.intp] = np.empty(values.size, dtype=np.intp)
    start = 0
    for index, value in enumerate(values):
        # Some eigenvalues may be left out, but not so many that too few are left for the others.
        stop = eigenvalues.size - (values.size - index - 1)
        places[index] = start + int(np.argmin(np.abs(eigenvalues[start:stop] - value)))
        start = places[index] + 1
    return places
