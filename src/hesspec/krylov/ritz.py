"""Ritz pairs, quadrature and resolved eigenvalues of a Lanczos run: design 3.2, on NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.stats

__all__ = ["RitzPairs", "clustered_bounds", "resolve", "ritz_pairs"]

Array = npt.NDArray[np.float64]

# Residual bound, relative to the eigenvalue, up to which a Ritz value counts as resolved.
RESOLVED = 1e-2
# Quadrature weights of simple eigenvalues are Beta(1/2, (p - 1)/2) variables; one that is larger than this upper
# quantile (p w > 19.5 for large p) belongs to several eigenvalues.
MULTIPLE = 1e-5


@dataclass(frozen=True)
class RitzPairs:
    """Eigenpairs of the Lanczos matrix T, ascending.

    Attributes
    ----------
    values : array (m,)
        Ritz values.
    weights : array (m,)
        Squared first components of the eigenvectors of T: the Gauss quadrature of the start vector's spectral measure.
    residuals : array (m,)
        ||A y - theta y|| in exact arithmetic, beta_m |last component|.
    vectors : array (m, m)
        Eigenvectors of T, a column each.
    """

    values: Array
    weights: Array
    residuals: Array
    vectors: Array


def ritz_pairs(alpha: Array, beta: Array) -> RitzPairs:
    """Ritz pairs of one block of a Lanczos run.

    Parameters
    ----------
    alpha : array (m,)
        Diagonal of T.
    beta : array (m,)
        Off-diagonal of T, then the norm of the residual.
    """
    # LAPACK squares entries: T of tiny or huge scale would under- or overflow.
    scale = float(max(np.abs(alpha).max(), np.abs(beta).max())) or 1.0
    values, vectors = scipy.linalg.eigh_tridiagonal(alpha / scale, beta[:-1] / scale)
    return RitzPairs(values * scale, vectors[0] ** 2, beta[-1] * np.abs(vectors[-1]), vectors)


def resolve(pairs: RitzPairs, dimension: int, rounding: float) -> npt.NDArray[np.intp]:
    """Ritz pairs that are single eigenvalues of the operator, by decreasing absolute value.

    The walk from the outside ends at the first pair whose residual bound exceeds 1% of its value; a pair whose weight
    says that it stands for several eigenvalues is passed over, so that its weight stays as measured.

    Parameters
    ----------
    pairs : RitzPairs
    dimension : int
        p, of the space that the start vector was drawn from.
    rounding : float
        Rounding floor of the residual norms, absolute.

    Returns
    -------
    int array (k,)
        Indices into `pairs`.
    """
    chosen: list[int] = []
    largest_simple = scipy.stats.beta.isf(MULTIPLE, 0.5, (dimension - 1) / 2) if dimension > 1 else 1.0
    for i in np.argsort(-np.abs(pairs.values), kind="stable"):
        if pairs.residuals[i] + rounding > RESOLVED * abs(pairs.values[i]):
            break
        if pairs.weights[i] <= largest_simple:
            chosen.append(int(i))
    return np.array(chosen, np.intp)


def clustered_bounds(values: Array, residuals: Array, rounding: float) -> Array:
    """Error bounds under which eigenvalues of A can be paired one-to-one with the given Ritz values.

    A single Ritz value has an eigenvalue within its residual norm. Where such intervals overlap, two could mean the
    same eigenvalue; by Kahan's theorem k Ritz values have k eigenvalues within the spectral norm of their residual
    matrix, which for one Lanczos run has rank one and the norm sqrt(sum rho_i^2).

    Parameters
    ----------
    values, residuals : array (k,)
    rounding : float
        Added to every bound.

    Returns
    -------
    array (k,)

    Notes
    -----
    Kahan 1967; Parlett, The Symmetric Eigenvalue Problem, theorem 11.5.1.
    """
    order = np.argsort(values, kind="stable")
    clusters = [([i], float(residuals[i])) for i in order]
    merged = True
    while merged:
        merged = False
        result: list[tuple[list[np.intp], float]] = []
        for members, radius in clusters:
            if result:
                previous, reach = result[-1]
                if values[members].min() - radius - rounding <= values[previous].max() + reach + rounding:
                    joined = previous + members
                    result[-1] = (joined, float(np.sqrt((residuals[joined] ** 2).sum())))
                    merged = True
                    continue
            result.append((members, radius))
        clusters = result
    bounds = np.empty(len(values))
    for members, radius in clusters:
        bounds[members] = radius + rounding
    return bounds
