"""Result of simulated first exit times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import scipy.stats

from hesspec.applications.noise.exit_laws import mean_exit_time
from hesspec.backend.shown import TextTable
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Integers, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ExitTimes"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ExitTimes(Record):
    """First exit times of simulated runs from a ball around a minimum.

    Times are numbers of steps multiplied by the learning rate.

    Attributes
    ----------
    steps : int array (runs,)
        Number of steps until the run was outside of the ball for the first time; `max_steps` for runs that stayed.
    exited : int array (runs,)
        1 for runs that left the ball, 0 for runs that stayed in it up to the last step, whose exit time is censored.
    max_steps : int
        Number of steps after which runs were stopped.
    dimension : int
        Dimension of the space.
    radius, learning_rate : float
        Radius of the ball; step size.
    alpha, scale : float
        Tail index and scale of the stable noise; the scale is 0 if there was none.
    gaussian : float
        Standard deviation of the additional Gaussian noise per square root of time; 0 if there was none.
    """

    KIND: ClassVar[str] = "first exit times"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_exit_times_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = {"steps": ("run",), "exited": ("run",)}
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("scale", "gaussian")

    steps: Integers
    exited: Integers
    max_steps: int
    dimension: int
    radius: float
    learning_rate: float
    alpha: float
    scale: float
    gaussian: float

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        refuse_unless(self.steps.size > 0 and self.dimension >= 1, "It has no runs, or no dimensions.")
        for name in ("radius", "learning_rate"):
            refuse_unless(getattr(self, name) > 0, f"Its {name!r} is {getattr(self, name)}, but should be positive.")
        refuse_unless(0 < self.alpha <= 2, f"Its alpha is {self.alpha}, outside of (0, 2].")
        refuse_unless(np.isin(self.exited, (0, 1)).all(), "Its exited are not all 0 or 1.")
        inside = (self.steps >= 1).all() and (self.steps <= self.max_steps).all()
        refuse_unless(inside, f"Its steps are not all from 1 to {self.max_steps}.")
        refuse_unless((self.steps[self.exited == 0] == self.max_steps).all(), "A run was stopped before the last step.")

    @property
    def times(self) -> Array:
        """Exit times (runs,); for censored runs the time at which they were stopped."""
        return np.asarray(self.steps * self.learning_rate)

    @property
    def horizon(self) -> float:
        """Time at which runs were stopped."""
        return self.max_steps * self.learning_rate

    @property
    def exits(self) -> int:
        """Number of runs that left the ball."""
        return int(self.exited.sum())

    @property
    def censored(self) -> int:
        """Number of runs that did not."""
        return self.steps.size - self.exits

    @property
    def mean(self) -> float:
        """Mean exit time.

        Without censored runs it is the sample mean. With them it is the time of all runs divided by the number of
        exits, the maximum-likelihood estimate for exponentially distributed times; inf if no run left the ball.
        """
        return float(self.times.sum()) / self.exits if self.exits else math.inf

    @property
    def standard_error(self) -> float:
        """Standard error of the mean: of the sample, or, with censored runs, mean/sqrt(exits); nan if it is unknown."""
        if self.exits == 0 or self.steps.size == 1:
            return math.nan
        if self.censored:
            return self.mean / math.sqrt(self.exits)
        return float(self.times.std(ddof=1)) / math.sqrt(self.steps.size)

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the mean.

        Without censored runs it is mean +- 1.96 standard errors. With them it follows from the number of exits within
        the time of all runs, which is Poisson distributed if times are exponential; its upper end is inf if no run left
        the ball.
        """
        if not self.censored:
            half = 1.96 * self.standard_error
            return self.mean - half, self.mean + half
        total = 2 * float(self.times.sum())
        low = total / scipy.stats.chi2.ppf(0.975, 2 * self.exits + 2)
        return float(low), float(total / scipy.stats.chi2.ppf(0.025, 2 * self.exits)) if self.exits else math.inf

    @property
    def variation(self) -> float:
        """Standard deviation over mean: 1 for exponential times. nan with censored runs, which hide the tail."""
        if self.censored or self.steps.size == 1:
            return math.nan
        return float(self.times.std(ddof=1)) / self.mean

    @property
    def expected(self) -> float:
        """Mean exit time in the limit of small noise, `mean_exit_time`; nan with Gaussian noise or alpha = 2.

        Gaussian exit times depend on the curvature, which is not part of the result.
        """
        if self.alpha == 2 or self.scale == 0 or self.gaussian > 0:
            return math.nan
        return mean_exit_time(self.alpha, self.scale, self.radius, self.dimension)

    def quantile(self, share: float) -> float:
        """Return the time by which a share of the runs, in (0, 1), has left the ball; inf if fewer have."""
        ordered = np.sort(np.where(self.exited == 1, self.times, np.inf))
        return float(ordered[min(math.ceil(share * ordered.size), ordered.size) - 1])

    def survival(self) -> tuple[Array, Array]:
        """Return distinct exit times, ascending, and the share of runs that are still inside after each.

        All runs are followed for the same time, so this is the Kaplan-Meier estimate.
        """
        times, counts = np.unique(self.times[self.exited == 1], return_counts=True)
        return times, np.asarray(1 - np.cumsum(counts) / self.steps.size)

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        noise = [f"alpha = {self.alpha:g}, scale {self.scale:.4g}"] if self.scale else []
        noise += [f"Gaussian {self.gaussian:.4g}"] if self.gaussian else []
        low, high = self.interval
        how = ", if times are exponential" if self.censored else ""
        shown = {
            "ball": f"radius {self.radius:.4g} in {self.dimension:,} dimension{'s' * (self.dimension > 1)}",
            "noise": " and ".join(noise),
            "learning rate": f"{self.learning_rate:.4g}",
            "runs": f"{self.steps.size:,}, of which {self.censored:,} stayed for {self.max_steps:,} steps",
            "mean exit time": f"{self.mean:.4g} [{low:.4g}, {high:.4g}] (95%{how})",
        }
        if not math.isnan(self.expected):
            shown["limit of small noise"] = f"{self.expected:.4g}"
        if not math.isnan(self.variation):
            shown["standard deviation / mean"] = f"{self.variation:.3g}"
        return shown

    def tables(self) -> list[TextTable]:
        """Table of quantiles."""
        rows = []
        for share in (0.1, 0.25, 0.5, 0.75, 0.9):
            time = self.quantile(share)
            rows.append((f"{share:.0%}", f"{time:.4g}" if math.isfinite(time) else f"more than {self.horizon:.4g}"))
        return [TextTable("Exit times", ("share of runs", "time"), rows)]

    def plot(self, ax: Axes | None = None) -> Figure:
        """Plot the share of runs that are still inside against time, and the exponential law of the same mean.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Panel to draw into; by default a new figure.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.applications.noise.exit_figure import plot_survival  # noqa: PLC0415 - asked only here

        return plot_survival(self, ax)
