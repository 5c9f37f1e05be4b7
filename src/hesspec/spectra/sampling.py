r"""What the probes of a spectrum leave unknown: standard errors, intervals and bounds of 95%, on NumPy arrays.

A probe uniform on the sphere of R^q gives the eigenvalues of an operator random weights: those of an eigenspace of
dimension k add up to a Beta(k/2, (q - k)/2) variable, and

.. math:: \operatorname{Var}[v^\top f(A) v] = \frac{2 \operatorname{Var}_\mu(f)}{q + 2}.

Eigenvalues whose multiplicity is known are counted, and have no such error. The weight of a resolved eigenvalue that
may have further copies, which one probe cannot see, is a sample like any other, and intervals start from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.special

if TYPE_CHECKING:
    from hesspec.spectra.spectrum import Spectrum

__all__ = [
    "CONFIDENCE",
    "Estimate",
    "Sample",
    "bulk_bounds",
    "interval",
    "mean_bounds",
    "node_bounds",
    "residual_bound",
    "samples",
    "sampling_bounds",
    "share_limits",
    "standard_error",
]

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]

CONFIDENCE: Final = 0.95
# Nodes of a quadrature that is exact for the fourth moment, which says how well the second is known.
FOURTH_MOMENT: Final = 3
# Halvings of [0, 1] by which limits of shares are found: to 1e-12.
HALVINGS: Final = 40


class Estimate(NamedTuple):
    """A number that was estimated, with the interval in which the true one lies.

    The interval is one of 95%, from the rigorous bracket of the quadrature and the distribution of a probe's weights.
    """

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        """Value and interval to four digits."""
        return f"{self.value:.4g} [{self.lower:.4g}, {self.upper:.4g}]"


@dataclass(frozen=True)
class Sample:
    """What one probe says of the measure.

    Attributes
    ----------
    counted, counted_weights : array (c,)
        Eigenvalues whose number is known, and their weights.
    nodes, shares : array (s,)
        The rest of the measure as the probe samples it; shares sum to 1.
    mass : float
        Weight of the rest.
    dimension : float
        q, the number of eigenvalues in the rest.
    spread : float
        Standard deviation of the measure that a node stands for, where it is the only one; else 0.
    fourth_moment : bool
        Whether the nodes give the fourth moment of the rest.
    """

    counted: Array
    counted_weights: Array
    nodes: Array
    shares: Array
    mass: float
    dimension: float
    spread: float
    fourth_moment: bool

    def mean(self, function: Function) -> Array:
        """Of a function over the measure; of several, where the function gives an array (..., s) for nodes (s,)."""
        return np.asarray(
            function(self.counted) @ self.counted_weights + self.mass * (function(self.nodes) @ self.shares)
        )

    def powers(self, function: Function) -> tuple[Array, Array]:
        """Sums, over the sampled eigenvalues, of (f - mean f)^2 and (f - mean f)^4."""
        nodes, shares = self.nodes, self.shares
        if self.spread:
            # Two nodes with the same standard deviation; outwards, where functions of eigenvalues are defined.
            nodes, shares = nodes + np.array([0.0, 2 * self.spread]) * np.copysign(1.0, nodes), np.full(2, 0.5)
        values = function(nodes)
        squares = (values - (values @ shares)[..., None]) ** 2
        return self.dimension * (squares @ shares), self.dimension * (squares**2 @ shares)


def samples(spectrum: Spectrum, *, doubtful: bool) -> list[Sample]:
    """The sample of each probe.

    Parameters
    ----------
    spectrum : Spectrum
    doubtful : bool
        Whether resolved eigenvalues that are taken for simple, and may have unseen copies, are sampled; else they are
        counted as they are in the spectrum.
    """
    p, values, sampled = spectrum.dimension, spectrum.eigenvalues, spectrum.eigenvalue_sampled
    found = []
    for probe in range(spectrum.probes):
        mine = spectrum.bulk_probe == probe
        nodes, weights = spectrum.bulk_nodes[mine], spectrum.bulk_weights[mine]
        drawn = np.zeros(values.size, bool)
        if probe == 0:
            # What is left of a measured weight, when the copies that were found are counted, is a node at their place.
            same = (np.abs(nodes - values[:, None]) <= 2 * spectrum.rounding) & (sampled[:, None] > 0)
            drawn = sampled > 0 if doubtful else same.any(axis=1)
            nodes, weights = nodes[~same.any(axis=0)], weights[~same.any(axis=0)]
            if nodes.size:
                closed = float(spectrum.eigenvalue_weights[sampled == 0].sum())
                weights = weights / weights.sum() * max(1 - closed - float(sampled.sum()), 0.0)
        mass = max(1 - float(spectrum.eigenvalue_weights[~drawn].sum()), 0.0) if nodes.size or drawn.any() else 0.0
        nodes, weights = np.concatenate([values[drawn], nodes]), np.concatenate([sampled[drawn], weights])
        total = float(weights.sum())
        residuals = [residual_bound(spectrum, node) for node in nodes[:FOURTH_MOMENT]]
        exact = all(residual <= 2 * spectrum.rounding for residual in residuals)
        found.append(
            Sample(
                counted=values[~drawn],
                counted_weights=spectrum.eigenvalue_weights[~drawn],
                nodes=nodes,
                shares=weights / total if total > 0 else np.full(nodes.size, 1 / max(nodes.size, 1)),
                mass=mass,
                dimension=max(p * mass, 1.0),
                spread=residuals[0] if nodes.size == 1 and not exact else 0.0,
                fourth_moment=exact or nodes.size >= FOURTH_MOMENT,
            )
        )
    return found


def residual_bound(spectrum: Spectrum, node: float) -> float:
    """Residual bound of the Ritz value that a bulk node is."""
    return float(spectrum.ritz_bounds[np.argmin(np.abs(spectrum.ritz_values - node))])


def node_bounds(spectrum: Spectrum) -> Array:
    """Residual bounds of all bulk nodes."""
    return np.array([residual_bound(spectrum, node) for node in spectrum.bulk_nodes])


def mean_bounds(spectrum: Spectrum) -> Array:
    """Bounds of the root mean square distance of the copies of each resolved eigenvalue, see `Spectrum`."""
    copies = np.maximum(spectrum.eigenvalue_weights * spectrum.dimension, 1.0)
    return np.asarray(spectrum.error_bounds / np.sqrt(copies))


def standard_error(drawn: Sequence[Sample], function: Function) -> Array:
    """Standard error of the mean of a function, or of several as in `Sample.mean`."""
    return _deviation(drawn, function)[0]


def _deviation(drawn: Sequence[Sample], function: Function) -> tuple[Array, Array]:
    """Standard error of the mean of a function, and the degrees of freedom of its square.

    The squared error is estimated from the weights of the same probe: where a few eigenvalues decide on it, from few
    chi-squared variables. Sum_i a_i^2 x_i with x_i of k_i degrees of freedom has those of a chi-squared variable with
    (sum_i a_i^2 k_i)^2 / sum_i a_i^4 k_i of them (Satterthwaite 1946), and with no less than one.
    """
    scale = np.max([np.abs(function(sample.nodes)).max(axis=-1, initial=0.0) for sample in drawn], axis=0)
    unit = np.where(scale > 0, scale, 1.0)
    variance = second = fourth = np.zeros(unit.shape)
    for sample in drawn:
        if not sample.mass > 0:
            continue
        two, four = sample.powers(lambda nodes: np.asarray(function(nodes) / unit[..., None]))
        share = sample.mass / sample.dimension / len(drawn)
        variance = variance + 2 * two * share**2 * sample.dimension / (sample.dimension + 2)
        second, fourth = second + two, fourth + four
    known = all(sample.fourth_moment for sample in drawn)
    freedom = (
        np.where(fourth > 0, second**2 / np.where(fourth > 0, fourth, 1.0), np.inf) if known else np.ones(unit.shape)
    )
    return np.asarray(np.sqrt(variance) * scale), np.maximum(freedom, 1.0)


def interval(drawn: Sequence[Sample], function: Function) -> tuple[float, float]:
    """Interval of 95% of the mean of a function: two standard errors, or Student's t of them where they are few."""
    middle = float(np.mean([sample.mean(function) for sample in drawn]))
    error, freedom = _deviation(drawn, function)
    half = float(error) * max(2.0, float(scipy.special.stdtrit(freedom, (1 + CONFIDENCE) / 2)))
    return middle - half, middle + half


def share_limits(low: Array, high: Array, dimension: float) -> tuple[Array, Array]:
    """Interval of 95% of shares F of q eigenvalues, of which a probe's share is known to be between two numbers.

    The probe's share is a Beta(q F/2, q (1 - F)/2) variable. The lower limit is the F for which one of at least `low`
    has a probability of 2.5%, the upper the F for which one of at most `high` has (Clopper and Pearson 1934).

    Parameters
    ----------
    low, high : array (n,)
    dimension : float
        q; for a mean over n probes n (q + 2) - 2, of which the variance is the same.

    Returns
    -------
    lower, upper : array (n,)
    """
    risk = (1 - CONFIDENCE) / 2

    def found(observed: Array, tail: Callable[[Array, Array, Array], Array], *, upper: bool) -> Array:
        begin, end = np.zeros(observed.shape), np.ones(observed.shape)
        for _ in range(HALVINGS):
            middle = (begin + end) / 2
            likely = tail(dimension * middle / 2, dimension * (1 - middle) / 2, observed) >= risk
            begin, end = np.where(likely == upper, middle, begin), np.where(likely == upper, end, middle)
        return end if upper else begin

    lower = np.where(low > 0, found(np.clip(low, 0, 1), scipy.special.betaincc, upper=False), 0.0)
    upper = np.where(high < 1, found(np.clip(high, 0, 1), scipy.special.betainc, upper=True), 1.0)
    return lower, upper


def sampling_bounds(spectrum: Spectrum) -> tuple[float, float]:
    """Bounds of 95% of the Wasserstein-1 and the Kolmogorov-Smirnov distance that the probes' sampling adds.

    The first is the integral of the larger distance from the estimated CDF to the limits of `share_limits` at each
    point; errors at different points are correlated, so that their sum is at most that of their quantiles. The second
    is the sub-Gaussian tail of Beta variables (Marchal and Arbel 2017), over all eigenvalues at once.
    """
    drawn, p = samples(spectrum, doubtful=True), spectrum.dimension
    nodes, estimated = spectrum.nodes, np.cumsum(spectrum.weights)[:-1]
    x = nodes[:-1]
    closed = spectrum.eigenvalue_sampled == 0
    counted = (spectrum.eigenvalues[closed] <= x[:, None]) @ spectrum.eigenvalue_weights[closed]
    mass = 1 - float(spectrum.eigenvalue_weights[closed].sum())
    sampled = np.mean([sample.mean(lambda values: (values <= x[:, None]).astype(float)) for sample in drawn], axis=0)
    share = np.clip((sampled - counted) / mass, 0, 1)
    lower, upper = share_limits(share, share, len(drawn) * (p * mass + 2) - 2)
    off = np.maximum(counted + mass * upper - estimated, estimated - counted - mass * lower)
    distance = float(np.diff(nodes) @ np.maximum(off, 0))
    if any(sample.spread for sample in drawn):
        # Of what a single node stands for, the mean is sampled too.
        low, high = interval(drawn, lambda values: values)
        distance += (high - low) / 2
    rest = max(min(sample.dimension for sample in drawn), 1.0)
    uniform = float(np.sqrt(np.log(2 * rest / (1 - CONFIDENCE)) / ((rest + 2) * len(drawn))))
    return distance, mass * uniform + float(np.abs(sampled - estimated).max(initial=0.0))


def bulk_bounds(spectrum: Spectrum) -> tuple[float, float]:
    """Bounds of 95% of what the bulk adds to the Wasserstein-1 and to the Kolmogorov-Smirnov distance."""
    if spectrum.exact or not spectrum.bulk_weights.sum() > 0:
        return 0.0, 0.0
    distance, supremum = 0.0, 0.0
    for probe in range(spectrum.probes):
        mine = spectrum.bulk_probe == probe
        order = np.argsort(spectrum.bulk_nodes[mine], kind="stable")
        nodes, weights = spectrum.bulk_nodes[mine][order], spectrum.bulk_weights[mine][order]
        ends = [residual_bound(spectrum, node) for node in (nodes[0], nodes[-1])]
        largest = np.maximum(weights[:-1], weights[1:])
        distance += float(np.diff(nodes) @ largest + ends[0] * weights[0] + ends[1] * weights[-1])
        supremum += float(weights.max())
    sampled = sampling_bounds(spectrum)
    return distance + sampled[0], supremum + sampled[1]
