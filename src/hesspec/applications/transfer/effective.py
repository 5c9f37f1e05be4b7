"""Effective data: the training from scratch that reaches the same value, by inversion of the curve from scratch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression
from scipy.special import stdtrit

from hesspec.spectra.power_law import check_confidence
from hesspec.spectra.record import Array
from hesspec.spectra.sampling import Estimate

__all__ = ["ScratchCurve", "effective_data", "scratch_curve"]

# A curve through two sizes is a line, whose shape nothing tests.
FEWEST_SIZES: Final = 3


@dataclass(frozen=True)
class ScratchCurve:
    """A monotone curve of a quantity against the size of the training set, for networks from scratch.

    Attributes
    ----------
    sizes, log_values : array (n,)
        Sizes, ascending, and means of the logarithms of the values over seeds, monotone.
    counts : int array (n,)
        Number of seeds at each size.
    squares, free : float, int
        Sum of squared deviations of the logarithms from their means, and its degrees of freedom.
    pooled : int array (n,)
        1 where the mean was pooled with others, as these were not monotone, within the noise.
    """

    sizes: Array
    log_values: Array
    counts: npt.NDArray[np.int64]
    squares: float
    free: int
    pooled: npt.NDArray[np.int64]

    @property
    def rising(self) -> bool:
        """Whether the quantity rises with the size."""
        return bool(self.log_values[-1] > self.log_values[0])

    def invert(self, values: npt.ArrayLike, confidence: float) -> Estimate:
        """Return the size at which the curve has the mean of these values; see `effective_data`."""
        given = np.atleast_1d(np.asarray(values, np.float64))
        given = given[~np.isnan(given)]
        if not given.size or not (np.isfinite(given) & (given > 0)).all():
            raise ValueError(
                "The values to invert must be positive numbers, as the curve is interpolated in logarithms, but they "
                f"are {', '.join(f'{each:.4g}' for each in given) or 'missing'}."
            )
        logs = np.log(given)
        sign = 1.0 if self.rising else -1.0
        heights, level = sign * self.log_values, sign * float(logs.mean())
        nearest = float(heights[np.argmin(np.abs(heights - level))])
        if abs(nearest - level) <= _rounding(heights):
            level = nearest
        if not heights[0] <= level <= heights[-1]:
            above = level > heights[-1]
            end, beyond, more = (
                (-1, "more than the largest", "more") if above else (0, "less than the smallest", "less")
            )
            size, value = self.sizes[end], math.exp(self.log_values[end])
            raise ValueError(
                f"The value {math.exp(float(logs.mean())):.4g} is reached with {beyond} size of the curve, where it is "
                f"{value:.4g} at {size:.6g}; it is not extrapolated. Train from scratch on {more} data."
            )
        found = self._place(heights, level)
        squares, free = self.squares + float(((logs - logs.mean()) ** 2).sum()), self.free + logs.size - 1
        if free < 1:
            return Estimate(found, 0.0, math.inf)
        half = float(stdtrit(free, (1 + confidence) / 2)) * math.sqrt(
            squares / free * (1 / int(self.counts.min()) + 1 / logs.size)
        )
        low, high = self._reach(heights, level - half, level + half)
        return Estimate(found, min(low, found), max(high, found))

    def _place(self, heights: Array, level: float) -> float:
        """Size at a level; the geometric mean of sizes with the same value."""
        same = np.flatnonzero(heights == level)
        if same.size:
            ends = self.sizes[same[[0, -1]]]
            return float(ends[0]) if same.size == 1 else float(np.sqrt(ends.prod()))
        return math.exp(float(_roots(np.log(self.sizes), heights, level)[0]))

    def _reach(self, heights: Array, lower: float, upper: float) -> tuple[float, float]:
        """Smallest and largest size at which one of two interpolants lies between the levels."""
        if heights[0] >= lower:
            low = 0.0
        else:
            linear = np.interp(lower, *_strict(heights, np.log(self.sizes)))
            low = math.exp(min(float(_roots(np.log(self.sizes), heights, lower)[0]), float(linear)))
        if heights[-1] <= upper:
            high = math.inf
        else:
            linear = np.interp(upper, *_strict(heights, np.log(self.sizes)))
            high = math.exp(max(float(_roots(np.log(self.sizes), heights, upper)[-1]), float(linear)))
        return low, high


def _rounding(heights: Array) -> float:
    """Difference of two means of logarithms that are equal up to rounding."""
    return float(8 * np.finfo(np.float64).eps * max(1.0, np.abs(heights).max()))


def _strict(heights: Array, places: Array) -> tuple[Array, Array]:
    """Make heights ascend strictly, for the inverse of a line: equal ones are apart by rounding only."""
    return heights + np.arange(heights.size) * np.spacing(np.abs(heights).max()), places


def _roots(places: Array, heights: Array, level: float) -> Array:
    """Places, ascending, at which the monotone cubic interpolant has a level strictly within its range."""
    found = np.asarray(PchipInterpolator(places, heights).solve(level, extrapolate=False))
    return np.sort(found[np.isfinite(found)])


def scratch_curve(sizes: npt.ArrayLike, values: npt.ArrayLike, *, confidence: float = 0.95) -> ScratchCurve:
    """Fit the monotone curve of values from scratch; see `effective_data` for arguments and errors."""
    check_confidence(confidence)
    abscissae, table = np.asarray(sizes, np.float64), np.asarray(values, np.float64)
    if table.ndim == 1:
        table = table[:, None]
    if abscissae.ndim != 1 or table.ndim != 2 or len(table) != abscissae.size:
        raise ValueError(
            f"sizes has shape {abscissae.shape} and values {np.shape(values)}; values must have one row for each size, "
            "and a column for each seed if there are several."
        )
    there = ~np.isnan(table)
    kept = there.any(axis=1)
    order = np.argsort(abscissae[kept], kind="stable")
    abscissae, table, there = abscissae[kept][order], table[kept][order], there[kept][order]
    if abscissae.size < FEWEST_SIZES or np.unique(abscissae).size < abscissae.size:
        raise ValueError(
            f"The curve from scratch has {np.unique(abscissae).size} different sizes with values in {abscissae.size} "
            f"rows; at least {FEWEST_SIZES} are needed, with one row for each (seeds in columns)."
        )
    for what, wrong in (("sizes", abscissae), ("values", table[there])):
        bad = wrong[~(np.isfinite(wrong) & (wrong > 0))]
        if bad.size:
            raise ValueError(
                f"{what} must be positive and finite, as the curve is interpolated in logarithms, but contain "
                f"{bad[0]:.6g}."
            )
    logs = np.log(np.where(there, table, 1.0))
    counts = there.sum(axis=1)
    means = logs.sum(axis=1) / counts
    squares = float((((logs - means[:, None]) ** 2) * there).sum())
    free = int(counts.sum() - abscissae.size)
    monotone = _monotone(np.log(abscissae), means, counts, (squares, free), confidence)
    pooled = (monotone != means).astype(np.int64)
    return ScratchCurve(abscissae, monotone, counts, squares, free, pooled)


def _monotone(
    places: Array, means: Array, counts: npt.NDArray[np.int64], noise: tuple[float, int], confidence: float
) -> Array:
    """Return the nearest monotone means; raise ValueError if they differ by more than the noise."""
    centred = places - places.mean()
    slope = float(centred @ means)
    found = np.asarray(isotonic_regression(means, weights=counts, increasing=slope > 0).x)
    squares, free = noise
    allowed = np.full_like(means, _rounding(means))
    if free:
        allowed += float(stdtrit(free, (1 + confidence) / 2)) * np.sqrt(squares / free / counts)
    if (np.abs(found - means) > allowed).any():
        worst = int(np.argmax(np.abs(found - means) - allowed))
        by = "more than seeds differ" if free else "and there is one seed only, so that noise is unknown"
        off = 100 * abs(math.expm1(found[worst] - means[worst]))
        raise ValueError(
            f"The curve from scratch is not monotone: its value {math.exp(means[worst]):.4g} at size "
            f"{math.exp(places[worst]):.6g} is out of order by {off:.2g}%, {by}. Such a curve has no inverse; use more "
            "seeds, longer trainings, or another quantity."
        )
    if found[0] == found[-1]:
        raise ValueError("The curve from scratch is flat: it has no inverse. Use another quantity, or other sizes.")
    return found


def effective_data(
    sizes: npt.ArrayLike, values: npt.ArrayLike, value: npt.ArrayLike, *, confidence: float = 0.95
) -> Estimate:
    """Return the size of the training set from which a network from scratch reaches a value: effective data D_E.

    This inverts the curve of networks from scratch, either of the loss, as in "Scaling Laws for Transfer" (arXiv
    2102.01293), or of any other monotone quantity, such as an outlier, the edge of the bulk, or a trace. The curve is
    interpolated by monotone cubics (PCHIP) between the logarithms of sizes and values. With D_F the data of
    fine-tuning, D_T = D_E - D_F is the data that pre-training is worth; it is negative where the network from scratch
    is better.

    Parameters
    ----------
    sizes : array_like (n,)
        Sizes of training sets, at least 3 different ones, in any order and any unit.
    values : array_like (n,) or (n, seeds)
        The quantity of networks from scratch at each size, positive; NaN where a seed is missing.
    value : float or array_like (seeds,)
        The quantity of fine-tuned networks; with several seeds, the mean of logarithms is inverted.
    confidence : float
        Level of the interval, in (0, 1).

    Returns
    -------
    Estimate
        D_E in the unit of `sizes`. Its interval (ours) inverts the value plus and minus Student's t times its standard
        error, for logarithms whose errors are normal with one variance at all sizes, and covers piecewise linear
        interpolation as well; it is wide where the curve is flat. An end that the curve does not reach is 0 or
        infinity, as are both ends if there is only one seed of everything.

    Raises
    ------
    ValueError
        If shapes do not match; a value is not positive; the value is outside the curve, which is not extrapolated;
        the curve is flat; or the curve deviates from a monotone one by more than its noise. Means that are
        out of order within the noise are pooled (isotonic regression).

    Examples
    --------
    >>> import hesspec
    >>> hesspec.effective_data([100, 200, 400, 800], [2.0, 1.5, 1.2, 1.0], 1.2).value
    400.0
    """
    return scratch_curve(sizes, values, confidence=confidence).invert(value, confidence)
