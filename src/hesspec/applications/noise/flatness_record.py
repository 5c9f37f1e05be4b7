"""Bound on the risk of a randomised predictor from the flatness of a minimum, as a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FlatnessBound"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FlatnessBound(Record):
    """PAC-Bayes bound from curvature and distance, from `hesspec.noise.flatness_bound`.

    Attributes
    ----------
    bound : float
        Bound on the risk of the randomised predictor, in [0, 1]; at least 1 gives no information.
    kl : float
        Kullback-Leibler divergence of the posterior from the prior, in nats.
    effective_curvature, distance : float
        The two parts of an upper bound on it, in nats: half the sum of ln(h s^2) over curvatures h > 1/s^2, and half
        the squared distance from the initial parameters in units of s.
    sharp_directions : float
        Number of curvatures h > 1/s^2.
    empirical_risk : float
        Error of the randomised predictor on the data, in [0, 1].
    confidence : float
        Probability with which the bound holds.
    samples, dimension : int
        Number of samples n, and of parameters p.
    """

    KIND: ClassVar[str] = "bound from flatness"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_flatness_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = {}
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("bound", "effective_curvature", "distance", "empirical_risk")

    bound: float
    kl: float
    effective_curvature: float
    distance: float
    sharp_directions: float
    empirical_risk: float
    confidence: float
    samples: int
    dimension: int

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        refuse_unless(self.empirical_risk <= self.bound <= 1, f"Its bound is {self.bound}.")
        refuse_unless(0 < self.confidence < 1, f"Its confidence is {self.confidence}.")
        refuse_unless(self.samples > 0 and self.dimension > 0, "It has no samples or no parameters.")

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "bound on the risk": f"{self.bound:.4g} with probability {self.confidence:g}",
            "empirical risk": f"{self.empirical_risk:.4g} of the randomised predictor, {self.samples:,} samples",
            "KL": f"{self.kl:.6g} nats",
            "effective curvature": f"{self.effective_curvature:.6g} nats, of {self.sharp_directions:.4g} directions of "
            f"{self.dimension:,}",
            "distance": f"{self.distance:.6g} nats",
        }

    def plot(self, ax: Axes | None = None) -> Figure:
        """Plot the parts of the divergence.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.applications.noise.flatness_figure import plot_flatness  # noqa: PLC0415 - asked only here

        return plot_flatness(self, ax)
