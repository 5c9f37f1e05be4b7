"""Power laws of a quantity against sample size, fitted by least squares in logarithms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from hesspec.backend.number_text import exponent_text
from hesspec.backend.shown import Shown

__all__ = ["PowerLaw", "check_confidence", "earned_power_law", "fit_power_law", "what_is_hidden"]

Array = npt.NDArray[np.float64]

# Two points always lie on a line; a third is needed to test it.
MIN_PAIRS = 3
# A law is shown if it goes through at least as many sizes, and its exponent is known to this half-width.
FEWEST_SIZES: Final = 5
WIDEST: Final = 1.0


@dataclass(frozen=True, repr=False)
class PowerLaw(Shown):
    """y = prefactor * x^exponent, fitted by least squares in logarithms.

    Parameters
    ----------
    exponent : float
        Fitted exponent.
    lower, upper : float
        Confidence interval of the exponent, valid if the errors of the logarithms are independent and normal with equal
        variance.
    prefactor : float
        Value of the law at x = 1, in units of y; infinity or 0 where that is outside the range of floating point.
    r_squared : float
        Share of the variance of log y that the law explains; 1 if all y are equal.
    points : int
        Number of pairs used.
    """

    exponent: float
    lower: float
    upper: float
    prefactor: float
    r_squared: float
    points: int

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "exponent": exponent_text(self.exponent, self.lower, self.upper),
            "prefactor": f"{self.prefactor:.4g}",
            "R squared": f"{self.r_squared:.4f}",
            "points": str(self.points),
        }


def fit_power_law(
    x: Sequence[float] | npt.ArrayLike, y: Sequence[float] | npt.ArrayLike, *, confidence: float = 0.95
) -> PowerLaw:
    """Fit y = prefactor * x^exponent by least squares in logarithms, such as outliers against samples per class.

    Parameters
    ----------
    x, y : array_like (n,)
        Data. Pairs with a value that is not finite or not positive are ignored.
    confidence : float
        Level of the interval, in (0, 1); it uses Student's t with n - 2 degrees of freedom.

    Returns
    -------
    PowerLaw

    Raises
    ------
    ValueError
        If x and y differ in length, fewer than 3 pairs can be used, all x are equal, or `confidence` is out of range.

    Examples
    --------
    >>> law = fit_power_law([10, 19, 37, 71, 136], [0.8, 0.41, 0.22, 0.11, 0.059])
    >>> round(law.exponent, 2), round(law.lower, 2), round(law.upper, 2)
    (-1.0, -1.03, -0.97)
    """
    check_confidence(confidence)
    abscissae, ordinates = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if abscissae.ndim != 1 or abscissae.shape != ordinates.shape:
        raise ValueError(
            f"x has shape {abscissae.shape} and y {ordinates.shape}; a power law is fitted to two one-dimensional "
            "arrays of equal length."
        )
    usable = np.isfinite(abscissae) & np.isfinite(ordinates) & (abscissae > 0) & (ordinates > 0)
    points = int(usable.sum())
    if points < MIN_PAIRS:
        raise ValueError(
            f"{points} of {usable.size} pairs (x, y) are finite and positive; a power law with an "
            f"interval needs at least {MIN_PAIRS}. Measure at more sizes."
        )
    log_x, log_y = np.log(abscissae[usable]), np.log(ordinates[usable])
    if not np.ptp(log_x) > 0:
        raise ValueError(
            f"All {points} usable x are {abscissae[usable][0]:.6g}; fitting an exponent requires different x."
        )
    # Relative to one of them, so that equal values give sums that are exactly zero.
    centred = log_x - log_x[0] - (log_x - log_x[0]).mean()
    heights = log_y - log_y[0] - (log_y - log_y[0]).mean()
    spread, total = float(centred @ centred), float(heights @ heights)
    exponent = float(centred @ heights) / spread
    rest = heights - exponent * centred
    residual = float(rest @ rest)
    half = float(stdtrit(points - 2, (1 + confidence) / 2)) * math.sqrt(residual / (points - 2) / spread)
    with np.errstate(over="ignore", under="ignore"):
        prefactor = float(np.exp(log_y.mean() - exponent * log_x.mean()))
    explained = 1 - residual / total if total > 0 else 1.0
    return PowerLaw(exponent, exponent - half, exponent + half, prefactor, max(explained, 0.0), points)


def earned_power_law(
    sizes: Sequence[float] | npt.ArrayLike, values: Sequence[float] | npt.ArrayLike, outliers: Sequence[int]
) -> PowerLaw | str:
    """Fit a power law in the sample size, unless the measurements do not support one.

    Parameters
    ----------
    sizes, values : array_like (n,)
        Sample sizes, and a quantity of the spectrum at each; see `fit_power_law`.
    outliers : sequence of int (n,)
        Number of outliers of each spectrum. If it changes, an eigenvalue of a given rank and the edge of the bulk are
        not the same quantity at all sizes.

    Returns
    -------
    PowerLaw or str
        The law; or why there is none: fewer than 5 sizes with a positive value, numbers of outliers that differ between
        these, or a 95% interval of the exponent that is wider than +-1.
    """
    abscissae, ordinates = np.asarray(sizes, np.float64), np.asarray(values, np.float64)
    usable = np.isfinite(ordinates) & (ordinates > 0)
    count = np.unique(abscissae[usable]).size
    if count < FEWEST_SIZES:
        return f"{count or 'no'} sample size{'' if count == 1 else 's'} where {FEWEST_SIZES} are necessary"
    numbers = np.asarray(outliers)[usable]
    if np.ptp(numbers):
        return f"the number of outliers changes, from {numbers.min()} to {numbers.max()}"
    law = fit_power_law(abscissae, ordinates)
    half = (law.upper - law.lower) / 2
    return f"the exponent is known to ±{half:.2g} only" if half > WIDEST else law


def what_is_hidden(reasons: Mapping[str, str]) -> str:
    """Sentence about quantities without a power law, by their reasons; empty if there are none.

    Examples
    --------
    >>> what_is_hidden({"upper edge": "3 sample sizes where 5 are necessary"})
    'No power law of upper edge (3 sample sizes where 5 are necessary).'
    """
    by_reason: dict[str, list[str]] = {}
    for what, reason in reasons.items():
        by_reason.setdefault(reason, []).append(what)
    parts = [f"{', '.join(names)} ({reason})" for reason, names in by_reason.items()]
    return f"No power law of {'; '.join(parts)}." if parts else ""


def check_confidence(confidence: float) -> None:
    """Raise ValueError unless this is a valid confidence level."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence!r}; it must be between 0 and 1, such as 0.95.")
