r"""Fits of the power law of transferred data.

With D_E = D_F + D_T, the logit of the share D_T / D_E is ln(D_T / D_F), so that D_T = k D_F^alpha N^beta is linear:

.. math:: \ln D_T = \ln k + \alpha \ln D_F + \beta \ln N.

"joint" is one regression. "fits" has the two steps of Hernandez et al., "Scaling Laws for Transfer" (arXiv 2102.01293),
appendix C: lines in ln N, of one slope beta, for each D_F; then a line through their intercepts against ln D_F, with
equal weight for each D_F. The exponents of both agree if all D_F have the same N; the intervals (ours) of "fits" allow
for errors that all points of one D_F share.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from hesspec.applications.transfer.law_record import TransferLaw
from hesspec.backend.suggest import unknown
from hesspec.spectra.power_law import WIDEST, check_confidence
from hesspec.spectra.record import Array

__all__ = ["METHODS", "earned_transfer_law", "fit_transfer_law"]

METHODS: Final = ("joint", "fits")
# Three coefficients, and a residual from which their intervals follow.
FEWEST_POINTS: Final = 4
# A law is shown if there are as many different D_F, and N: two of them always lie on a line.
FEWEST_LEVELS: Final = 3
# 1 - r^2 of ln D_F and ln N, below which rounding determines the exponents.
PARALLEL: Final = 1e-10


class _Fit(NamedTuple):
    """Coefficients ln k, alpha, beta, and half-widths of their intervals."""

    coefficients: Array
    halves: Array


def fit_transfer_law(
    sizes: npt.ArrayLike,
    parameters: npt.ArrayLike,
    transferred: npt.ArrayLike,
    *,
    method: str = "joint",
    confidence: float = 0.95,
    unit: str = "samples",
) -> TransferLaw:
    """Fit D_T = k D_F^alpha N^beta by least squares in logarithms.

    Points with D_T <= 0, where the network from scratch is better, and with D_T = NaN are not used; they are counted in
    `left_out`. Leaving them out biases the law upwards where D_T is near zero.

    Parameters
    ----------
    sizes : array_like (n,)
        D_F, the data of fine-tuning, in any unit.
    parameters : array_like (n,)
        N, numbers of parameters; in the paper without embeddings.
    transferred : array_like (n,)
        D_T = D_E - D_F in the unit of `sizes`, with D_E from `hesspec.effective_data`.
    method : str
        "joint": one regression; every point has equal weight. "fits": a line in ln N for each D_F, with a common slope,
        then a line through these; every D_F has equal weight.
    confidence : float
        Level of the intervals, in (0, 1). They use Student's t and are valid if errors of ln D_T are independent
        and normal with equal variance; those of "fits" also if there are errors that all points of one D_F share.
    unit : str
        Name of the unit of `sizes`, on which k depends.

    Returns
    -------
    TransferLaw

    Raises
    ------
    ValueError
        If the lengths differ, a size or a number of parameters is not positive, fewer than 4 points have D_T > 0, these
        have only one D_F or one N, or D_F and N are collinear in logarithms; for "fits", also if fewer than three
        D_F have several N.

    Examples
    --------
    >>> import numpy as np, hesspec
    >>> sizes, parameters = np.repeat([1e5, 1e6, 1e7], 4), np.tile([1e6, 1e7, 1e8, 1e9], 3)
    >>> exact = hesspec.TransferLaw.of(1.9e4, 0.18, 0.38).transferred(sizes, parameters)
    >>> law = hesspec.fit_transfer_law(sizes, parameters, exact)
    >>> round(law.alpha.value, 6), round(law.beta.value, 6)
    (0.18, 0.38)
    """
    check_confidence(confidence)
    if method not in METHODS:
        raise ValueError(unknown("method", method, METHODS))
    given = [np.asarray(each, np.float64) for each in (sizes, parameters, transferred)]
    if given[0].ndim != 1 or len({each.shape for each in given}) > 1:
        raise ValueError(
            f"sizes, parameters and transferred have shapes {', '.join(str(each.shape) for each in given)}; a transfer "
            "law is fitted to three one-dimensional arrays of equal length."
        )
    for name, values in zip(("sizes", "parameters"), given, strict=False):
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{name} must be positive and finite, but contains {_first_bad(values):.6g}.")
    used = np.isfinite(given[2]) & (given[2] > 0)
    if used.sum() < FEWEST_POINTS:
        raise ValueError(
            f"D_T is positive at {used.sum()} of {used.size} points; a transfer law with intervals needs at least "
            f"{FEWEST_POINTS}. Fine-tune on less data, or with larger networks, where pre-training is worth more."
        )
    log_size, log_count, log_found = (np.log(each[used]) for each in given)
    _refuse_degenerate(log_size, log_count)
    fit = (_joint if method == "joint" else _fits)(log_size, log_count, log_found, confidence)
    law = fit.coefficients[0] + fit.coefficients[1] * log_size + fit.coefficients[2] * log_count
    total = float(((log_found - log_found.mean()) ** 2).sum())
    residual = float(((log_found - law) ** 2).sum())
    return TransferLaw(
        coefficients=fit.coefficients,
        lower=fit.coefficients - fit.halves,
        upper=fit.coefficients + fit.halves,
        method=method,
        confidence=confidence,
        r_squared=max(1 - residual / total, 0.0) if total > 0 else 1.0,
        unit=unit,
        point_sizes=given[0],
        point_parameters=given[1],
        point_transferred=given[2],
    )


def earned_transfer_law(
    sizes: npt.ArrayLike, parameters: npt.ArrayLike, transferred: npt.ArrayLike, *, unit: str = "samples"
) -> TransferLaw | str:
    """Fit the law jointly, unless the measurements do not support one.

    Returns
    -------
    TransferLaw or str
        The law; or why there is none: fewer than 3 different D_F or N with D_T > 0, points that `fit_transfer_law`
        refuses, or a 95% interval of an exponent that is wider than +-1.
    """
    size, count, found = (np.asarray(each, np.float64) for each in (sizes, parameters, transferred))
    used = np.isfinite(found) & (found > 0)
    for what, levels in (("sizes of the data", size), ("sizes of the network", count)):
        number = np.unique(levels[used]).size
        if number < FEWEST_LEVELS:
            return f"{number or 'no'} {what} with positive transfer where {FEWEST_LEVELS} are necessary"
    try:
        law = fit_transfer_law(size, count, found, unit=unit)
    except ValueError as error:
        return str(error).rstrip(".")
    for name, exponent in (("alpha", law.alpha), ("beta", law.beta)):
        half = (exponent.upper - exponent.lower) / 2
        if half > WIDEST:
            return f"the exponent {name} is known to ±{half:.2g} only"
    return law


def _first_bad(values: Array) -> float:
    return float(values[~(np.isfinite(values) & (values > 0))][0])


def _refuse_degenerate(log_size: Array, log_count: Array) -> None:
    """Raise ValueError if the exponents cannot be told apart."""
    for what, values, hint in (
        ("sizes D_F", log_size, "Fine-tune on several."),
        ("numbers of parameters N", log_count, "Use several, or fit_power_law(D_F, D_T) for alpha alone."),
    ):
        if not np.ptp(values) > 0:
            raise ValueError(f"All {what} with D_T > 0 are {math.exp(values[0]):.6g}; fitting requires several. {hint}")
    x, n = log_size - log_size.mean(), log_count - log_count.mean()
    if 1 - (x @ n) ** 2 / ((x @ x) * (n @ n)) < PARALLEL:
        raise ValueError(
            "D_F and N with D_T > 0 rise together in proportion of their logarithms, so that alpha and beta cannot be "
            "told apart. Fine-tune several sizes of the network on the same data."
        )


def _joint(log_size: Array, log_count: Array, log_found: Array, confidence: float) -> _Fit:
    means = np.array([log_size.mean(), log_count.mean()])
    design = np.stack([log_size, log_count], axis=1) - means
    heights = log_found - log_found.mean()
    slopes = np.linalg.lstsq(design, heights)[0]
    rest = heights - design @ slopes
    free = log_found.size - 3
    variance = float(rest @ rest) / free
    covariance = variance * np.linalg.inv(design.T @ design)
    of_intercept = variance / log_found.size + float(means @ covariance @ means)
    errors = np.sqrt([of_intercept, *np.diag(covariance)])
    coefficients = np.array([log_found.mean() - means @ slopes, *slopes])
    return _Fit(coefficients, stdtrit(free, (1 + confidence) / 2) * errors)


def _fits(log_size: Array, log_count: Array, log_found: Array, confidence: float) -> _Fit:
    levels, group = np.unique(log_size, return_inverse=True)
    several = sum(np.ptp(log_count[group == j]) > 0 for j in range(levels.size))
    if several < FEWEST_LEVELS:
        raise ValueError(
            f"{several} of the {levels.size} sizes D_F have several N with D_T > 0; method='fits' needs at least "
            f"{FEWEST_LEVELS}. method='joint' takes the points as they are."
        )
    numbers = np.bincount(group)
    centres, heights = (np.bincount(group, each) / numbers for each in (log_count, log_found))
    inner, outer = log_count - centres[group], log_found - heights[group]
    spread = float(inner @ inner)
    beta = float(inner @ outer) / spread
    rest = outer - beta * inner
    free = log_found.size - levels.size - 1
    of_beta = math.sqrt(float(rest @ rest) / free / spread)
    # The line through the intercepts, as weights of these: alpha, and ln k at D_F = 1.
    x = levels - levels.mean()
    of_alpha = x / float(x @ x)
    of_log_k = 1 / levels.size - levels.mean() * of_alpha
    intercepts = heights - beta * centres
    alpha, log_k = float(of_alpha @ intercepts), float(of_log_k @ intercepts)
    scatter = intercepts - log_k - alpha * levels
    deviation = math.sqrt(float(scatter @ scatter) / (levels.size - 2))
    quantile = (1 + confidence) / 2
    half_beta = float(stdtrit(free, quantile)) * of_beta
    # An error of beta moves each intercept by the centre of its D_F, independently of the errors of the means.
    halves = [
        math.hypot(
            float(stdtrit(levels.size - 2, quantile)) * deviation * float(np.linalg.norm(weights)),
            half_beta * float(weights @ centres),
        )
        for weights in (of_log_k, of_alpha)
    ]
    return _Fit(np.array([log_k, alpha, beta]), np.array([*halves, half_beta]))
