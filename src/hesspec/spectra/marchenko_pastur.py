"""The Marchenko-Pastur law, and how far the bulk of a Gauss-Newton matrix is from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hesspec.spectra.spectrum import Spectrum

__all__ = [
    "MarchenkoPasturFit",
    "compare_with_marchenko_pastur",
    "law_of_gauss_newton",
    "marchenko_pastur_cdf",
    "marchenko_pastur_density",
    "marchenko_pastur_edges",
]

Array = npt.NDArray[np.float64]

# Halvings of [0, pi] that leave less than the spacing of floating-point numbers at pi.
HALVINGS = 54
# Points nearer to 0 than this times ||A|| are one point, as on the logarithmic axis of `Spectrum.log_density`.
ZERO = 1e-8
# A drawn curve ends this share inside of the edges, where it is zero, and where the lower edge is 0 at this share of
# the upper one.
EDGE, LOWEST = 1e-4, 1e-6


def marchenko_pastur_edges(aspect: float, variance: float) -> tuple[float, float]:
    """Edges of the continuous part of the Marchenko-Pastur law, variance (1 -+ sqrt(aspect))^2.

    The law is that of the eigenvalues of S = X^T X / N, X (N, p) with independent entries of mean 0, for large N and p.

    Parameters
    ----------
    aspect : float
        p / N, positive. Above 1, a share of 1 - 1/aspect of the eigenvalues is zero beside the continuous part.
    variance : float
        Of the entries of X, positive; in units of eigenvalues, whose mean it is.

    Returns
    -------
    low, high : float

    Raises
    ------
    ValueError
        If `aspect` or `variance` is not positive and finite.

    Examples
    --------
    >>> marchenko_pastur_edges(0.25, 2.0)
    (0.5, 4.5)
    """
    for name, value in (("aspect", aspect), ("variance", variance)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value!r}; the Marchenko-Pastur law has a positive and finite one.")
    root = math.sqrt(aspect)
    return variance * (1 - root) ** 2, variance * (1 + root) ** 2


def marchenko_pastur_density(x: npt.ArrayLike, aspect: float, variance: float) -> Array:
    """Density of the continuous part of the Marchenko-Pastur law.

    Parameters
    ----------
    x : array_like
        Eigenvalues.
    aspect, variance : float
        As for `marchenko_pastur_edges`.

    Returns
    -------
    array of the shape of x
        sqrt((high - x)(x - low)) / (2 pi aspect variance x) between the edges, 0 elsewhere, per unit of eigenvalues. It
        integrates to min(1, 1/aspect). For aspect = 1 it is infinite at 0, and 0 is returned there.

    Raises
    ------
    ValueError
        As `marchenko_pastur_edges`.
    """
    low, high = marchenko_pastur_edges(aspect, variance)
    points = np.asarray(x, np.float64)
    inside = (points > low) & (points < high)
    safe = np.where(inside, points, high)
    return np.where(inside, np.sqrt((high - safe) * (safe - low)) / (2 * np.pi * aspect * variance * safe), 0.0)


def marchenko_pastur_cdf(x: npt.ArrayLike, aspect: float, variance: float) -> Array:
    """Cumulative distribution of the Marchenko-Pastur law, share of eigenvalues <= x, in closed form.

    With x = variance (1 + aspect - 2 sqrt(aspect) cos phi), phi in [0, pi], it is for x > 0 the atom at 0,
    max(0, 1 - 1/aspect), plus

        (min(1, aspect) phi + s sin phi - |1 - aspect| arctan(r sin phi / (1 - r cos phi))) / (pi aspect)

    where s = sqrt(aspect) and r = min(s, 1/s).

    Parameters
    ----------
    x : array_like
        Eigenvalues.
    aspect, variance : float
        As for `marchenko_pastur_edges`.

    Returns
    -------
    array of the shape of x
        In [0, 1]. Errors are of the size of rounding, absolute.

    Raises
    ------
    ValueError
        As `marchenko_pastur_edges`.

    Notes
    -----
    Marchenko and Pastur, "Distribution of eigenvalues for some sets of random matrices" (1967), have the density; the
    integral is elementary in phi.

    Examples
    --------
    >>> marchenko_pastur_cdf([-1.0, 0.0, 4.5], 2.0, 1.0).round(3)
    array([0.   , 0.5  , 0.964])
    """
    law = _Law.of(aspect, variance)
    points = np.asarray(x, np.float64)
    return np.where(points < 0, 0.0, law.atom + law.continuous(law.angle(points)))


@dataclass(frozen=True)
class _Law:
    """Marchenko-Pastur law, its continuous part in the angle phi of `marchenko_pastur_cdf`."""

    aspect: float
    variance: float
    low: float
    high: float

    @classmethod
    def of(cls, aspect: float, variance: float) -> _Law:
        return cls(aspect, variance, *marchenko_pastur_edges(aspect, variance))

    @property
    def atom(self) -> float:
        """Share of the eigenvalues that are zero."""
        return max(0.0, 1 - 1 / self.aspect)

    def angle(self, x: Array) -> Array:
        share = np.clip((x - self.low) / (self.high - self.low), 0, 1)
        # arccos would lose half of the digits next to the edges.
        return np.asarray(2 * np.arctan2(np.sqrt(share), np.sqrt(1 - share)))

    def place(self, phi: Array) -> Array:
        return np.asarray(self.low + (self.high - self.low) * np.sin(phi / 2) ** 2)

    def continuous(self, phi: Array) -> Array:
        """Share of all eigenvalues in the continuous part up to phi."""
        root = math.sqrt(self.aspect)
        ratio = min(root, 1 / root)
        turn = np.arctan2(ratio * np.sin(phi), 1 - ratio * np.cos(phi))
        found = min(1.0, self.aspect) * phi + root * np.sin(phi) - abs(1 - self.aspect) * turn
        return np.asarray(np.clip(found / (np.pi * self.aspect), 0, min(1.0, 1 / self.aspect)))

    def first_moment(self, phi: Array) -> Array:
        """Sum of the eigenvalues up to phi, as a share of their number: a semicircle law's distribution."""
        return np.asarray(self.variance * (phi - np.sin(phi) * np.cos(phi)) / np.pi)

    def quantile(self, level: Array) -> Array:
        """Where the distribution passes a level in [0, 1]."""
        lower, upper = np.zeros(level.shape), np.full(level.shape, np.pi)
        for _ in range(HALVINGS):
            middle = (lower + upper) / 2
            below = self.atom + self.continuous(middle) < level
            lower, upper = np.where(below, middle, lower), np.where(below, upper, middle)
        return np.where(level <= self.atom, 0.0 if self.atom else self.low, self.place((lower + upper) / 2))

    def cdf(self, x: Array) -> Array:
        return np.where(x < 0, 0.0, self.atom + self.continuous(self.angle(x)))

    def integral(self, x: Array) -> Array:
        """Integral of the distribution from minus infinity to x: x F(x) less the first moment."""
        return np.where(x < 0, 0.0, x * self.cdf(x) - self.first_moment(self.angle(x)))

    def wasserstein(self, nodes: Array, shares: Array) -> float:
        """Wasserstein-1 distance to a discrete measure of mass 1, nodes ascending; exact."""
        levels = np.concatenate([[0.0], np.cumsum(shares)[:-1], [1.0]])
        ends = np.concatenate([[min(nodes[0], 0.0)], nodes, [max(nodes[-1], self.high)]])
        # Between nodes their distribution is constant and the law's ascends: the difference changes its sign once.
        turn = np.clip(self.quantile(levels), ends[:-1], ends[1:])
        first = levels * (turn - ends[:-1]) - (self.integral(turn) - self.integral(ends[:-1]))
        second = (self.integral(ends[1:]) - self.integral(turn)) - levels * (ends[1:] - turn)
        return float(first.sum() + second.sum())


@dataclass(frozen=True)
class MarchenkoPasturFit:
    """The bulk of a spectrum beside the Marchenko-Pastur law of the same mean and rank.

    Parameters
    ----------
    variance : float
        Of the law: the mean of the bulk, in units of eigenvalues.
    variance_error : float
        Its standard error, from the sampling by the probes; 0 where the spectrum is exact. `law_edges` and `edge_ratio`
        are as uncertain, relatively. More probes make it smaller.
    aspect : float
        Of the law: dimension over rank, both without the outliers.
    law_edges : (float, float)
        Between which the law has its eigenvalues that are not zero.
    bulk_edge : float
        Largest point of the measured bulk.
    edge_ratio : float
        `bulk_edge` over the law's upper edge: about 1 where the law holds, and the larger the heavier the tail.
    trace_beyond : float
        Share of the bulk's trace in eigenvalues above the law's upper edge; 0 under the law, up to fluctuations of the
        largest eigenvalues.
    kolmogorov_smirnov : float
        Largest difference between the distributions; half-way between the points of the measure, as the height of the
        step at a node is the quadrature's and not the operator's, unless the spectrum is exact.
    wasserstein : float
        Wasserstein-1 distance between measure and law, in units of eigenvalues; divided by `variance`, the share of the
        trace that would have to be moved by as much as the mean. That of the quadrature to the true spectrum, which
        `Spectrum.wasserstein_bound` bounds, is part of it.
    """

    variance: float
    variance_error: float
    aspect: float
    law_edges: tuple[float, float]
    bulk_edge: float
    edge_ratio: float
    trace_beyond: float
    kolmogorov_smirnov: float
    wasserstein: float

    def per_decade(self, points: int = 64) -> tuple[Array, Array]:
        """Places between the law's edges and its density there per decade, shape (points,) each, to draw it."""
        low, high = self.law_edges
        # At the edges themselves it is zero.
        x = np.geomspace(max(low, high * LOWEST) * (1 + EDGE), high * (1 - EDGE), points)
        return x, marchenko_pastur_density(x, self.aspect, self.variance) * x * math.log(10)


def law_of_gauss_newton(spectrum: Spectrum) -> MarchenkoPasturFit | None:
    """Compare a Gauss-Newton matrix with the Marchenko-Pastur law, its rank being known by its samples and classes.

    Parameters
    ----------
    spectrum : Spectrum

    Returns
    -------
    MarchenkoPasturFit or None
        None where the spectrum is not of G, does not say how many samples and classes it is of, or cannot be compared.
    """
    samples, classes = (spectrum.attributes.get(name) for name in ("samples", "classes"))
    if spectrum.attributes.get("matrix") != "GaussNewton":
        return None
    if not (isinstance(samples, int) and isinstance(classes, int)):
        return None
    try:
        return compare_with_marchenko_pastur(spectrum, rank=samples * (classes - 1))
    except ValueError:
        return None  # no bulk, or one whose mean is rounding


def compare_with_marchenko_pastur(spectrum: Spectrum, *, rank: int) -> MarchenkoPasturFit:
    """Compare the bulk of a Gauss-Newton matrix, or any other that is a sum of squares, with the Marchenko-Pastur law.

    If the rows whose squares G sums up had independent entries of one variance, the law would hold. Its aspect is given
    by the rank, and its variance by the mean of the bulk, so that nothing is fitted to the shape.

    Parameters
    ----------
    spectrum : Spectrum
        Of G. Outliers are left out, of the bulk as of dimension and rank; the atom at 0 is part of both measures.
    rank : int
        Number of independent rows in G: for softmax cross-entropy of N samples and C classes N (C - 1), as the
        gradients of a sample's C logits are tied by one equation. It may exceed p.

    Returns
    -------
    MarchenkoPasturFit

    Raises
    ------
    ValueError
        If `rank` does not exceed the number of outliers, or the bulk is empty or has a mean that is not positive.

    Notes
    -----
    Papyan (arXiv 1811.07062) compares bulks with this law, and finds heavier tails. Of true Wishart matrices the
    largest eigenvalue is off the edge by a share of the order N^(-2/3) (Tracy and Widom), and one probe gives the mean
    with a standard error of sqrt(2/rank) of it, however large p is.

    Examples
    --------
    >>> import torch, hesspec
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch...>
    >>> rows = torch.randn(800, 400, dtype=torch.float64)
    >>> fit = compare_with_marchenko_pastur(hesspec.spectrum(rows.T @ rows / 800, steps=32, probes=8), rank=800)
    >>> round(fit.aspect, 2), round(fit.edge_ratio, 1), fit.kolmogorov_smirnov < 0.05
    (0.5, 1.0, True)
    """
    outlier = spectrum.is_outlier
    outliers = int(outlier.sum())
    if not (math.isfinite(rank) and rank > outliers):
        raise ValueError(
            f"rank is {rank!r}, and the spectrum has {outliers} outliers; the rest of the matrix needs a rank too. "
            "Give the number of rows that it sums the squares of, N (C - 1) for softmax cross-entropy."
        )
    nodes = np.concatenate([spectrum.eigenvalues[~outlier], spectrum.bulk_nodes])
    weights = np.concatenate([spectrum.eigenvalue_weights[~outlier], spectrum.bulk_weights])
    order = np.argsort(nodes, kind="stable")
    nodes, mass = nodes[order], float(weights.sum())
    if not mass > 0:
        raise ValueError("The spectrum has no bulk: every eigenvalue is an outlier. There is nothing to compare.")
    shares = weights[order] / mass
    mean = float(shares @ nodes)
    if not mean > 0:
        raise ValueError(
            f"The mean of the bulk is {mean:.3g}; the Marchenko-Pastur law is one of positive semi-definite matrices "
            "other than zero. Measure the Gauss-Newton matrix."
        )
    bulk_dimension = spectrum.dimension - outliers
    law = _Law.of(bulk_dimension / (rank - outliers), mean)
    return MarchenkoPasturFit(
        variance=mean,
        variance_error=spectrum.expectation(lambda values: values)[1] / mass,
        aspect=law.aspect,
        law_edges=(law.low, law.high),
        bulk_edge=float(nodes[-1]),
        edge_ratio=float(nodes[-1]) / law.high,
        trace_beyond=float(shares[nodes > law.high] @ nodes[nodes > law.high]) / mean,
        kolmogorov_smirnov=_kolmogorov_smirnov(spectrum, law, nodes, shares),
        wasserstein=law.wasserstein(nodes, shares),
    )


def _kolmogorov_smirnov(spectrum: Spectrum, law: _Law, nodes: Array, shares: Array) -> float:
    # Several nodes, of one probe or of several, may stand for the eigenvalue 0, and must not be compared with its atom
    # one by one: those that are no further from it than their residual bounds are one point.
    bounds = spectrum.ritz_bounds[np.abs(spectrum.ritz_values - nodes[:, None]).argmin(axis=1)]
    near_zero = np.abs(nodes) <= np.maximum(bounds, max(spectrum.rounding, ZERO * spectrum.norm))
    places, which = np.unique(np.where(near_zero, 0.0, nodes), return_inverse=True)
    steps = np.bincount(which, shares)
    if not spectrum.exact:
        between = (places[1:] + places[:-1]) / 2
        return float(np.abs(np.cumsum(steps)[:-1] - law.cdf(between)).max(initial=0.0))
    above = law.cdf(places)
    below = above - np.where(places == 0, law.atom, 0.0)
    after = np.cumsum(steps)
    return float(max(np.abs(after - above).max(), np.abs(after - steps - below).max()))
