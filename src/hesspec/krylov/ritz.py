"""Ritz pairs, quadrature and resolved eigenvalues of a Lanczos run: design 3.2, on NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.special

__all__ = ["RitzPairs", "clustered_bounds", "equal_values", "outermost", "resolve", "ritz_pairs"]

Array = npt.NDArray[np.float64]

# Residual bound, relative to the eigenvalue, up to which a Ritz value counts as resolved.
RESOLVED = 1e-2
# The weights of k simple eigenvalues add up to a Beta(k/2, (p - k)/2) variable; a sum beyond this upper quantile
# (p w > 19.5 for one eigenvalue and large p) belongs to more than k eigenvalues.
MULTIPLE = 1e-5
# The same where the eigenvalues of an invariant subspace are all that there are, and fewer than p: some have copies,
# and one of 100 times a simple one may be taken for one of these.
SOME_MULTIPLE = 1e-2
# Least part of the weight of an eigenvalue of unknown multiplicity that is kept for further copies.
LEAST_SHARE = 0.1


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
    pair = scipy.linalg.eigh_tridiagonal(alpha / scale, beta[:-1] / scale)
    values, vectors = (np.asarray(part, np.float64) for part in pair)
    return RitzPairs(values * scale, vectors[0] ** 2, beta[-1] * np.abs(vectors[-1]), vectors)


def outermost(pairs: RitzPairs, rounding: float) -> npt.NDArray[np.intp]:
    """Ritz pairs that are eigenvalues of the operator, by decreasing absolute value.

    The walk from the outside ends at the first pair whose residual bound exceeds 1% of its value.
    """
    order = np.argsort(-np.abs(pairs.values), kind="stable")
    unresolved = pairs.residuals[order] + rounding > RESOLVED * np.abs(pairs.values[order])
    return order[: np.argmax(unresolved)] if unresolved.any() else order


def equal_values(ascending: Array, rounding: float) -> list[npt.NDArray[np.intp]]:
    """Indices of values that are told apart by rounding only, an array for each eigenvalue."""
    gaps = np.diff(ascending) > 2 * rounding
    return np.split(np.arange(ascending.size), np.flatnonzero(gaps) + 1)


def resolve(
    pairs: RitzPairs,
    dimension: int,
    rounding: float,
    *,
    complete: npt.NDArray[np.bool_] | None = None,
    multiple: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.intp], Array]:
    """Ritz pairs that are eigenvalues of the operator, as `outermost`, and the weights of all the rest.

    One eigenvalue is taken from each resolved pair. A simple one leaves nothing of its weight to the rest; the measured
    weight beyond the copies that were taken is left where it is known that there are more of them, where weights say so
    (of one eigenvalue, or of all that seem simple together), and where rounding has brought up further copies.

    Parameters
    ----------
    pairs : RitzPairs
    dimension : int
        p, of the space that the start vector was drawn from.
    rounding : float
        Rounding floor of the residual norms, absolute.
    complete : bool array (m,), optional
        Pairs whose eigenvalue has no further copies.
    multiple : bool array (m,), optional
        Pairs whose eigenvalue is known to have further copies, found elsewhere.

    Returns
    -------
    resolved : int array (k,)
        Indices into `pairs`.
    rest : array (m,)
        Weight of each pair in the measure without the resolved eigenvalues, not normalised.
    """
    resolved, rest = outermost(pairs, rounding), pairs.weights.copy()
    if resolved.size:
        rest[resolved] = 0
        heaviest, copies, measured = _eigenvalues(pairs, np.sort(resolved), rounding)
        done = np.zeros(copies.size, bool) if complete is None else complete[heaviest]
        again = np.zeros(copies.size, bool) if multiple is None else multiple[heaviest]
        invariant = not pairs.residuals.any() and pairs.values.size < dimension
        level = SOME_MULTIPLE / copies.size if invariant else MULTIPLE
        many = ~done & (measured > np.array([_largest_weight(count, dimension, level) for count in copies]))
        simple = ~done & ~many & ~again & (copies == 1)
        if measured[simple].sum() > _largest_weight(int(simple.sum()), dimension, MULTIPLE):
            simple[:] = False
        unclear = ~done & ~many & ~simple
        rest[heaviest[many]] = (measured - copies / dimension)[many]
        if measured[unclear].sum() > 0:
            # What is beyond the copies of one of these alone may come out negative: it counts in their sum, and no node
            # is given up, as it may have further copies all the same.
            beyond = (measured - copies / dimension)[unclear]
            share = np.maximum(beyond, LEAST_SHARE * measured[unclear])
            rest[heaviest[unclear]] = share * (max(beyond.sum(), 0) / share.sum())
    return resolved, rest if rest.sum() > 0 else pairs.weights.copy()


def _eigenvalues(
    pairs: RitzPairs, ascending: npt.NDArray[np.intp], rounding: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Array]:
    """Heaviest pair, number and weight of the pairs of each eigenvalue, pairs being told apart by rounding only."""
    groups = [ascending[group] for group in equal_values(pairs.values[ascending], rounding)]
    return (
        np.array([group[np.argmax(pairs.weights[group])] for group in groups]),
        np.array([group.size for group in groups]),
        np.array([pairs.weights[group].sum() for group in groups]),
    )


def _largest_weight(count: int, dimension: int, level: float) -> float:
    """Most that the weights of `count` simple eigenvalues add up to, but for a probability of `level`."""
    return float(scipy.special.betainccinv(count / 2, (dimension - count) / 2, level)) if 0 < count < dimension else 1.0


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
