"""Scale-invariant PAC-Bayes bound from the curvature at a minimum and its distance from the initial parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from torch import Tensor

from hesspec.applications.noise.flatness_record import FlatnessBound
from hesspec.backend.numbers import check_counts, check_fractions, real_array
from hesspec.measure.diagonal import Diagonal
from hesspec.spectra.record import Array
from hesspec.spectra.spectrum import Spectrum

__all__ = ["flatness_bound", "posterior_variance"]


def flatness_bound(
    parameters: Tensor | npt.ArrayLike,
    initial: Tensor | npt.ArrayLike,
    curvature: Tensor | npt.ArrayLike | Diagonal | Spectrum,
    *,
    prior_variance: float | Tensor | npt.ArrayLike,
    samples: int,
    empirical_risk: float,
    confidence: float = 0.95,
) -> FlatnessBound:
    r"""Bound the risk of a randomised predictor by the flatness of a minimum and its distance from initialisation.

    The prior is :math:`N(\theta_0, \mathrm{diag}(s_j^2))`, the posterior :math:`N(\theta, \mathrm{diag}(1/\nu_j))` with
    :math:`\nu_j = \max(h_j, 1/s_j^2)` and the curvature h_j of the loss along parameter j. Then

    .. math:: KL = \frac12 \sum_j \Bigl[\ln \nu_j s_j^2 - 1 + \frac1{\nu_j s_j^2} + \frac{(\theta_j - \theta_{0j})^2}
              {s_j^2}\Bigr]
              \le \underbrace{\frac12 \sum_{h_j > 1/s_j^2} \ln h_j s_j^2}_{\text{effective curvature}}
              + \underbrace{\frac12 \sum_j \frac{(\theta_j - \theta_{0j})^2}{s_j^2}}_{\text{distance}},

    and with probability `confidence` over the n samples, :math:`kl(\hat r \| r) \le (KL + \ln(2\sqrt n / \delta)) / n`
    (Maurer 2004) for the risk r of a network whose parameters are drawn from the posterior, where delta = 1 -
    confidence. `bound` is the largest r for which this holds.

    Parameters
    ----------
    parameters, initial : Tensor or array (p,)
        Parameters theta, and theta_0, which must not depend on the data.
    curvature : Tensor or array (p,), Diagonal, or Spectrum
        Curvatures h_j: the diagonal of the Hessian (`hesspec.diagonal`). A spectrum of the Hessian gives the bound of
        the posterior that is aligned with the eigenvectors, with its eigenvalues as curvatures; `prior_variance` must
        then be a number.
    prior_variance : float, Tensor or array (p,)
        Variances s_j^2 of the prior, which must not depend on the data either.
    samples : int
        Number n of independent samples that the network was trained on.
    empirical_risk : float
        Mean error on these samples, in [0, 1], of networks drawn from the posterior (see `posterior_variance`), not
        that of theta itself.
    confidence : float
        Probability 1 - delta with which the bound holds.

    Returns
    -------
    FlatnessBound

    Raises
    ------
    ValueError
        If a number is out of range, or shapes differ.

    Notes
    -----
    The form of the bound is ours; it follows from Maurer's inequality. It does not change if theta, theta_0 and
    s are scaled by c, and h by 1/c^2, entry by entry, as by a change of units of the weights. A variance chosen on the
    data (the best of several, for example) needs a union bound: divide delta by their number. Any h_j gives a valid
    bound, as they only choose the posterior: estimates with errors, too.

    Examples
    --------
    >>> import hesspec
    >>> found = hesspec.noise.flatness_bound(
    ...     [1.0, 0.5, -0.2, 0.1], [0.0] * 4, [100.0, 4.0, 0.5, 0.0],
    ...     prior_variance=0.25, samples=1000, empirical_risk=0.02,
    ... )
    >>> round(found.effective_curvature, 6), round(found.distance, 6), round(found.kl, 6), round(found.bound, 6)
    (1.609438, 2.6, 3.729438, 0.047957)
    """
    check_counts(samples=samples)
    if not 0 <= empirical_risk <= 1:
        raise ValueError(f"empirical_risk is {empirical_risk!r}; it must be an error rate, from 0 to 1.")
    check_fractions(confidence=confidence)
    theta, start = _vector("parameters", parameters), _vector("initial", initial)
    if theta.shape != start.shape:
        raise ValueError(f"parameters and initial have {theta.size:,} and {start.size:,} entries; they must be alike.")
    curvatures, counts = _curvatures(curvature)
    variance = _variance(prior_variance, theta.size)
    if isinstance(curvature, Spectrum):
        if variance.ndim:
            raise ValueError(
                "With a spectrum, prior_variance must be one number, as its eigenvectors mix the parameters; for a "
                "variance of each parameter use hesspec.diagonal."
            )
        if curvature.dimension != theta.size:
            raise ValueError(f"The spectrum is of {curvature.dimension:,} parameters, and there are {theta.size:,}.")
    elif curvatures.shape != theta.shape:
        raise ValueError(f"curvature has {curvatures.size:,} entries, and there are {theta.size:,} parameters.")
    excess = np.maximum(curvatures * variance, 1.0)
    effective = 0.5 * float(counts @ np.log(excess))
    distance = 0.5 * float(((theta - start) ** 2 / variance).sum())
    kl = effective + distance - 0.5 * float(counts @ (1 - 1 / excess))
    complexity = (kl + math.log(2 * math.sqrt(samples) / (1 - confidence))) / samples
    return FlatnessBound(
        bound=_largest_risk(float(empirical_risk), complexity),
        kl=kl,
        effective_curvature=effective,
        distance=distance,
        sharp_directions=float(counts @ (curvatures * variance > 1)),
        empirical_risk=float(empirical_risk),
        confidence=float(confidence),
        samples=int(samples),
        dimension=theta.size,
    )


def posterior_variance(
    curvature: Tensor | npt.ArrayLike | Diagonal, *, prior_variance: float | Tensor | npt.ArrayLike
) -> Array:
    """Return the variances (p,) of the posterior of `flatness_bound`, 1 / max(h, 1/s^2), to draw networks from it.

    Parameters
    ----------
    curvature : Tensor or array (p,), or Diagonal
    prior_variance : float, Tensor or array (p,)

    Raises
    ------
    ValueError
        If a number is out of range, or shapes differ.
    """
    curvatures, _ = _curvatures(curvature)
    variance = _variance(prior_variance, curvatures.size)
    return np.asarray(variance / np.maximum(curvatures * variance, 1.0))


def _largest_risk(empirical: float, complexity: float) -> float:
    """Largest r in [empirical, 1] with kl(empirical || r) <= complexity."""

    def excess(r: float) -> float:
        first = empirical * math.log(empirical / r) if empirical else 0.0
        second = (1 - empirical) * math.log((1 - empirical) / (1 - r)) if empirical < 1 else 0.0
        return first + second - complexity

    highest = math.nextafter(1.0, 0.0)
    if empirical >= highest or excess(highest) <= 0:
        return 1.0
    return float(brentq(excess, max(empirical, math.ulp(0.0)), highest, xtol=1e-15, rtol=1e-14))


def _vector(name: str, given: Any) -> Array:
    values = real_array(name, given)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name} must be a vector (p,); it has the shape {values.shape}.")
    return values


def _curvatures(given: Any) -> tuple[Array, Array]:
    """Curvatures and the number of directions of each."""
    if isinstance(given, Spectrum):
        return given.nodes, given.weights * given.dimension
    values = _vector("curvature", given.values if isinstance(given, Diagonal) else given)
    return values, np.ones(values.size)


def _variance(given: Any, size: int) -> Array:
    values = real_array("prior_variance", given)
    if values.shape not in ((), (size,)):
        raise ValueError(f"prior_variance has the shape {values.shape}; it must be a number or have shape ({size},).")
    if not (values > 0).all():
        raise ValueError(f"prior_variance must be positive; its smallest entry is {values.min():g}.")
    return values
