"""The Marchenko-Pastur law, and its distance from the bulk of a Gauss-Newton matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hesspec.backend.number_text import plus_minus, three_digits
from hesspec.backend.shown import Shown
from hesspec.spectra.spectrum import Spectrum

__all__ = [
    "MarchenkoPasturFit",
    "compare_with_marchenko_pastur",
    "law_of_gauss_newton",
    "marchenko_pastur_density",
    "marchenko_pastur_edges",
]

Array = npt.NDArray[np.float64]

# Bisections of [0, pi] down to the spacing of floating-point numbers at pi.
HALVINGS = 54
# Points closer to 0 than this times ||A|| are merged, as on the logarithmic axis of `Spectrum.log_density`.
ZERO = 1e-8
# A drawn curve stops short of the edges, where it is zero, by this relative distance; if the lower edge is 0, it starts
# at this share of the upper one.
EDGE, LOWEST = 1e-4, 1e-6


def marchenko_pastur_edges(aspect: float, variance: float) -> tuple[float, float]:
    """Edges of the continuous part of the Marchenko-Pastur law, variance (1 -+ sqrt(aspect))^2.

    The law is that of the eigenvalues of S = X^T X / N, X (N, p) with independent entries of mean 0, for large N and p.

    Parameters
    ----------
    aspect : float
        p / N, positive. Above 1, a share of 1 - 1/aspect of the eigenvalues is zero, in addition to the continuous
        part.
    variance : float
        Variance of the entries of X, positive. It is the mean of the eigenvalues and has their units.

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
            raise ValueError(f"{name} is {value!r}; the Marchenko-Pastur law requires a positive, finite value.")
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


@dataclass(frozen=True)
class _Law:
    """Marchenko-Pastur law, with its continuous part in terms of an angle phi.

    With x = variance (1 + aspect - 2 sqrt(aspect) cos phi), phi in [0, pi], the distribution is for x > 0 the atom at
    0, max(0, 1 - 1/aspect), plus

        (min(1, aspect) phi + s sin phi - |1 - aspect| arctan(r sin phi / (1 - r cos phi))) / (pi aspect)

    where s = sqrt(aspect) and r = min(s, 1/s). The density is from Marchenko and Pastur, "Distribution of eigenvalues
    for some sets of random matrices" (1967); its integral is elementary in phi.
    """

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
        # arccos would lose half of the digits near the edges.
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
        """Sum of the eigenvalues up to phi divided by their number: the distribution function of a semicircle law."""
        return np.asarray(self.variance * (phi - np.sin(phi) * np.cos(phi)) / np.pi)

    def quantile(self, level: Array) -> Array:
        """Smallest x at which the distribution reaches a level in [0, 1]."""
        lower, upper = np.zeros(level.shape), np.full(level.shape, np.pi)
        for _ in range(HALVINGS):
            middle = (lower + upper) / 2
            below = self.atom + self.continuous(middle) < level
            lower, upper = np.where(below, middle, lower), np.where(below, upper, middle)
        return np.where(level <= self.atom, 0.0 if self.atom else self.low, self.place((lower + upper) / 2))

    def cdf(self, x: Array) -> Array:
        """Share of eigenvalues up to x, with errors of the order of rounding."""
        return np.where(x < 0, 0.0, self.atom + self.continuous(self.angle(x)))

    def integral(self, x: Array) -> Array:
        """Integral of the distribution function from minus infinity to x: x F(x) minus the first moment."""
        return np.where(x < 0, 0.0, x * self.cdf(x) - self.first_moment(self.angle(x)))

    def wasserstein(self, nodes: Array, shares: Array) -> float:
        """Exact Wasserstein-1 distance to a discrete measure of mass 1 with ascending nodes."""
        levels = np.concatenate([[0.0], np.cumsum(shares)[:-1], [1.0]])
        ends = np.concatenate([[min(nodes[0], 0.0)], nodes, [max(nodes[-1], self.high)]])
        # Between nodes the discrete distribution is constant and that of the law increases: the difference changes sign
        # once.
        turn = np.clip(self.quantile(levels), ends[:-1], ends[1:])
        first = levels * (turn - ends[:-1]) - (self.integral(turn) - self.integral(ends[:-1]))
        second = (self.integral(ends[1:]) - self.integral(turn)) - levels * (ends[1:] - turn)
        return float(first.sum() + second.sum())


@dataclass(frozen=True, repr=False)
class MarchenkoPasturFit(Shown):
    """Comparison of the bulk of a spectrum with the Marchenko-Pastur law of the same mean and rank.

    Parameters
    ----------
    variance : float
        Variance of the law, which is the mean of the bulk; in units of eigenvalues.
    variance_error : float
        Standard error of `variance` from sampling by the probes; 0 if the spectrum is exact. `law_edges` and
        `edge_ratio` have the same relative error. More probes reduce it.
    aspect : float
        Aspect ratio of the law: dimension over rank, both without the outliers.
    law_edges : (float, float)
        Edges of the law's nonzero eigenvalues.
    bulk_edge : float
        Largest point of the measured bulk.
    edge_ratio : float
        `bulk_edge` divided by the law's upper edge: about 1 if the law holds, larger for heavier tails.
    trace_beyond : float
        Share of the bulk's trace that is due to eigenvalues above the law's upper edge; 0 under the law, up to
        fluctuations of the largest eigenvalues.
    kolmogorov_smirnov : float
        Largest difference between the two distribution functions; taken halfway between the points of the measure,
        because the height of a step at a node comes from the quadrature, not from the operator, unless the spectrum is
        exact.
    wasserstein : float
        Wasserstein-1 distance between measure and law, in units of eigenvalues. It includes the error of the measure
        itself, which `Spectrum.wasserstein_bound` bounds.
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

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        low, high = self.law_edges
        return {
            "variance of the law": plus_minus(self.variance, self.variance_error),
            "aspect ratio": f"{self.aspect:.4g}",
            "edges of the law": f"{three_digits(low)} to {three_digits(high)}",
            "edge of the bulk": f"{three_digits(self.bulk_edge)}, {self.edge_ratio:.3g} times as far",
            "trace beyond the law": f"{self.trace_beyond:.1%}",
            "Kolmogorov-Smirnov distance": f"{self.kolmogorov_smirnov:.3g}",
            "Wasserstein-1 distance": f"{self.wasserstein:.3g}",
        }

    def per_decade(self, points: int = 64) -> tuple[Array, Array]:
        """Points between the law's edges and its density per decade there, shape (points,) each, for plotting."""
        low, high = self.law_edges
        # At the edges themselves it is zero.
        x = np.geomspace(max(low, high * LOWEST) * (1 + EDGE), high * (1 - EDGE), points)
        return x, marchenko_pastur_density(x, self.aspect, self.variance) * x * math.log(10)


def law_of_gauss_newton(spectrum: Spectrum) -> MarchenkoPasturFit | None:
    """Compare a Gauss-Newton matrix with the Marchenko-Pastur law, with the rank from its samples and classes.

    Parameters
    ----------
    spectrum : Spectrum

    Returns
    -------
    MarchenkoPasturFit or None
        None if the spectrum is not that of G, does not state the numbers of samples and classes, or cannot be compared.
    """
    samples, classes = (spectrum.attributes.get(name) for name in ("samples", "classes"))
    if spectrum.attributes.get("matrix") != "GaussNewton":
        return None
    if not (isinstance(samples, int) and isinstance(classes, int)):
        return None
    try:
        return compare_with_marchenko_pastur(spectrum, rank=samples * (classes - 1))
    except ValueError:
        return None  # no bulk, or a mean of the size of rounding


def compare_with_marchenko_pastur(spectrum: Spectrum, *, rank: int) -> MarchenkoPasturFit:
    """Compare the bulk of a Gauss-Newton matrix, or any other X^T X, with the Marchenko-Pastur law.

    The law would hold if G = X^T X for rows with independent entries of equal variance. The rank determines its aspect
    ratio and the mean of the bulk its variance, so nothing is fitted to the shape.

    Parameters
    ----------
    spectrum : Spectrum
        Spectrum of G. Outliers are excluded from the bulk, the dimension and the rank; the atom at 0 is part of both
        measures.
    rank : int
        Number of independent rows of X: N (C - 1) for softmax cross-entropy of N samples and C classes, as the output
        curvature of a sample has rank C - 1. It may exceed p.

    Returns
    -------
    MarchenkoPasturFit

    Raises
    ------
    ValueError
        If `rank` does not exceed the number of outliers, or the bulk is empty or has a mean that is not positive.

    Notes
    -----
    Papyan (arXiv 1811.07062) compares bulks with this law and finds heavier tails. The largest eigenvalue of a true
    Wishart matrix deviates from the edge by a relative amount of order N^(-2/3) (Tracy and Widom). One probe gives the
    mean with a relative standard error of sqrt(2/rank), however large p is.

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
            f"rank is {rank!r}, and the spectrum has {outliers} outliers; the rank must be larger. "
            "For a matrix X^T X, give the number of rows of X, N (C - 1) for softmax cross-entropy."
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
            f"The mean of the bulk is {mean:.3g}; the Marchenko-Pastur law is for nonzero positive "
            "semi-definite matrices. Measure the Gauss-Newton matrix."
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
    # Several nodes, of one probe or several, may represent the eigenvalue 0 and must not be compared with its atom one
    # by one: those within their residual bounds of 0 are merged.
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
