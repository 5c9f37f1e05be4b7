r"""Sampling errors from the random probes: standard errors, 95% intervals and 95% bounds, on NumPy arrays.

A probe that is uniform on the sphere of R^q gives the eigenvalues of an operator random weights. The weights in an
eigenspace of dimension k sum to a Beta(k/2, (q - k)/2) variable, and

.. math:: \operatorname{Var}[v^\top f(A) v] = \frac{2 \operatorname{Var}_\mu(f)}{q + 2}.

Eigenvalues of known multiplicity are counted and have no sampling error. A resolved eigenvalue that may have further
copies, which one probe cannot see, is sampled like any other, and intervals start from its measured weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.special

from hesspec.spectra.scaling import ordinary

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
# Number of nodes from which a quadrature is exact for the fourth moment, which gives the accuracy of the second.
FOURTH_MOMENT: Final = 3
# Bisections of [0, 1] that find limits of shares to 1e-12.
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
    """The spectral measure as one probe samples it.

    Attributes
    ----------
    counted, counted_weights : array (c,)
        Eigenvalues of known multiplicity, and their weights.
    nodes, shares : array (s,)
        The rest of the measure as sampled by the probe; shares sum to 1.
    mass : float
        Weight of the rest.
    dimension : float
        Number of eigenvalues in the rest, q.
    spread : float
        Standard deviation of the rest if it is represented by a single node; 0 otherwise.
    fourth_moment : bool
        Whether the nodes reproduce the fourth moment of the rest.
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
        """Mean of a function over the measure; of several functions if it returns an array (..., s) for nodes (s,)."""
        return np.asarray(
            function(self.counted) @ self.counted_weights + self.mass * (function(self.nodes) @ self.shares)
        )

    def powers(self, function: Function) -> tuple[Array, Array]:
        """Sums, over the sampled eigenvalues, of (f - mean f)^2 and (f - mean f)^4."""
        nodes, shares = self.nodes, self.shares
        if self.spread:
            # Two nodes with the same standard deviation; on the outer side, where functions of eigenvalues are defined.
            nodes, shares = nodes + np.array([0.0, 2 * self.spread]) * np.copysign(1.0, nodes), np.full(2, 0.5)
        values = function(nodes)
        squares = (values - (values @ shares)[..., None]) ** 2
        return self.dimension * (squares @ shares), self.dimension * (squares**2 @ shares)


def samples(spectrum: Spectrum, *, doubtful: bool) -> list[Sample]:
    """Return the sample of each probe.

    Parameters
    ----------
    spectrum : Spectrum
    doubtful : bool
        If True, resolved eigenvalues that are taken as simple but may have unseen copies are sampled. Otherwise they
        are counted with their multiplicity in the spectrum.
    """
    p, values, sampled = spectrum.dimension, spectrum.eigenvalues, spectrum.eigenvalue_sampled
    found = []
    for probe in range(spectrum.probes):
        mine = spectrum.bulk_probe == probe
        nodes, weights = spectrum.bulk_nodes[mine], spectrum.bulk_weights[mine]
        drawn = np.zeros(values.size, bool)
        if probe == 0:
            # The measured weight in excess of the counted copies becomes a node at the same position.
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
    """Residual bound of the Ritz value at a bulk node."""
    return float(spectrum.ritz_bounds[np.argmin(np.abs(spectrum.ritz_values - node))])


def node_bounds(spectrum: Spectrum) -> Array:
    """Residual bounds of all bulk nodes."""
    return np.array([residual_bound(spectrum, node) for node in spectrum.bulk_nodes])


def mean_bounds(spectrum: Spectrum) -> Array:
    """Bounds on the root-mean-square distance of the copies of each resolved eigenvalue; see `Spectrum`."""
    copies = np.maximum(spectrum.eigenvalue_weights * spectrum.dimension, 1.0)
    return np.asarray(spectrum.error_bounds / np.sqrt(copies))


def standard_error(drawn: Sequence[Sample], function: Function) -> Array:
    """Standard error of the mean of a function, or of several as in `Sample.mean`."""
    return _deviation(drawn, function)[0]


def _deviation(drawn: Sequence[Sample], function: Function) -> tuple[Array, Array]:
    """Standard error of the mean of a function, and the degrees of freedom of its square.

    The squared error is estimated from the weights of the same probe, hence from few chi-squared variables if a few
    eigenvalues dominate. Sum_i a_i^2 x_i, x_i with k_i degrees of freedom, is approximated by a chi-squared variable
    with (sum_i a_i^2 k_i)^2 / sum_i a_i^4 k_i degrees of freedom (Satterthwaite 1946), at least one.
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
    """95% interval of the mean of a function: two standard errors, or Student's t with few degrees of freedom."""
    middle = float(np.mean([sample.mean(function) for sample in drawn]))
    error, freedom = _deviation(drawn, function)
    half = float(error) * max(2.0, float(scipy.special.stdtrit(freedom, (1 + CONFIDENCE) / 2)))
    return middle - half, middle + half


def share_limits(low: Array, high: Array, dimension: float) -> tuple[Array, Array]:
    """95% interval of shares F of q eigenvalues, where the share that a probe sees is known to lie between two numbers.

    The probe's share is a Beta(q F/2, q (1 - F)/2) variable. At the lower limit F, a share of at least `low` has a
    probability of 2.5%; at the upper limit, a share of at most `high` does (Clopper and Pearson 1934).

    Parameters
    ----------
    low, high : array (n,)
        Bounds on the share that a probe sees, in [0, 1].
    dimension : float
        Number of eigenvalues q; for a mean over n probes n (q + 2) - 2, which gives the same variance.

    Returns
    -------
    lower, upper : array (n,)
    """
    risk = (1 - CONFIDENCE) / 2

    def found(observed: Array, tail: Callable[[Array, Array, Array], Array], *, upper: bool) -> Array:
        # A distribution of few nodes has few different values, at however many points it is asked for.
        value, place = np.unique(observed, return_inverse=True)
        begin, end = np.zeros(value.shape), np.ones(value.shape)
        for _ in range(HALVINGS):
            middle = (begin + end) / 2
            likely = tail(dimension * middle / 2, dimension * (1 - middle) / 2, value) >= risk
            begin, end = np.where(likely == upper, middle, begin), np.where(likely == upper, end, middle)
        return (end if upper else begin)[place].reshape(observed.shape)

    lower = np.where(low > 0, found(np.clip(low, 0, 1), scipy.special.betaincc, upper=False), 0.0)
    upper = np.where(high < 1, found(np.clip(high, 0, 1), scipy.special.betainc, upper=True), 1.0)
    return lower, upper


def sampling_bounds(spectrum: Spectrum) -> tuple[float, float]:
    """95% bounds on the Wasserstein-1 and Kolmogorov-Smirnov distances that are due to sampling by the probes.

    The first is the integral of the larger distance from the estimated CDF to the two limits of `share_limits` at each
    point; errors at different points are correlated, so the quantile of their sum is at most the sum of their
    quantiles. The second is the sub-Gaussian tail of Beta variables (Marchal and Arbel 2017), over all eigenvalues at
    once.
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
        # If a single node represents the rest, its mean is sampled as well.
        low, high = interval(drawn, lambda values: values)
        distance += (high - low) / 2
    rest = max(min(sample.dimension for sample in drawn), 1.0)
    uniform = float(np.sqrt(np.log(2 * rest / (1 - CONFIDENCE)) / ((rest + 2) * len(drawn))))
    return distance, mass * uniform + float(np.abs(sampled - estimated).max(initial=0.0))


def bulk_bounds(spectrum: Spectrum) -> tuple[float, float]:
    """Bounds of 95% of what the bulk adds to the Wasserstein-1 and to the Kolmogorov-Smirnov distance."""
    if spectrum.exact or not spectrum.bulk_weights.sum() > 0:
        return 0.0, 0.0
    spectrum, exponent = ordinary(spectrum)
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
    return float(np.ldexp(distance + sampled[0], exponent)), supremum + sampled[1]
