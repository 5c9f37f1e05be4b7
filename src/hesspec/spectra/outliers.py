r"""Outlier rule: which resolved eigenvalues stand apart from the bulk, with a p-value for each.

One rule serves both signs: eigenvalues are ranked by |lambda|, x_1 >= x_2 >= ... If all of them are draws from one
tail, x^(-1/g) or lighter, then the normalised log-spacings

.. math:: E_i = i \log (x_i / x_{i+1})

are independent exponential variables of mean g (Renyi 1953), or have means that grow inwards (tails with an edge, such
as those of the Wigner and Marchenko-Pastur laws). Eigenvalues of random matrices repel one another, so their spacings
vary less. In each case the probability that a spacing exceeds t times the mean of the next m spacings inwards is at
most

.. math:: P(E_i > t \, \bar E) = (1 + t/m)^{-m},

that of an F variable of 2 and 2m degrees of freedom. Every spacing is tested; the i-th is given the share 1/(i (i + 1))
of the level, and these shares sum to 1. The false-alarm rate for bulks without outliers is therefore at most `level`.

Where the number C of classes is known, a gap of G and Hess is expected at the ranks C - 1 and C (Papyan, arXiv
1811.07062): they are given four fifths of the level, and the rest is shared as above (weights chosen in advance
preserve the level; Genovese, Roeder and Wasserman 2006).

In a Hessian, G + H, the bulk comes from H, whose positive and negative halves mirror one another (the block of each
layer with itself vanishes for piecewise linear networks, and the eigenvalues of [[0, B], [B^T, 0]] come in pairs of
opposite sign), and the outliers come from G, which is positive semi-definite. Then r <= C positive eigenvalues beyond
all negative ones are as improbable as r equal tosses of a coin. They are tested together, with a third of the four
fifths, as they may touch the bulk and leave no gap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from hesspec.spectra.sampling import mean_bounds, node_bounds
from hesspec.spectra.scaling import ordinary

if TYPE_CHECKING:
    from hesspec.spectra.spectrum import Spectrum

__all__ = ["LEVEL", "WEAK_LEVEL", "outlier_p_values", "run_p_value", "spacing_p_values"]

Array = npt.NDArray[np.float64]

LEVEL: Final = 0.05
"""Largest false-alarm rate, for bulks without outliers."""

WEAK_LEVEL: Final = 0.2
"""Level of weak evidence: where there are no outliers, eigenvalues with p-values up to this are mentioned."""

# Smallest number of eigenvalues, and of points of the measure, from which the spacing of the adjacent bulk is
# estimated. With m of them the critical ratio at the level 1e-3 is m (1000^(1/m) - 1): 10 for 10, 8.3 for 20, 6.9 at
# best.
NEIGHBOURS: Final = 20
FEWEST_POINTS: Final = 10
# Part of the level that is reserved for what is expected if the classes are known: the two ranks, and the run.
EXPECTED: Final = 0.8


def outlier_p_values(spectrum: Spectrum) -> Array:
    """P-values of the resolved eigenvalues, shape (k,): how often a bulk without outliers shows one as clear.

    The smallest p-value of the gaps between the eigenvalue and the bulk, adjusted for multiple testing; at most 1.
    """
    # P-values do not depend on the scale.
    spectrum, _ = ordinary(spectrum)
    values = np.concatenate([spectrum.eigenvalues, spectrum.bulk_nodes])
    order = np.argsort(-np.abs(values), kind="stable")
    counts = np.concatenate([spectrum.eigenvalue_weights, spectrum.bulk_weights])[order] * spectrum.dimension
    bounds = np.concatenate([mean_bounds(spectrum), node_bounds(spectrum)])[order]
    resolved = order < spectrum.eigenvalues.size
    values = values[order]
    # Eigenvalues below the rounding floor cannot be told from zero and are not compared.
    seen = np.abs(values) > spectrum.rounding
    if counts[seen].sum() > NEIGHBOURS:
        values, counts, bounds, resolved = values[seen], counts[seen], bounds[seen], resolved[seen]
    sizes = np.maximum(np.abs(values), spectrum.rounding)
    inside = resolved & (np.cumsum(counts) <= spectrum.dimension / 2)
    classes, matrix = spectrum.attributes.get("classes"), spectrum.attributes.get("matrix")
    known = isinstance(classes, int) and classes > 1 and matrix in ("Hessian", "GaussNewton")
    expected: tuple[int, ...] = (classes - 1, classes) if known and isinstance(classes, int) else ()
    mirrored = known and matrix == "Hessian"
    p_values = np.where(inside, spacing_p_values(sizes, bounds, counts, expected, mirrored=mirrored), 1.0)
    if mirrored:
        run, together = run_p_value(values, bounds, counts)
        if 0 < run <= max(expected) and inside[run - 1]:
            p_values[run - 1] = min(p_values[run - 1], together * 3 / EXPECTED)
    # From the inside outwards: a gap separates everything beyond it from the bulk.
    found = np.minimum.accumulate(p_values[::-1])[::-1]
    result = np.ones(spectrum.eigenvalues.size)
    kept = order[seen] if values.size < order.size else order
    result[kept[resolved]] = found[resolved]
    return result


def spacing_p_values(
    sizes: Array, bounds: Array, counts: Array, expected: tuple[int, ...] = (), *, mirrored: bool = False
) -> Array:
    """Adjusted p-values of the spacings between the points of a measure of |lambda|.

    Parameters
    ----------
    sizes : array (n,)
        Points, descending, nonnegative.
    bounds : array (n,)
        Their error bounds; each spacing is taken at its smallest value within them.
    counts : array (n,)
        Number of eigenvalues at each point, not necessarily an integer where it is estimated.
    expected : tuple of int
        Ranks at which a gap is expected.
    mirrored : bool
        Whether the run of one sign is given as much of the level as each of these ranks.

    Returns
    -------
    array (n,)
        P-value of the spacing below each point; 1 where there is no bulk below it to compare with.
    """
    n, found = sizes.size, np.ones(sizes.size)
    bulk = _Spacings(sizes, counts)
    each = EXPECTED / (len(expected) + mirrored) if expected else 0.0
    rest = 1 - EXPECTED if expected else 1.0
    for i in range(n - 1):
        high, low = sizes[i] - bounds[i], sizes[i + 1] + bounds[i + 1]
        if not high > low:
            continue
        rank = bulk.ranks[i]
        mean, points = bulk.expected(i)
        if points < 1:
            # A single point below can be the whole bulk, if it is a multiple eigenvalue.
            p_value = 0.0 if bounds[-1] <= 1e-6 * sizes[i] and counts[-1] >= NEIGHBOURS else 1.0
        elif mean > 0:
            tiny = np.finfo(float).tiny
            spacing = rank * np.log(max(high, tiny) / max(low, tiny))
            p_value = float(np.exp(-points * np.log1p(spacing / (points * mean))))
        else:
            p_value = 0.0
        share = rest / max(rank * (rank + 1), 2.0) + each * (round(rank) in expected)
        found[i] = min(p_value / share, 1.0)
    return found


class _Spacings:
    """Normalised log-spacings of a measure of |lambda|, with the arguments of `spacing_p_values`."""

    def __init__(self, sizes: Array, counts: Array) -> None:
        self.logs = np.log(np.maximum(sizes, np.finfo(float).tiny))
        self.ranks = np.cumsum(counts)
        # Cumulative sums over the points before each.
        self._counts = np.append(0.0, self.ranks)
        self._moments = np.append(0.0, np.cumsum(counts * self.logs))

    def _mean(self, begin: int, end: int) -> float:
        """Mean spacing of the ranks below the point `begin`, down to the spacing above `end`: Hill's estimator."""
        count = self._counts[end] - self._counts[begin + 1]
        total = self.ranks[begin] * (self.logs[begin + 1] - self.logs[end])
        total += self._moments[end] - self._moments[begin + 1] - count * self.logs[end]
        return float(total / count)

    def expected(self, i: int) -> tuple[float, int]:
        """Expected spacing below the point i under the null hypothesis, and the number of points it is estimated from.

        It is estimated by the mean of the next spacings inwards, which is larger if means grow inwards.
        """
        end = int(np.searchsorted(self.ranks, self.ranks[i] + NEIGHBOURS, side="right"))
        end = min(max(end, i + 1 + FEWEST_POINTS), self.ranks.size - 1)
        points = end - i - 1
        if points < 1:
            return 0.0, 0
        return self._mean(i, end), points


def run_p_value(values: Array, bounds: Array, counts: Array) -> tuple[int, float]:
    """Length of the run of positive values among the largest, and its p-value if signs are mixed as further inwards.

    Parameters
    ----------
    values, bounds, counts : array (n,)
        Points of a measure by descending |lambda|, bounds of their errors, and numbers of eigenvalues.

    Returns
    -------
    run : int
        Number of points beyond the first negative one.
    p_value : float
        Probability of a run of this length. The probability of a positive sign is estimated from the next eigenvalues,
        ten times as many as in the run (Laplace's rule of succession, 1774), and is at least a half.
    """
    other = np.flatnonzero(values < 0)
    if not other.size:
        return 0, 1.0
    run, first = int(other[0]), int(other[0])
    sizes = np.abs(values)
    # The last ones may not be larger than the first negative one within their bounds.
    while run and sizes[run - 1] - bounds[run - 1] <= sizes[first] + bounds[first]:
        run -= 1
    length = round(counts[:run].sum())
    window = max(5 * NEIGHBOURS, 10 * length)
    weight = np.clip(window - (np.cumsum(counts[run:]) - counts[run:]), 0, counts[run:])
    total = float(weight.sum())
    same = max(float(weight[values[run:] > 0].sum()), total / 2)
    tosses = np.arange(length)
    return run, float(np.exp(np.log((same + 1 + tosses) / (total + 2 + tosses)).sum()))
