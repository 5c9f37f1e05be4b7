"""Calibration of predicted probabilities, and the temperature that improves it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logsumexp, softmax

from hesspec.applications.language.calibration_record import Calibration
from hesspec.backend.numbers import is_whole, real_array
from hesspec.measure.calibration import binned, wilson_interval
from hesspec.spectra.record import Array

__all__ = ["Temperature", "calibration", "fit_temperature"]

# Largest difference of a sum of class probabilities in half precision from 1.
SUM_OF_ONE = 1e-2
# Largest inverse temperature that is tried: logits that differ by 1e-12 still decide there.
LARGEST = 1e12


def calibration(
    probabilities: Any, outcomes: Any, *, bins: int = 10, equal_counts: bool = True, top: bool = True
) -> Calibration:
    r"""Compare predicted probabilities with what happened.

    Predictions are sorted by their probability into bins; with x_b and y_b the mean probability and the mean outcome of
    bin b, ECE is the mean of \|y_b - x_b\| and RMS the root of the mean of (y_b - x_b)^2, weighted by the numbers of
    predictions (which are equal, up to 1, in bins of equal counts).

    Parameters
    ----------
    probabilities : array or Tensor (N,) or (N, C)
        Predicted probabilities of an outcome, or of the C options of each question.
    outcomes : array or Tensor (N,)
        Outcomes of 0 or 1; or shares k/n, such as for n answers to a question, of which k were right. For probabilities
        (N, C), the index of the right option.
    bins : int
        Number of bins.
    equal_counts : bool
        Whether bins have equal counts, or else equal widths.
    top : bool
        For probabilities (N, C): whether only the option of the largest probability of each question is a prediction,
        or else all options are, which are not independent of each other.

    Returns
    -------
    Calibration
        ECE, RMS, Brier score, AUROC, and the bins with Wilson intervals of 95%.

    Raises
    ------
    ValueError
        If shapes do not match, a probability or an outcome is out of range, or there are fewer predictions than bins.
        If all outcomes are equal, `Calibration.auroc` raises it.

    Notes
    -----
    Definitions are those of Kadavath et al., "Language Models (Mostly) Know What They Know" (arXiv 2207.05221,
    appendix A), which uses ten bins of equal counts and, for ECE of multiple choice, the top prediction only. Shares
    k/n as outcomes, the treatment of equal probabilities (`hesspec.measure.calibration.binned`) and `chance_ece` are
    ours. A question to which n answers were drawn counts once, not n times, in intervals and errors.

    Examples
    --------
    >>> import hesspec
    >>> found = hesspec.language.calibration([0.9, 0.9, 0.1, 0.1], [1, 1, 0, 1], bins=2)
    >>> round(found.ece, 3), round(found.auroc, 3), round(found.brier, 3)
    (0.25, 0.833, 0.21)
    """
    given, happened = _numbers("probabilities", probabilities), _numbers("outcomes", outcomes)
    if given.ndim == 2 and given.shape[1] > 1:
        given, happened = _options(given, happened, top=top)
    if given.ndim != 1 or given.shape != happened.shape or not given.size:
        raise ValueError(
            f"probabilities have shape {given.shape} and outcomes {happened.shape}; they must be (N,) and (N,), or "
            "(N, C) and (N,) for the probabilities of C options."
        )
    _refuse_outside("probabilities", given, "For logits, pass torch.sigmoid(logits), or logits.softmax(1) of options.")
    _refuse_outside("outcomes", happened, "An outcome is 0 or 1, or a share k/n of n trials of which k succeeded.")
    if not is_whole(bins, 1) or bins > given.size:
        raise ValueError(
            f"bins is {bins!r}; it must be a positive integer, at most the number of predictions, {given.size:,}."
        )
    found = binned(given, happened, int(bins), equal_counts=equal_counts)
    low, high = wilson_interval(found.observed, found.counts)
    share = found.counts / given.size
    scores = (given - happened) ** 2 + happened * (1 - happened)
    mixed, ordered = _pairs(given, happened)
    return Calibration(
        ece=found.error,
        rms=math.sqrt(share @ (found.observed - found.predicted) ** 2),
        # The mean of |x| for a normal x of mean 0, which a mean of many outcomes is.
        chance_ece=math.sqrt(2 / math.pi) * float(share @ found.deviation),
        brier=float(scores.mean()),
        brier_error=float(scores.std(ddof=1)) / math.sqrt(given.size) if given.size > 1 else 0.0,
        variance=float((given * (1 - given)).mean()),
        mean_probability=float(given.mean()),
        mean_outcome=float(happened.mean()),
        mixed_pairs=mixed,
        ordered_pairs=ordered,
        samples=given.size,
        equal_counts=bool(equal_counts),
        predicted=found.predicted,
        observed=found.observed,
        low=low,
        high=high,
        counts=found.counts,
    )


class Temperature(NamedTuple):
    """Temperature T that minimises the cross-entropy of logits/T, from `fit_temperature`.

    Attributes
    ----------
    value : float
        T; probabilities of logits/T are less certain for T > 1.
    error : float
        Its standard error, for independent samples.
    loss, loss_before : float
        Cross-entropy at T and at 1, in nats.
    """

    value: float
    error: float
    loss: float
    loss_before: float


def fit_temperature(logits: Any, targets: Any) -> Temperature:
    """Fit the temperature by which logits are divided to held-out targets.

    Parameters
    ----------
    logits : array or Tensor (N,) or (N, C)
        Logits of one outcome, or of C classes.
    targets : array or Tensor
        For (N,): outcomes of 0 or 1, or shares between them. For (N, C): classes (N,), or their probabilities (N, C).

    Returns
    -------
    Temperature

    Raises
    ------
    ValueError
        If shapes or values are wrong; if every target has the largest logit, so that the loss has its infimum at T = 0;
        or if logits do not predict the targets, so that it has its infimum at an infinite T.

    Notes
    -----
    Temperature scaling is by Guo et al. (2017). The loss is convex in 1/T, and its derivative has a single zero. The
    standard error is that of an M-estimator, which is right also if no temperature calibrates the logits.

    Examples
    --------
    >>> import torch, hesspec
    >>> logits = torch.randn(4_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> outcomes = torch.bernoulli(torch.sigmoid(2 * logits), generator=torch.Generator().manual_seed(1))
    >>> found = hesspec.language.fit_temperature(5 * logits, outcomes)
    >>> abs(found.value - 2.5) < 3 * found.error
    True
    """
    values, slopes, curvatures = _in_beta(_numbers("logits", logits), _numbers("targets", targets))

    def slope(beta: float) -> float:
        return float(slopes(beta).mean())

    if slope(0.0) >= 0:
        raise ValueError(
            "The logits do not predict the targets: their cross-entropy is smallest at an infinite temperature. Check "
            "that logits and targets are in the same order."
        )
    high = 1.0
    while slope(high) <= 0:
        high *= 2
        if high > LARGEST:
            raise ValueError(
                "Every target has the largest logit, so that the cross-entropy falls as the temperature tends to 0; "
                "fit it to held-out data in which some predictions are wrong."
            )
    beta = float(brentq(slope, 0.0, high, xtol=1e-15 * high, rtol=1e-14))
    score, bend = slopes(beta), float(curvatures(beta).mean())
    error = math.sqrt(float((score**2).mean()) / score.size) / bend
    return Temperature(1 / beta, error / beta**2, float(values(beta).mean()), float(values(1.0).mean()))


Terms = Callable[[float], Array]


def _in_beta(logits: Array, targets: Array) -> tuple[Terms, Terms, Terms]:
    """Return cross-entropy, first and second derivative of each sample as functions of the inverse temperature."""
    if logits.ndim == 1 and targets.shape == logits.shape and logits.size:
        _refuse_outside("targets", targets, "A target of one logit is 0 or 1, or a share between them.")
        return (
            lambda beta: np.logaddexp(0, beta * logits) - targets * beta * logits,
            lambda beta: logits * (expit(beta * logits) - targets),
            lambda beta: logits**2 * expit(beta * logits) * expit(-beta * logits),
        )
    if logits.ndim != 2 or not logits.size or targets.shape not in (logits.shape[:1], logits.shape):
        raise ValueError(
            f"logits have shape {logits.shape} and targets {targets.shape}; they must be (N,) and (N,), or (N, C) and "
            "classes (N,) or probabilities (N, C)."
        )
    if targets.ndim == 1:
        chosen = logits[np.arange(len(logits)), _classes(targets, logits.shape[1])]
    else:
        _refuse_outside("targets", targets, "Targets of the logits' shape are probabilities.")
        chosen = (targets * logits).sum(axis=1)

    def mean(beta: float, power: int) -> Array:
        return np.asarray((softmax(beta * logits, axis=1) * logits**power).sum(axis=1))

    return (
        lambda beta: np.asarray(logsumexp(beta * logits, axis=1)) - beta * chosen,
        lambda beta: mean(beta, 1) - chosen,
        lambda beta: mean(beta, 2) - mean(beta, 1) ** 2,
    )


def _numbers(name: str, given: Any) -> Array:
    values = real_array(name, given)
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _refuse_outside(name: str, values: Array, advice: str) -> None:
    outside = np.argwhere((values < 0) | (values > 1))
    if outside.size:
        place = tuple(outside[0].tolist())
        index = ", ".join(map(str, place))
        raise ValueError(f"{name}[{index}] is {values[place]:g}; it must be between 0 and 1. {advice}")


def _classes(targets: Array, count: int) -> Any:
    wrong = np.flatnonzero((targets != np.floor(targets)) | (targets < 0) | (targets >= count))
    if wrong.size:
        raise ValueError(
            f"The target of question {wrong[0]} is {targets[wrong[0]]:g}; with {count} options it must be an index "
            f"from 0 to {count - 1}."
        )
    return targets.astype(np.intp)


def _options(given: Array, happened: Array, *, top: bool) -> tuple[Array, Array]:
    """Return the predictions of multiple choice and whether they were right."""
    if happened.shape != given.shape[:1]:
        raise ValueError(
            f"probabilities have shape {given.shape} and outcomes {happened.shape}; with a row of options for each "
            "question, outcomes are the indices (N,) of the right options."
        )
    sums = given.sum(axis=1)
    wrong = np.flatnonzero(np.abs(sums - 1) > SUM_OF_ONE)
    if wrong.size:
        raise ValueError(
            f"The probabilities of the options of question {wrong[0]} sum to {sums[wrong[0]]:.4g}, not 1; pass "
            "logits.softmax(1)."
        )
    right = _classes(happened, given.shape[1])
    if top:
        chosen = given.argmax(axis=1)
        return given[np.arange(len(given)), chosen], (chosen == right).astype(np.float64)
    return given.reshape(-1), (np.arange(given.shape[1]) == right[:, None]).astype(np.float64).reshape(-1)


def _pairs(given: Array, happened: Array) -> tuple[float, float]:
    """Return the weight of pairs of an outcome of 1 and one of 0, and of those in the order of the probabilities."""
    _, which = np.unique(given, return_inverse=True)
    ones, zeros = np.bincount(which, happened), np.bincount(which, 1 - happened)
    below = np.cumsum(zeros) - zeros
    mixed = float(ones.sum() * zeros.sum())
    return mixed, min(float(ones @ (below + zeros / 2)), mixed)
