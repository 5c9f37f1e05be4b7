"""What bounds the products that an accuracy takes, with the exact spectrum known.

The exact measure is mu = (1/p) sum_i delta(lambda_i), and the accuracy of an estimate nu is its Wasserstein-1 distance
W1(mu, nu). An estimate from m products that has no more than m atoms is at best the one of `best_atoms`, whatever the
algorithm; all quadratures of Krylov runs are such, also joined with eigenvalues that took a product each or more. A
density (atoms smoothed by a kernel) is not, and the bound does not hold for it. What else is here are no bounds but
algorithms that are told what they would have to find: weights (`best_weights`), or outliers (`known_outliers`).
"""

from __future__ import annotations

import numpy as np
from scipy.stats import wasserstein_distance

from methods import Array, quadrature

__all__ = ["best_atoms", "best_weights", "known_outliers"]


def best_atoms(exact: Array, most: int) -> Array:
    """Least W1 between the exact measure and any with at most m atoms, for m = 1, ..., `most`.

    All mass that a plan moves goes to one of the atoms a_j, so W1(mu, nu) >= (1/p) sum_i min_j |lambda_i - a_j|, which
    is reached when each atom has the mass of the eigenvalues next to it. What is left is the k-medians problem on a
    line: the least cost of cutting the sorted eigenvalues into m runs, each with the sum of the distances to its median
    as its cost. Dynamic programming over the end of the last run solves it exactly, in O(most p^2).

    Parameters
    ----------
    exact : array (p,)
        Eigenvalues.
    most : int

    Returns
    -------
    array (most,)
    """
    values = np.sort(exact)
    sums, p = np.concatenate([[0.0], values.cumsum()]), values.size
    begin, end = np.ogrid[: p + 1, : p + 1]
    middle = (begin + end) // 2
    # Of the run [begin, end): what lies above its median less what lies below.
    cost = sums[end] - sums[middle] - sums[middle] + sums[begin]
    cost += values[np.minimum(middle, p - 1)] * (2 * middle - begin - end)
    cost[begin > end] = np.inf
    least, found = cost[0], [cost[0, p]]
    total = np.empty_like(cost)
    for _ in range(1, most):
        least = np.add(least[:, None], cost, out=total).min(axis=0)
        found.append(least[p])
    return np.array(found) / p


def best_weights(nodes: Array, exact: Array) -> float:
    """Least W1 between the exact measure and any on these nodes: each eigenvalue goes to the nearest one.

    Parameters
    ----------
    nodes : array (n,)
    exact : array (p,)
    """
    places = np.unique(nodes)
    nearest = places[np.searchsorted((places[1:] + places[:-1]) / 2, exact)]
    return float(np.abs(exact - nearest).mean())


def known_outliers(exact: Array, most: int, seeds: int) -> tuple[Array, Array]:
    """Mean W1 from m products, for m = 1, ..., `most`, where k < m exact eigenpairs cost one product each.

    They are those of largest |lambda|. The other m - k products are Lanczos on the rest of the space, from where the
    operator without them is diag(the other eigenvalues) in the basis of its eigenvectors; a Gaussian start vector is
    one in every basis. Atoms that two measures on the line share cancel in W1, the integral of the difference of their
    distribution functions: with the k exact atoms it is 1 - k/p times the distance of the rest from its quadrature.

    Parameters
    ----------
    exact : array (p,)
    most : int
    seeds : int
        Start vectors.

    Returns
    -------
    distances : array (most,)
        Mean over the start vectors, for the best k.
    counts : int array (most,)
        That k, the same for all start vectors.
    """
    ordered = exact[np.argsort(-np.abs(exact))]
    starts = np.random.default_rng(0).standard_normal((seeds, ordered.size))
    distances = np.full((most, most), np.inf)
    for known in range(most):
        rest = ordered[known:]
        pairs = [_tridiagonal(rest, start[known:], most - known) for start in starts]
        for steps in range(1, most - known + 1):
            rules = [quadrature(alpha[:steps], beta[: steps - 1]) for alpha, beta in pairs]
            mean = np.mean([wasserstein_distance(nodes, rest, weights) for nodes, weights in rules])
            distances[known + steps - 1, known] = mean * rest.size / exact.size
    counts = distances.argmin(axis=1)
    return distances[np.arange(most), counts], counts


def _tridiagonal(values: Array, start: Array, steps: int) -> tuple[Array, Array]:
    """Diagonal and off-diagonal of Lanczos with diag(values), each vector made orthogonal to all others twice."""
    basis, alpha, beta = np.empty((steps, values.size)), np.empty(steps), np.empty(steps)
    w = start
    for j in range(steps):
        basis[j] = w / np.linalg.norm(w)
        w = values * basis[j]
        alpha[j] = w @ basis[j]
        for _ in range(2):
            w = w - (basis[: j + 1] @ w) @ basis[: j + 1]
        beta[j] = np.linalg.norm(w)
    return alpha, beta[:-1]
