"""Power-law fits to the tail of the bulk of a spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import exprel, ndtri

from hesspec.backend.number_text import exponent_text, three_digits
from hesspec.backend.shown import Shown
from hesspec.spectra.power_law import check_confidence
from hesspec.spectra.spectrum import Spectrum

__all__ = ["MIN_POINTS", "TailFit", "fit_tail"]

Array = npt.NDArray[np.float64]

# A tail of fewer points is close to some power law by chance, and the choice of the start would find it.
MIN_POINTS = 10
# Number of starts tried for exact spectra of thousands of eigenvalues, at equal ratios of the number of points.
MAX_STARTS = 128
# Starts whose Kolmogorov-Smirnov distance is up to this factor times the smallest count as equally good. For Pareto
# tails with and without a body below them (500 to 20,000 eigenvalues, 64 steps, 60 to 200 draws of each), intervals at
# 95% then hold in 94.7% of the draws or more; where the tail is a tenth of 500 eigenvalues they held in 97%, but in 91%
# with 1.25 and in 81% without this term.
AS_GOOD = 1.5
# Variance of a uniform variable divided by the squared length of its interval.
UNIFORM = 1 / 12
# Moments of exp(-t u) on [0, 1] are exact to rounding for |t| below about 500, where t is rate times length.
GAUSS_LEGENDRE = 128
# Smallest ratio of a tail's ends for it to count as a tail rather than the edge itself: near the end of any bulk the
# density falls, and more steeply the closer one looks (digits networks gave exponents of 11 to 17 over factors of 1.4
# to 1.6).
LEAST_SPAN = 2.0
SIDES = {1: "positive", -1: "negative", 0: "whole"}
# Below this |t| the series of the mean is more accurate than the difference of two large numbers.
SERIES = 1e-3


@dataclass(frozen=True, repr=False)
class TailFit(Shown):
    """Power law fitted to the tail of a bulk: density ~ |lambda|^(-exponent) between `start` and `top`.

    Parameters
    ----------
    exponent : float
        Exponent of the density. In an infinite tail the share of eigenvalues beyond lambda has exponent 1 - exponent.
    lower, upper : float
        Confidence interval of the exponent at `confidence`, from the three errors below, taken as independent. It is
        valid *if* the tail is a power law; the other fields say whether it is.
    confidence : float
        Level of the interval.
    sampling_error : float
        Standard error from the finite number of eigenvalues, treated as independent draws of the law, and from the
        random weights with which probes sample the unresolved ones. Eigenvalues of random matrices repel one another
        and are spaced more evenly than independent draws, so for them it is too large rather than too small.
    quadrature_error : float
        Standard error from the unknown share of the outermost nodes' weight that is inside the tail.
    start_error : float
        Root-mean-square difference from the exponents at all other starts that fit about as well; 0 if `start` was
        given.
    start, top : float
        Ends of the tail, |lambda|; `top` is the edge of the bulk.
    mass : float
        Share of all p eigenvalues between `start` and `top`.
    nodes : int
        Number of points of the measure in the tail, ends included: resolved eigenvalues and quadrature nodes.
    kolmogorov_smirnov : float
        Largest difference between the distribution of the tail, taken halfway up its steps, and that of the law.
    against_exponential : float
        Log-likelihood ratio of the power law to an exponential law on the same tail, in standard errors (Vuong 1989);
        positive if the power law fits better.
    curvature : float
        Curvature of the density in a log-log plot, in standard errors (score test). Positive if it bends downwards, as
        that of a log-normal law does. A power law is the limit of a log-normal law without curvature, so it can be
        rejected in favour of one, but not the other way round.
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

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "exponent": f"{exponent_text(self.exponent, self.lower, self.upper)}, interval at {self.confidence:.0%}",
            "exponent resolved": "yes" if self.resolved else "no: not above 0, or less than a factor of two",
            "a power law fits": "yes" if self.is_power_law else "no",
            "tail": f"{three_digits(self.start)} to {three_digits(self.top)}, {self.decades:.2g} decades",
            "share of eigenvalues": f"{self.mass:.2%} in {self.nodes} points",
            "standard errors": f"sampling {self.sampling_error:.2g}, quadrature {self.quadrature_error:.2g}, "
            f"start {self.start_error:.2g}",
            "Kolmogorov-Smirnov distance": f"{self.kolmogorov_smirnov:.3g}",
            "against an exponential law": f"{self.against_exponential:+.2g} standard errors",
            "curvature": f"{self.curvature:+.2g} standard errors",
        }

    @property
    def resolved(self) -> bool:
        """Whether the exponent is worth quoting: its interval is above 0, and the tail spans at least a factor of two.

        If the interval is not above 0, even the sign of the slope is unknown: there are too few points, or their
        weights say too little. Over less than a factor of two, the fit measures the slope of the bulk's edge. More
        Lanczos steps give more points.
        """
        return self.lower > 0 and self.top >= LEAST_SPAN * self.start

    @property
    def decades(self) -> float:
        """Decades that the tail spans. Below about one, few laws can be told apart."""
        return math.log10(self.top / self.start)

    @property
    def better_than_exponential(self) -> bool:
        """Whether an exponential tail is rejected in favour of the power law, at `confidence` (two-sided)."""
        return self.against_exponential > self._critical

    @property
    def is_power_law(self) -> bool:
        """Whether the tail is resolved, a power law fits it better than an exponential law, and it has no curvature."""
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
            Share of all eigenvalues per unit of |lambda|; 0 outside [start, top]. Its integral is `mass`.
        """
        points = np.asarray(magnitude, np.float64)
        inside = (points >= self.start) & (points <= self.top)
        logs = np.log(np.where(inside, points, self.start) / self.start)
        law = _Exponential(self.exponent - 1, math.log(self.top / self.start))
        # The density of log |lambda|, divided by |lambda|, is that of |lambda|.
        return np.where(inside, self.mass * np.exp(law.log_density(logs) - logs) / self.start, 0.0)


def fit_tail(
    spectrum: Spectrum,
    *,
    sign: int = 1,
    start: float | None = None,
    confidence: float = 0.95,
) -> TailFit:
    """Fit a power law to the tail of the bulk of a spectrum.

    The law is fitted by maximum likelihood on a bounded interval, because the bulk ends at its edge and outliers are
    excluded: in y = log(|lambda|/start) it is an exponential law on [0, log(top/start)], whose only sufficient
    statistic is the mean of y over the tail. A quadrature gives this mean accurately: nodes count with their weights,
    the outermost with half of theirs (Euler-Maclaurin; an eigenvalue at an end does not count, as the likelihood is
    conditional on it).

    `start` minimises the Kolmogorov-Smirnov distance between tail and law, among the points that leave at least ten
    points in the tail and more mass beyond its first node than at it: if nearly all mass is at one node, any steep law
    fits, and the exponent would describe that node. The height of a node's step is its weight, whatever the operator,
    so the distance is taken halfway up the steps.

    Parameters
    ----------
    spectrum : Spectrum
        Spectrum whose bulk is used: its quadrature nodes and the resolved eigenvalues that are not outliers.
    sign : int
        1 for the positive tail, -1 for the negative one, 0 for |lambda| of both, where the tail ends before the
        smallest |outlier| of either sign.
    start : float, optional
        Lower end of the tail, |lambda|. Chosen from the data by default.
    confidence : float
        Level of the interval and of the two tests, in (0, 1).

    Returns
    -------
    TailFit

    Raises
    ------
    ValueError
        If `sign`, `start` or `confidence` is out of range, the tail has fewer than ten distinct points, or its first
        node holds as much mass as all others together.

    Notes
    -----
    Clauset, Shalizi and Newman, "Power-law distributions in empirical data" (SIAM Review 2009), for the choice of the
    start; Aban, Meerschaert and Panorska, "Parameter estimation for the truncated Pareto distribution" (2006).

    Quadrature nodes are not a sample, and their number says nothing about the error. With s the score of a point, the
    error has three parts:

    - eigenvalues as independent draws of the law contribute the variance w/p s^2 for a weight w to the likelihood
      equation; for unresolved ones a probe, for which p w is a sum of chi-squared variables, adds twice that, divided
      by the number of probes. The weight of a resolved eigenvalue is known;
    - any part of an outermost node's weight may be inside the tail (Chebyshev, Markov, Stieltjes); taken as uniform,
      this is w^2/12 s^2. It does not decrease with p, and dominates for networks of millions of parameters;
    - the spread of the exponents over all starts whose distance is at most 1.5 times the smallest.

    Not included are the error of the quadrature inside the tail, which is of second order in the weights, and the error
    from a tail that is not a power law. For Pareto eigenvalues with exponents 2 to 3 and 64 steps, intervals at 95%
    covered the truth in 95% to 99% of the draws for p = 500 to 2,000, and in all draws for p >= 20,000, where the
    second term dominates and is too cautious.

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
        raise ValueError(f"sign is {sign!r}; it must be 1 (positive tail), -1 (negative) or 0 (both, by |lambda|).")
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
    """Exponential law exp(-rate y) on [0, length]; the rate may have either sign."""

    rate: float
    length: float

    @classmethod
    def of_mean(cls, mean: float, length: float) -> _Exponential:
        """Return the maximum-likelihood fit to points in (0, length) with this mean."""
        share = mean / length
        # At the root t, share < 1/t, and likewise with 1 - share; twice that brackets the root in spite of rounding.
        root = brentq(lambda scaled: _scaled_mean(scaled) - share, -2 / (1 - share), 2 / share)
        return cls(float(root) / length, length)

    def log_density(self, y: Array) -> Array:
        scaled = self.rate * self.length
        # exprel(t) = (e^t - 1)/t; use negative arguments, for which it cannot overflow.
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
    """Gauss-Legendre nodes on [-1, 1] and their weights; cached, as they take longer than the rest of a fit."""
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
    """Points of one tail, ascending in |lambda|; arrays have shape (n,)."""

    magnitudes: Array
    weights: Array
    resolved: npt.NDArray[np.bool_]
    family: npt.NDArray[np.int64]  # probe and sign of each node; the nodes of one family form one quadrature
    sampled: float  # sampling variance of unresolved eigenvalues, per weight and squared score

    @property
    def size(self) -> int:
        return self.magnitudes.size

    def families(self) -> list[tuple[Array, Array]]:
        """Nodes and weights of each quadrature."""
        nodes = [(self.family == family) & ~self.resolved for family in np.unique(self.family[~self.resolved])]
        return [(self.magnitudes[mine], self.weights[mine]) for mine in nodes]

    def beyond(self, places: Array) -> Array:
        """Mass beyond given points: half of a node's weight at the node, linear in the logarithm in between."""
        found = np.zeros(places.shape)
        for nodes, weights in self.families():
            after = np.cumsum(weights[::-1])[::-1] - weights / 2
            found += np.interp(np.log(places), np.log(nodes), after, left=float(weights.sum()), right=0.0)
        return found

    def nearest(self, place: float) -> Array:
        """Weight of the nearest node of each quadrature that reaches a point; any part of it may lie beyond."""
        return np.array(
            [
                weights[np.argmin(np.abs(nodes - place))]
                for nodes, weights in self.families()
                if nodes[0] <= place <= nodes[-1]
            ]
        )

    def uncertain(self, place: float) -> float:
        """Variance of the mass beyond a point, taking a uniform part of each weight that may lie there."""
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
        # Beyond the first outlier of either sign, the bulk is incomplete.
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
    """Indices of the points at which a tail may begin."""
    size = magnitudes.size
    if size < MIN_POINTS:
        return np.empty(0)
    lengths = np.arange(MIN_POINTS, size + 1)
    if lengths.size > MAX_STARTS:
        lengths = np.unique(np.geomspace(MIN_POINTS, size, MAX_STARTS).astype(np.int64))
    return magnitudes[size - lengths]


class _Window(NamedTuple):
    """A tail and the law fitted to it. Arrays contain its two ends and the points between them, ascending."""

    points: _Points
    magnitudes: Array
    weights: Array
    variance: Array  # sampling variance, per squared score
    mass: float
    law: _Exponential
    distance: float

    @property
    def logs(self) -> Array:
        """y = log(|lambda|/start)."""
        return np.asarray(np.log(self.magnitudes / self.magnitudes[0]))

    @property
    def resolved(self) -> bool:
        """Whether the nodes beyond the start hold more of the tail than the one at the start, half of which is inside.

        Otherwise the mass of the tail is uncertain by a factor of three, and its mean y is that of a single node: the
        exponent would only give the position of that node.
        """
        return float(self.points.nearest(float(self.magnitudes[0])).sum()) < self.mass

    def variances(self, scores: Array) -> tuple[float, float]:
        """Variances of the mean score over the tail: from sampling, and from the quadrature at both ends."""
        sampling = float(self.variance @ scores**2)
        start, top = (self.points.uncertain(float(place)) for place in self.magnitudes[[0, -1]])
        ends = start * float(scores[0]) ** 2 + top * float(scores[-1]) ** 2
        return sampling / self.mass**2, ends / self.mass**2


def _window(points: _Points, start: float) -> _Window | None:
    """Return the tail from a point on; None if its points coincide."""
    top = float(points.magnitudes[-1])
    inside = np.flatnonzero((points.magnitudes > start) & (points.magnitudes < top))
    magnitudes = np.concatenate([[start], points.magnitudes[inside], [top]])
    resolved = np.concatenate([[False], points.resolved[inside], [False]])
    beyond = points.beyond(magnitudes)
    # The part of the outermost nodes that is inside the tail is placed at its ends.
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
    # Densities of |lambda|/start: for the power law, the density of the logarithm divided by it.
    ratios = law.log_density(logs) - logs - exponential.log_density(distances)
    ratio = float(shares @ ratios)
    # The log-normal density is exp(-rate y - bend y^2): the score at bend = 0, minus the part that a change of the rate
    # explains.
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
