"""Results of stability measurements: sharpness dimension, Lyapunov exponents, sharpness during training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Integers, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LyapunovExponents", "SharpnessDimension", "StabilityRun"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SharpnessDimension(Record):
    """Sharpness dimension of gradient descent, with its bracket and the exponents that it is computed from.

    Exponents are growth rates of perturbations per step, dimensionless: ln|1 - eta lambda| without momentum.

    Attributes
    ----------
    value, low, high : float
        The dimension and its bracket, from the resolved eigenvalues and the 95% bracket of the CDF of each measured
        spectrum; all three are equal for exact eigenvalues.
    dimension : int
        Dimension of the space that steps act on: p, or 2p with momentum.
    spectra : int
        Number of spectra that were combined.
    sharp_directions, negative_directions : float
        Number of directions that expand because their eigenvalue exceeds the threshold (2/eta without momentum and
        weight decay), and because it is negative (with weight decay, below about minus the decay); means over spectra.
        These are estimates: if many eigenvalues are near zero, their signs are unknown (see `Spectrum.num_negative`).
    sharp_expansion, negative_expansion : float
        Sums of their exponents, per step; means over spectra.
    learning_rate, momentum, weight_decay : float
        Settings of gradient descent.
    decoupled : bool
        Whether weight decay is decoupled from the gradient.
    combine : str
        How spectra were combined: "ordered" or "pooled".
    threshold : float
        Eigenvalue beyond which directions expand.
    exponents, counts : array (n,)
        Exponents in decreasing order, -inf for directions that vanish in one step, and the number of directions of
        each; counts sum to `dimension`.
    low_exponents, low_counts, high_exponents, high_counts : array
        The same for the exponents that give `low` and `high`.
    """

    KIND: ClassVar[str] = "sharpness dimension"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_sharpness_dimension_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        "exponents": ("exponent",),
        "counts": ("exponent",),
        "low_exponents": ("low_exponent",),
        "low_counts": ("low_exponent",),
        "high_exponents": ("high_exponent",),
        "high_counts": ("high_exponent",),
    }
    FINITE: ClassVar[tuple[str, ...]] = ("counts", "low_counts", "high_counts")
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (
        *FINITE,
        "low",
        "sharp_directions",
        "negative_directions",
        "sharp_expansion",
        "negative_expansion",
        "momentum",
        "weight_decay",
    )

    value: float
    low: float
    high: float
    dimension: int
    spectra: int
    sharp_directions: float
    negative_directions: float
    sharp_expansion: float
    negative_expansion: float
    learning_rate: float
    momentum: float
    weight_decay: float
    decoupled: bool
    combine: str
    threshold: float
    exponents: Array
    counts: Array
    low_exponents: Array
    low_counts: Array
    high_exponents: Array
    high_counts: Array

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        refuse_unless(self.dimension >= 1 and self.spectra >= 1, "It has no directions or no spectra.")
        refuse_unless(self.low <= self.value <= self.high, f"Its value {self.value} is outside of its bracket.")
        refuse_unless(self.learning_rate > 0, f"Its learning rate is {self.learning_rate}.")
        for name in ("exponents", "low_exponents", "high_exponents"):
            levels = getattr(self, name)
            descending = bool((levels[:-1] >= levels[1:]).all()) and levels.size > 0
            refuse_unless(descending and levels[0] < np.inf, f"Its {name} are not finite numbers in decreasing order.")

    @property
    def largest(self) -> float:
        """The largest exponent; perturbations grow if it is positive."""
        return float(self.exponents[0])

    @property
    def largest_bracket(self) -> tuple[float, float]:
        """Bracket of `largest`, like that of the dimension."""
        low, high = float(self.low_exponents[0]), float(self.high_exponents[0])
        return min(low, self.largest), max(high, self.largest)

    @property
    def transition_index(self) -> int:
        """j, the number of whole directions in the dimension."""
        return math.floor(self.value)

    @property
    def fraction(self) -> float:
        """The dimension as a share of that of the whole space."""
        return self.value / self.dimension

    @property
    def sharp_share(self) -> float:
        """Share of the expansion due to eigenvalues beyond the threshold; nan if nothing expands."""
        total = self.sharp_expansion + self.negative_expansion
        return self.sharp_expansion / total if total > 0 else math.nan

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        low, high = self.largest_bracket
        return {
            "sharpness dimension": f"{self.value:.6g} [{self.low:.6g}, {self.high:.6g}] of {self.dimension:,}",
            "largest exponent": f"{self.largest:.4g} [{low:.4g}, {high:.4g}] per step",
            f"eigenvalues > {self.threshold:.4g}": f"{self.sharp_directions:.4g}, expansion {self.sharp_expansion:.4g}",
            "negative eigenvalues": f"{self.negative_directions:.4g}, expansion {self.negative_expansion:.4g}",
            "spectra": f"{self.spectra}, {self.combine}",
        }

    def plot(self) -> Figure:
        """Plot the exponents and their cumulative sum, which determines the dimension.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.applications.stability.figure import plot_dimension  # noqa: PLC0415 - asked only here

        return plot_dimension(self)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LyapunovExponents(Record):
    """Largest Lyapunov exponents along a run.

    Attributes
    ----------
    exponents : array (k,)
        Mean growth rates per step, dimensionless, in the order of the directions; decreasing, except for directions
        that have not settled.
    growth : array (steps, k)
        Growth ln|R_ii| of each step, whose means are the exponents.
    dimension : int
        Dimension of the space that the steps act on.
    discarded : int
        Number of discarded steps before those in `growth`.
    products : int
        Number of products with the maps of all steps.
    """

    KIND: ClassVar[str] = "Lyapunov exponents"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_lyapunov_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        "exponents": ("direction",),
        "growth": ("step", "direction"),
    }

    exponents: Array
    growth: Array
    dimension: int
    discarded: int
    products: int

    def _coordinates(self) -> dict[str, Any]:
        return {"step": self.discarded + np.arange(len(self.growth))}

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        for name in ("exponents", "growth"):
            values = getattr(self, name)
            refuse_unless(
                values.size > 0 and (values < np.inf).all(), f"Its {name} are empty, or contain infinity or NaN."
            )
        count = self.exponents.size
        refuse_unless(count <= self.dimension, f"It has {count} exponents, but a space of dimension {self.dimension}.")

    @property
    def kaplan_yorke_dimension(self) -> float:
        """Kaplan-Yorke dimension j + (sum of the j largest) / |the next|, with the largest j whose sum is nonnegative.

        Raises
        ------
        ValueError
            If the sum of all exponents is nonnegative and the space has more of them: the dimension is then at least
            their number.
        """
        descending = np.sort(self.exponents)[::-1]
        sums = np.cumsum(descending)
        below = np.flatnonzero(sums < 0)
        if below.size:
            j = int(below[0])
            return float(j + (sums[j - 1] / abs(descending[j]) if j else 0.0))
        if descending.size == self.dimension:
            return float(self.dimension)
        raise ValueError(
            f"The sum of the {descending.size} exponents is {sums[-1]:.4g}, not negative, so the dimension is at "
            f"least {descending.size}; increase count= to determine it."
        )

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        shown = ", ".join(f"{value:.4g}" for value in self.exponents[:5])
        return {
            "exponents": shown + (", ..." if self.exponents.size > 5 else "") + f" ({self.exponents.size})",
            "steps": f"{len(self.growth):,} (discarded before: {self.discarded:,})",
            "products": f"{self.products:,}",
        }

    def plot(self) -> Figure:
        """Plot the exponents as running means over the steps.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.applications.stability.figure import plot_lyapunov  # noqa: PLC0415 - asked only here

        return plot_lyapunov(self)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class StabilityRun(Record):
    """Sharpness and its threshold during training, as measured by `monitor`.

    Attributes
    ----------
    steps : int array (n,)
        Numbers of the measured steps.
    risk : array (n,)
        Loss on all data at these steps.
    sharpness, sharpness_bounds : array (n,)
        Largest Ritz value of the Hessian, a lower bound on its largest eigenvalue, and a bound on its distance to the
        nearest eigenvalue.
    preconditioned, preconditioned_bounds : array (n,)
        The same for the preconditioned Hessian; nan for optimisers without a preconditioner.
    thresholds : array (n,)
        Stability threshold of the sharpness, or of the preconditioned sharpness if there is a preconditioner; beyond it
        the linearised step is unstable.
    learning_rates : array (n,)
        Learning rates of the optimiser.
    products : int array (n,)
        Number of products with the Hessian in each measurement.
    optimizer : str
        Class name of the optimiser.
    """

    KIND: ClassVar[str] = "stability of a training"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_stability_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = dict.fromkeys(
        (
            "steps",
            "risk",
            "sharpness",
            "sharpness_bounds",
            "preconditioned",
            "preconditioned_bounds",
            "thresholds",
            "learning_rates",
            "products",
        ),
        ("measurement",),
    )
    FINITE: ClassVar[tuple[str, ...]] = ("risk", "sharpness", "sharpness_bounds", "thresholds", "learning_rates")
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("steps", "sharpness_bounds", "learning_rates", "products")

    steps: Integers
    risk: Array
    sharpness: Array
    sharpness_bounds: Array
    preconditioned: Array
    preconditioned_bounds: Array
    thresholds: Array
    learning_rates: Array
    products: Integers
    optimizer: str

    def _coordinates(self) -> dict[str, Any]:
        return {"measurement": self.steps}

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        known = np.isfinite(self.preconditioned)
        refuse_unless(
            bool((known == np.isfinite(self.preconditioned_bounds)).all()) and (known.all() or not known.any()),
            "Its preconditioned sharpness is missing at some steps.",
        )

    @property
    def is_preconditioned(self) -> bool:
        """Whether the optimiser has a preconditioner."""
        return bool(np.isfinite(self.preconditioned).any())

    @property
    def ratios(self) -> Array:
        """Sharpness over threshold, (n,), preconditioned if the optimiser is; 1 at the edge of stability."""
        return np.asarray((self.preconditioned if self.is_preconditioned else self.sharpness) / self.thresholds)

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        if not self.steps.size:
            return {"measurements": "0"}
        return {
            "optimizer": self.optimizer,
            "measurements": f"{self.steps.size:,}, steps {self.steps[0]:,} to {self.steps[-1]:,}",
            "products": f"{self.products.sum():,} (mean {self.products.mean():.3g} a measurement)",
            "last sharpness": f"{self.sharpness[-1]:.6g} (an eigenvalue within {self.sharpness_bounds[-1]:.2g})",
            "last ratio to the threshold": f"{self.ratios[-1]:.4g} (threshold {self.thresholds[-1]:.6g})",
        }

    def plot(self) -> Figure:
        """Plot sharpness and threshold against the step.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ValueError
            If there are no measurements.
        """
        from hesspec.applications.stability.figure import plot_run  # noqa: PLC0415 - asked only here

        return plot_run(self)
