"""Ritz pairs of a Lanczos run, the resolved eigenvalues among them, and error bounds, on NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.special

__all__ = ["RitzPairs", "clustered_bounds", "equal_values", "outermost", "resolve", "ritz_pairs"]

Array = npt.NDArray[np.float64]

# Largest residual bound, relative to the eigenvalue, of a resolved Ritz value.
RESOLVED = 1e-2
# The weights of k simple eigenvalues sum to a Beta(k/2, (p - k)/2) variable; a sum above this upper quantile (p w >
# 19.5 for one eigenvalue and large p) belongs to more than k eigenvalues.
MULTIPLE = 1e-5
# The same quantile if the eigenvalues of an invariant subspace, fewer than p, are the whole spectrum: some must have
# copies, so one simple eigenvalue in 100 may be mistaken for a multiple one.
SOME_MULTIPLE = 1e-2
# Smallest share of the weight of an eigenvalue of unknown multiplicity that is reserved for further copies.
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
        Residual norms ||A y - theta y|| in exact arithmetic, beta_m |last component|.
    vectors : array (m, m)
        Eigenvectors of T as columns.
    """

    values: Array
    weights: Array
    residuals: Array
    vectors: Array


def ritz_pairs(alpha: Array, beta: Array) -> RitzPairs:
    """Compute the Ritz pairs of one block of a Lanczos run.

    Parameters
    ----------
    alpha : array (m,)
        Diagonal of T.
    beta : array (m,)
        Off-diagonal of T, then the norm of the residual.
    """
    # LAPACK squares entries: a T of tiny or huge scale would under- or overflow.
    scale = float(max(np.abs(alpha).max(), np.abs(beta).max())) or 1.0
    pair = scipy.linalg.eigh_tridiagonal(alpha / scale, beta[:-1] / scale)
    values, vectors = (np.asarray(part, np.float64) for part in pair)
    return RitzPairs(values * scale, vectors[0] ** 2, beta[-1] * np.abs(vectors[-1]), vectors)


def outermost(pairs: RitzPairs, rounding: float) -> npt.NDArray[np.intp]:
    """Return indices of Ritz pairs that are eigenvalues of the operator, largest absolute value first.

    The search proceeds from the outside and ends at the first pair whose residual bound exceeds 1% of its value.
    """
    order = np.argsort(-np.abs(pairs.values), kind="stable")
    unresolved = pairs.residuals[order] + rounding > RESOLVED * np.abs(pairs.values[order])
    return order[: np.argmax(unresolved)] if unresolved.any() else order


def equal_values(ascending: Array, rounding: float) -> list[npt.NDArray[np.intp]]:
    """Group the indices of values that differ only by rounding, one array for each eigenvalue."""
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
    """Return Ritz pairs that are eigenvalues of the operator, as `outermost`, and the weights of the rest.

    Each resolved pair accounts for one eigenvalue. A simple eigenvalue leaves no weight to the rest. Weight in excess
    of the known copies is left to the rest if there are known to be more copies, if weights show this (for one
    eigenvalue, or for all that seem simple together), and if rounding has produced further copies.

    Parameters
    ----------
    pairs : RitzPairs
    dimension : int
        Dimension p of the space from which the start vector was drawn.
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
            # The excess of a single one may be negative: it counts in their sum, and no node is dropped, as it may have
            # further copies nevertheless.
            beyond = (measured - copies / dimension)[unclear]
            share = np.maximum(beyond, LEAST_SHARE * measured[unclear])
            rest[heaviest[unclear]] = share * (max(beyond.sum(), 0) / share.sum())
    return resolved, rest if rest.sum() > 0 else pairs.weights.copy()


def _eigenvalues(
    pairs: RitzPairs, ascending: npt.NDArray[np.intp], rounding: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Array]:
    """Heaviest pair, number of pairs and their weight for each eigenvalue; its pairs differ only by rounding."""
    groups = [ascending[group] for group in equal_values(pairs.values[ascending], rounding)]
    return (
        np.array([group[np.argmax(pairs.weights[group])] for group in groups]),
        np.array([group.size for group in groups]),
        np.array([pairs.weights[group].sum() for group in groups]),
    )


def _largest_weight(count: int, dimension: int, level: float) -> float:
    """Upper quantile, exceeded with probability `level`, of the sum of weights of `count` simple eigenvalues."""
    return float(scipy.special.betainccinv(count / 2, (dimension - count) / 2, level)) if 0 < count < dimension else 1.0


def clustered_bounds(values: Array, residuals: Array, rounding: float) -> Array:
    """Compute error bounds under which eigenvalues of A can be paired one-to-one with Ritz values.

    There is an eigenvalue within the residual norm of a single Ritz value. If such intervals overlap, two Ritz values
    could belong to the same eigenvalue; by Kahan's theorem, k Ritz values have k eigenvalues within the spectral norm
    of their residual matrix, which for one Lanczos run has rank one and norm sqrt(sum rho_i^2).

    Parameters
    ----------
    values, residuals : array (k,)
    rounding : float
        Rounding floor, which is added to every bound.

    Returns
    -------
    array (k,)
        Error bounds.

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
