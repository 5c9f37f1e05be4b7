"""What was found of the stability of a training, to keep and to plot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SharpnessDimension"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SharpnessDimension:
    """Sharpness dimension of gradient descent, with its bracket and what it consists of.

    Exponents are growth rates of perturbations per step, dimensionless: ln|1 - eta lambda| without momentum.

    Attributes
    ----------
    value, low, high : float
        The dimension, and the bracket of it: from the resolved eigenvalues and the 95% bracket of the CDF of each
        measured spectrum; all three are equal for exact eigenvalues.
    dimension : int
        Of the space that steps act on: p, or 2p with momentum.
    spectra : int
        How many spectra were combined.
    largest, largest_low, largest_high : float
        The largest exponent, with its bracket; `largest` > 0 says that perturbations grow.
    sharp_directions, negative_directions : float
        Number of directions that expand as their eigenvalue is beyond the threshold (2/eta without momentum and weight
        decay), and as it is below zero (with weight decay, below about minus that); mean over spectra. An estimate:
        where many eigenvalues are near zero their sign is not known (see `Spectrum.num_negative`).
    sharp_expansion, negative_expansion : float
        Sums of their exponents, per step; mean over spectra.
    learning_rate, momentum, weight_decay : float
    decoupled : bool
        Whether weight decay shrinks the weights.
    combine : str
        "ordered" or "pooled".
    threshold : float
        Eigenvalue beyond which directions expand.
    exponents, counts : array (n,)
        Exponents in decreasing order, and the number of directions of each; counts sum to `dimension`.
    low_exponents, low_counts, high_exponents, high_counts : array
        The exponents from which `low` and `high` come.
    """

    value: float
    low: float
    high: float
    dimension: int
    spectra: int
    largest: float
    largest_low: float
    largest_high: float
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
        """Share of the expansion that comes from eigenvalues beyond the threshold; nan where nothing expands."""
        total = self.sharp_expansion + self.negative_expansion
        return self.sharp_expansion / total if total > 0 else math.nan

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "sharpness dimension": f"{self.value:.6g} [{self.low:.6g}, {self.high:.6g}] of {self.dimension:,}",
            "largest exponent": f"{self.largest:.4g} [{self.largest_low:.4g}, {self.largest_high:.4g}] per step",
            "expanding beyond the threshold": f"{self.sharp_directions:.4g} directions, {self.sharp_expansion:.4g}",
            "expanding below zero": f"{self.negative_directions:.4g} directions, {self.negative_expansion:.4g}",
            "threshold": f"{self.threshold:.6g}",
            "spectra": f"{self.spectra}, {self.combine}",
        }

    def __repr__(self) -> str:
        """Summary, a line each."""
        rows = self.summary()
        width = max(map(len, rows))
        return "SharpnessDimension\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())

    def plot(self) -> Figure:
        """Figure of the exponents and of the sum that the dimension comes from.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.applications.stability.figure import plot_dimension  # noqa: PLC0415 - asked only here

        return plot_dimension(self)
