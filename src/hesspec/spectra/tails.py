"""Power laws of the tail of a bulk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import exprel, ndtri

from hesspec.spectra.power_law import check_confidence
from hesspec.spectra.spectrum import Spectrum

__all__ = ["MIN_POINTS", "TailFit", "fit_tail"]

Array = npt.NDArray[np.float64]

# A tail of fewer points lies close to some power law by chance, and the choice of its start would then find that one.
MIN_POINTS = 10
# Exact spectra of thousands of eigenvalues: starts that are tried, at equal ratios of their number of points.
MAX_STARTS = 128
# Starts whose Kolmogorov-Smirnov distance is up to this times the smallest could as well have been chosen. For Pareto
# tails with and without a body below them (500 to 20,000 eigenvalues, 64 steps, 60 to 200 draws of each), intervals at
# 95% then hold in 94.7% of the draws or more; where the tail is a tenth of 500 eigenvalues they held in 97%, but in 91%
# with 1.25 and in 81% without this term.
AS_GOOD = 1.5
# Variance of a uniform variable, per squared length of its interval.
UNIFORM = 1 / 12
# Moments of exp(-t u) on [0, 1] are exact to rounding at any |t| below some 500, exponents and widths multiplied.
GAUSS_LEGENDRE = 128
# Ratio of a tail's ends from which on it is one, and not the edge itself: at the end of any bulk the density falls, the
# more steeply the closer one looks (digits networks gave exponents of 11 to 17 over factors of 1.4 to 1.6).
LEAST_SPAN = 2.0
SIDES = {1: "positive", -1: "negative", 0: "whole"}
# Below this |t| the series of the mean is more exact than the difference of two large numbers.
SERIES = 1e-3


@dataclass(frozen=True)
class TailFit:
    """Power law of the tail of a bulk: a density ~ |lambda|^(-exponent) between `start` and `top`.

    Parameters
    ----------
    exponent : float
        Of the density; that of the share of eigenvalues beyond lambda, in an unending tail, is 1 - exponent.
    lower, upper : float
        Interval of the exponent at `confidence`. It holds the three errors below, added as independent, and says where
        the exponent is *if* the tail is a power law; that it is one is said by the other fields.
    confidence : float
    sampling_error : float
        Standard error from the eigenvalues being so many draws of the law, and from the probes seeing the unresolved
        ones with random weights. Eigenvalues of random matrices repel, and spread more evenly than independent draws
        do: for them it is too large rather than too small.
    quadrature_error : float
        Standard error from not knowing how much of the outermost nodes' weight is within the tail.
    start_error : float
        Root mean square difference to the exponents from all other starts that fit about as well; 0 if start was given.
    start, top : float
        Ends of the tail, |lambda|; `top` is the edge of the bulk.
    mass : float
        Share of all p eigenvalues that are between them.
    nodes : int
        Points of the measure between them, both included: resolved eigenvalues and quadrature nodes.
    kolmogorov_smirnov : float
        Largest difference between the tail's distribution, taken half-way up its steps, and the law's.
    against_exponential : float
        Log-likelihood ratio of the power law to the exponential law on the same tail, in its standard errors (Vuong
        1989): positive where the power law fits better.
    curvature : float
        Bend of the density in a log-log plot, in its standard errors (score test). Positive where it bends downwards,
        as that of a log-normal law does, whose limit of no bend the power law is; so it can be refuted in favour of a
        log-normal law, but never the other way round.
    """

    exponent: float
    lower: float
    upper: float
    confidence: float
    sampling_error: float
    quadrature_error: float
    start_error: float
    start: float
    top: float
    mass: float
    nodes: int
    kolmogorov_smirnov: float
    against_exponential: float
    curvature: float

    @property
    def resolved(self) -> bool:
        """Whether the exponent is one to quote: its interval is above 0, and the tail spans a factor of two at least.

        Where it is not above 0, it is not even known that the density falls: there are too few points, or their weights
        say too little. Within less than a factor of two, what is fitted is the slope of the edge where the bulk ends.
        More steps give more points.
        """
        return self.lower > 0 and self.top >= LEAST_SPAN * self.start

    @property
    def decades(self) -> float:
        """Powers of ten that the tail spans. Below about one, few laws can be told from one another."""
        return math.log10(self.top / self.start)

    @property
    def better_than_exponential(self) -> bool:
        """Whether an exponential tail is refuted in favour of the power law, at `confidence` (two-sided)."""
        return self.against_exponential > self._critical

    @property
    def is_power_law(self) -> bool:
        """Whether the tail is resolved, better fitted by the power law than by an exponential law and not bent."""
        return self.resolved and self.better_than_exponential and abs(self.curvature) <= self._critical

    @property
    def _critical(self) -> float:
        return float(ndtri((1 + self.confidence) / 2))

    def density(self, magnitude: npt.ArrayLike) -> Array:
        """Density of the fitted law.

        Parameters
        ----------
        magnitude : array_like (n,)
            |lambda|.

        Returns
        -------
        array (n,)
            Share of all eigenvalues per unit of |lambda|; 0 outside of [start, top]. It integrates to `mass`.
        """
        points = np.asarray(magnitude, np.float64)
        inside = (points >= self.start) & (points <= self.top)
        logs = np.log(np.where(inside, points, self.start) / self.start)
        law = _Exponential(self.exponent - 1, math.log(self.top / self.start))
        # The law is one of log |lambda|; the factor 1/|lambda| makes it one of |lambda|.
        return np.where(inside, self.mass * np.exp(law.log_density(logs) - logs) / self.start, 0.0)


def fit_tail(
    spectrum: Spectrum,
    *,
    sign: int = 1,
    start: float | None = None,
    confidence: float = 0.95,
) -> TailFit:
    """Fit a power law to the tail of the bulk of a spectrum.

    The law is fitted by maximum likelihood between two ends, as the bulk ends at its edge and outliers are left out: in
    y = log(|lambda|/start) it is an exponential law on [0, log(top/start)], and its one sufficient statistic is the
    mean of y over the tail. That mean is what a quadrature gives well: nodes take part with their weights, and the
    outermost with half of it (Euler-Maclaurin; an eigenvalue at an end takes no part, as the likelihood is conditional
    on it).

    `start` is the point that minimises the Kolmogorov-Smirnov distance between tail and law, among those that leave at
    least ten points in the tail, and more of its mass beyond its first node than at it: of a measure that is nearly all
    at one node any steep law fits the steps, and its exponent would be that of the node. Steps of nodes are as high as
    their weights whatever the operator, so the distance is that half-way up the steps.

    Parameters
    ----------
    spectrum : Spectrum
        The tail is made of the bulk's nodes and the resolved eigenvalues that are no outliers.
    sign : int
        1 for the positive tail, -1 for the negative, 0 for |lambda| of both; there the tail ends before the smallest
        |outlier| of either sign.
    start : float, optional
        Where the tail begins, |lambda|, if it is not to be chosen.
    confidence : float
        Of the interval and the two verdicts, in (0, 1).

    Returns
    -------
    TailFit

    Raises
    ------
    ValueError
        If `sign`, `start` or `confidence` is out of range, the tail has fewer than ten different points, or its first
        node has as much of its mass as all others.

    Notes
    -----
    Clauset, Shalizi and Newman, "Power-law distributions in empirical data" (SIAM Review 2009), for the choice of the
    start; Aban, Meerschaert and Panorska, "Parameter estimation for the truncated Pareto distribution" (2006).

    The nodes of a quadrature are no sample, and their number says nothing of the error. With s the score of a point:

    - eigenvalues as independent draws of the law give the likelihood equation the variance w/p s^2 for a weight w; a
      probe, of which p w is the sum of chi-squared variables, adds twice that to unresolved ones, divided by the number
      of probes. A resolved eigenvalue's weight is known;
    - of an outermost node's weight any part may be inside of the tail (Chebyshev, Markov, Stieltjes): uniformly, this
      is w^2/12 s^2. It does not fall with p, and is what is left for networks of millions of parameters;
    - the spread of the exponents over the starts whose distance is up to 1.5 times the smallest.

    Not included are the quadrature's error inside of the tail, which is of second order in the weights, and what comes
    of a tail that is no power law. For Pareto eigenvalues with exponents 2 to 3 and 64 steps, intervals at 95% held in
    95% to 99% of the draws for p = 500 to 2,000, and in all for p = 20,000 and more, where the second term is the
    largest and too cautious.

    Examples
    --------
    >>> import numpy as np, torch, hesspec
    >>> draws = np.random.default_rng(0).pareto(1.5, size=2000) + 1  # a density ~ x^-2.5 beyond 1
    >>> tail = fit_tail(hesspec.spectrum(torch.diag(torch.tensor(draws)), steps=64))
    >>> bool(tail.lower < 2.5 < tail.upper), tail.is_power_law
    (True, True)
    """
    check_confidence(confidence)
    if sign not in {-1, 0, 1}:
        raise ValueError(f"sign is {sign!r}; it has to be 1 (positive tail), -1 (negative) or 0 (both, by |lambda|).")
    points = _points(spectrum, sign)
    if start is None:
        windows = [window for place in _starts(points.magnitudes) if (window := _window(points, float(place)))]
        if not windows:
            raise ValueError(_too_few(spectrum, sign, points.size))
        windows = [window for window in windows if window.resolved]
        if not windows:
            raise ValueError(_unresolved(sign))
        distances = np.array([window.distance for window in windows])
        chosen = windows[int(distances.argmin())]
        as_good = np.array([window.law.rate for window in windows])[distances <= AS_GOOD * chosen.distance]
        start_error = float(np.sqrt(np.mean((as_good - chosen.law.rate) ** 2)))
    else:
        chosen, start_error = _window_from(spectrum, sign, points, start), 0.0
    return _tail_fit(chosen, start_error, confidence)


class _Exponential(NamedTuple):
    """Exponential law exp(-rate y), of any sign, on [0, length]."""

    rate: float
    length: float

    @classmethod
    def of_mean(cls, mean: float, length: float) -> _Exponential:
        """The maximum-likelihood fit to points in (0, length) with that mean."""
        share = mean / length
        # At the root t, share < 1/t, and the same mirrored; twice that brackets it whatever is rounded off.
        root = brentq(lambda scaled: _scaled_mean(scaled) - share, -2 / (1 - share), 2 / share)
        return cls(float(root) / length, length)

    def log_density(self, y: Array) -> Array:
        scaled = self.rate * self.length
        # exprel(t) = (e^t - 1)/t; its argument is kept negative, where it cannot overflow.
        normaliser = math.log(self.length) + max(-scaled, 0.0) + math.log(float(exprel(-abs(scaled))))
        return np.asarray(-self.rate * y - normaliser)

    def cdf(self, y: Array) -> Array:
        """Integral of the density up to y: y/length exprel(-rate y)/exprel(-rate length)."""
        if self.rate < 0:  # mirrored, so that nothing overflows
            return 1 - _Exponential(-self.rate, self.length).cdf(self.length - y)
        return np.asarray(y / self.length * exprel(-self.rate * y) / exprel(-self.rate * self.length))

    def moments(self) -> Array:
        """Means of 1, y, y^2 and y^3."""
        nodes, weights = _gauss_legendre()
        y = (nodes + 1) / 2 * self.length
        mass = weights * self.length / 2 * np.exp(self.log_density(y))
        return np.asarray(mass @ np.vander(y, 4, increasing=True))


@cache
def _gauss_legendre() -> tuple[Array, Array]:
    """Nodes on [-1, 1] and their weights: to find them takes longer than all else of a fit."""
    nodes, weights = np.polynomial.legendre.leggauss(GAUSS_LEGENDRE)
    return nodes, weights


def _scaled_mean(scaled: float) -> float:
    """Mean of the law exp(-scaled u) on [0, 1]."""
    if abs(scaled) < SERIES:
        return 0.5 - scaled / 12
    if scaled < 0:  # mirrored, so that nothing overflows
        return 1 - _scaled_mean(-scaled)
    return 1 / scaled - math.exp(-scaled) / -math.expm1(-scaled)


class _Points(NamedTuple):
    """Points of one tail, ascending in |lambda|, shape (n,)."""

    magnitudes: Array
    weights: Array
    resolved: npt.NDArray[np.bool_]
    family: npt.NDArray[np.int64]  # probe and sign that a node is of: those of one family are one quadrature
    sampled: float  # variance of the sampling of unresolved eigenvalues, per weight and squared score

    @property
    def size(self) -> int:
        return self.magnitudes.size

    def families(self) -> list[tuple[Array, Array]]:
        """Nodes and weights of each quadrature."""
        nodes = [(self.family == family) & ~self.resolved for family in np.unique(self.family[~self.resolved])]
        return [(self.magnitudes[mine], self.weights[mine]) for mine in nodes]

    def beyond(self, places: Array) -> Array:
        """Mass of the nodes beyond places: half of the weight at a node, between nodes linear in the logarithm."""
        found = np.zeros(places.shape)
        for nodes, weights in self.families():
            after = np.cumsum(weights[::-1])[::-1] - weights / 2
            found += np.interp(np.log(places), np.log(nodes), after, left=float(weights.sum()), right=0.0)
        return found

    def nearest(self, place: float) -> Array:
        """Weight of the nearest node of each quadrature that reaches a place; any part of it may be beyond."""
        return np.array(
            [
                weights[np.argmin(np.abs(nodes - place))]
                for nodes, weights in self.families()
                if nodes[0] <= place <= nodes[-1]
            ]
        )

    def uncertain(self, place: float) -> float:
        """Variance of the mass beyond a place: a uniform part of each weight that may be there."""
        return UNIFORM * float(np.sum(self.nearest(place) ** 2))


def _points(spectrum: Spectrum, sign: int) -> _Points:
    inside = ~spectrum.is_outlier
    values = np.concatenate([spectrum.eigenvalues[inside], spectrum.bulk_nodes])
    weights = np.concatenate([spectrum.eigenvalue_weights[inside], spectrum.bulk_weights])
    resolved = np.arange(values.size) < int(inside.sum())
    probe = np.concatenate([np.zeros(int(inside.sum()), np.int64), spectrum.bulk_probe])
    magnitudes = np.abs(values)
    keep = (magnitudes > spectrum.rounding) & (weights > 0)
    outliers = spectrum.outliers
    if sign:
        keep, outliers = keep & (sign * values > 0), outliers[sign * outliers > 0]
    if outliers.size:
        # Beyond the first outlier of either sign only a part of the eigenvalues is left.
        keep &= magnitudes < np.abs(outliers).min()
    order = np.flatnonzero(keep)
    order = order[np.argsort(magnitudes[order], kind="stable")]
    return _Points(
        magnitudes[order],
        weights[order],
        resolved[order],
        (2 * probe + (values < 0))[order],
        (1 + 2 / spectrum.probes) / spectrum.dimension,
    )


def _starts(magnitudes: Array) -> Array:
    """Points from which on a tail may begin."""
    size = magnitudes.size
    if size < MIN_POINTS:
        return np.empty(0)
    lengths = np.arange(MIN_POINTS, size + 1)
    if lengths.size > MAX_STARTS:
        lengths = np.unique(np.geomspace(MIN_POINTS, size, MAX_STARTS).astype(np.int64))
    return magnitudes[size - lengths]


class _Window(NamedTuple):
    """A tail with the law that fits it. Arrays are of its two ends and of the points between them, ascending."""

    points: _Points
    magnitudes: Array
    weights: Array
    variance: Array  # of the sampling, per squared score
    mass: float
    law: _Exponential
    distance: float

    @property
    def logs(self) -> Array:
        """y = log(|lambda|/start)."""
        return np.asarray(np.log(self.magnitudes / self.magnitudes[0]))

    @property
    def resolved(self) -> bool:
        """Whether the nodes beyond the start hold more of the tail than the one at the start, of which half is inside.

        Otherwise the mass of the tail is not known within a factor of three, and its mean y is that of a single node:
        an exponent then says where the node is.
        """
        return float(self.points.nearest(float(self.magnitudes[0])).sum()) < self.mass

    def variances(self, scores: Array) -> tuple[float, float]:
        """Variances of a mean of scores over the tail: from sampling, and from the quadrature at both ends."""
        sampling = float(self.variance @ scores**2)
        start, top = (self.points.uncertain(float(place)) for place in self.magnitudes[[0, -1]])
        ends = start * float(scores[0]) ** 2 + top * float(scores[-1]) ** 2
        return sampling / self.mass**2, ends / self.mass**2


def _window(points: _Points, start: float) -> _Window | None:
    """The tail from a place on; None where its points coincide."""
    top = float(points.magnitudes[-1])
    inside = np.flatnonzero((points.magnitudes > start) & (points.magnitudes < top))
    magnitudes = np.concatenate([[start], points.magnitudes[inside], [top]])
    resolved = np.concatenate([[False], points.resolved[inside], [False]])
    beyond = points.beyond(magnitudes)
    # What of the outermost nodes is inside of the tail stands at its ends.
    nodes, node_weights = points.magnitudes[~points.resolved], points.weights[~points.resolved]
    at_start = beyond[0] - node_weights[nodes > start].sum()
    at_top = node_weights[nodes >= top].sum() - beyond[-1]
    weights = np.concatenate([[at_start], points.weights[inside], [at_top]])
    mass = float(weights.sum())
    logs = np.log(magnitudes / start)
    mean, length = float(weights @ logs) / mass if mass > 0 else 0.0, float(logs[-1])
    if not 0 < mean < length:
        return None
    law = _Exponential.of_mean(mean, length)
    steps = np.where(resolved, weights, 0.0)
    below = beyond[0] - beyond + np.cumsum(steps) - steps / 2
    distance = float(np.abs(below / mass - law.cdf(logs)).max())
    variance = np.where(resolved, weights**2, np.maximum(weights, 0) * points.sampled)
    return _Window(points, magnitudes, weights, variance, mass, law, distance)


def _window_from(spectrum: Spectrum, sign: int, points: _Points, start: float) -> _Window:
    if not (math.isfinite(start) and start > 0):
        raise ValueError(f"start is {start!r}; a tail begins at a positive |lambda|.")
    found = int((points.magnitudes >= start).sum())
    window = _window(points, float(start)) if found >= MIN_POINTS else None
    if window is None:
        raise ValueError(_too_few(spectrum, sign, found, start))
    if not window.resolved:
        raise ValueError(_unresolved(sign, start))
    return window


def _unresolved(sign: int, start: float | None = None) -> str:
    where = "wherever it may begin" if start is None else f"at start = {start:.6g}"
    return (
        f"The tail of the {SIDES[sign]} bulk is not resolved: {where}, its first quadrature node has as much of its "
        f"mass as all points beyond. {'M' if start is None else 'Choose a larger start, or m'}easure with more steps."
    )


def _too_few(spectrum: Spectrum, sign: int, found: int, start: float | None = None) -> str:
    beyond = "" if start is None else f" beyond start = {start:.6g}"
    remedy = "Measure with more steps" if start is None else "Choose a smaller start, or measure with more steps"
    return (
        f"The {SIDES[sign]} bulk has {found} points{beyond} (rounding is {spectrum.rounding:.2g}); the fit of a tail "
        f"needs at least {MIN_POINTS}, not all at one place. {remedy}."
    )


def _tail_fit(window: _Window, start_error: float, confidence: float) -> TailFit:
    logs, law = window.logs, window.law
    _, mean, square, cube = (float(moment) for moment in law.moments())
    information = square - mean**2
    sampling, quadrature = (math.sqrt(variance) / information for variance in window.variances(logs - mean))
    half = float(ndtri((1 + confidence) / 2)) * math.sqrt(sampling**2 + quadrature**2 + start_error**2)

    shares = window.weights / window.mass
    distances = window.magnitudes / window.magnitudes[0] - 1
    exponential = _Exponential.of_mean(float(shares @ distances), float(distances[-1]))
    # Densities of |lambda|/start: of the power law, that of its logarithm divided by it.
    ratios = law.log_density(logs) - logs - exponential.log_density(distances)
    ratio = float(shares @ ratios)
    # The log-normal density is exp(-rate y - bend y^2): its score at bend = 0, less what a change of rate explains.
    score = (logs**2 - square) - (cube - mean * square) / information * (logs - mean)
    return TailFit(
        exponent=law.rate + 1,
        lower=law.rate + 1 - half,
        upper=law.rate + 1 + half,
        confidence=confidence,
        sampling_error=sampling,
        quadrature_error=quadrature,
        start_error=start_error,
        start=float(window.magnitudes[0]),
        top=float(window.magnitudes[-1]),
        mass=window.mass,
        nodes=int((window.points.magnitudes >= window.magnitudes[0]).sum()),
        kolmogorov_smirnov=window.distance,
        against_exponential=ratio / math.sqrt(sum(window.variances(ratios - ratio))),
        curvature=-float(shares @ score) / math.sqrt(sum(window.variances(score))),
    )
