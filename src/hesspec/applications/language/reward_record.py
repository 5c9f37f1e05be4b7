"""The spiked law of a reward head and its measured spectrum, as a result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hesspec.backend.number_text import three_digits
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.marchenko_pastur import marchenko_pastur_density
from hesspec.spectra.record import Array, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["RewardLaw"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RewardLaw(Record):
    """Predicted bulk and outlier of a reward head at zero weights, from `hesspec.language.reward_law`.

    Attributes
    ----------
    pairs, features : int
        Number of pairs N, and of features d.
    strength : float
        Estimate of the signal to noise h of a pair's difference of features, at least 0.
    strength_error : float
        Its standard error.
    variance : float
        Mean of the eigenvalues of the noise, a quarter of the variance of a difference of features; in units of
        eigenvalues.
    low_edge, high_edge : float
        Edges of the Marchenko-Pastur bulk.
    visible : bool
        Whether `strength` exceeds the threshold sqrt(d / N).
    outlier : float
        The predicted largest eigenvalue; `high_edge` if not visible.
    alignment : float
        Predicted squared cosine between its eigenvector and the mean difference; 0 if not visible.
    eigenvalues : array (d,)
        Eigenvalues of the Hessian of these features, descending.
    measured_alignment : float
        Squared cosine between the largest eigenvector and the mean difference of these features.
    """

    KIND: ClassVar[str] = "spiked law of rewards"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_reward_law_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = {"eigenvalues": ("feature",)}
    FINITE: ClassVar[tuple[str, ...]] = ("eigenvalues",)
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (
        "strength",
        "strength_error",
        "low_edge",
        "alignment",
        "measured_alignment",
    )

    pairs: int
    features: int
    strength: float
    strength_error: float
    variance: float
    low_edge: float
    high_edge: float
    visible: bool
    outlier: float
    alignment: float
    eigenvalues: Array
    measured_alignment: float

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        refuse_unless(self.pairs > 0 and self.eigenvalues.size == self.features > 0, "It has no pairs or features.")
        refuse_unless(self.variance > 0, f"Its variance is {self.variance}.")
        refuse_unless(self.low_edge <= self.high_edge <= self.outlier, "Its outlier is inside the bulk.")
        refuse_unless(bool((np.diff(self.eigenvalues) <= 0).all()), "Its eigenvalues are not in decreasing order.")

    @property
    def aspect(self) -> float:
        """Features per pair, d / N."""
        return self.features / self.pairs

    @property
    def threshold(self) -> float:
        """Strength above which the preference is visible in the spectrum, sqrt(d / N)."""
        return math.sqrt(self.aspect)

    def density(self, x: Array) -> Array:
        """Predicted density of the bulk at eigenvalues x, per unit of eigenvalues."""
        return marchenko_pastur_density(x, self.aspect, self.variance)

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        verdict = "visible" if self.visible else "not visible"
        signal = f"{self.strength:.3g} ± {self.strength_error:.2g}"
        return {
            "pairs and features": f"{self.pairs:,} and {self.features:,}",
            "signal to noise": f"{signal}, threshold {self.threshold:.3g}: {verdict}",
            "edges of the bulk": f"{three_digits(self.low_edge)} to {three_digits(self.high_edge)}",
            "largest eigenvalue": f"{three_digits(float(self.eigenvalues[0]))}, predicted {three_digits(self.outlier)}",
            "alignment with the preference": f"{self.measured_alignment:.3f}, predicted {self.alignment:.3f}",
            "eigenvalues above the edge": f"{int((self.eigenvalues > self.high_edge).sum()):,}",
        }

    def plot(self, ax: Axes | None = None) -> Figure:
        """Plot the eigenvalues as a histogram with the predicted bulk and outlier.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.applications.language.reward_figure import plot_reward_law  # noqa: PLC0415 - only here

        return plot_reward_law(self, ax)
