"""Principal angles between two eigenspaces, as a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PrincipalAngles"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PrincipalAngles(Record):
    """Principal angles between the eigenspaces of two matrices, from `hesspec.principal_angles`.

    Attributes
    ----------
    cosines : array (k,)
        Cosines of the angles, in decreasing order; 1 for directions that both spaces share.
    low, high : array (k,)
        Bounds on the cosines, from the errors of both spaces.
    first_error, second_error : float
        Bounds on the sine of the largest angle between the computed and the true space; 1 gives no information.
    dimension : int
        Number of parameters p.
    first, second : str
        Symbols of the matrices.
    """

    KIND: ClassVar[str] = "principal angles"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_angles_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = dict.fromkeys(("cosines", "low", "high"), ("angle",))
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("low", "first_error", "second_error")

    cosines: Array
    low: Array
    high: Array
    first_error: float
    second_error: float
    dimension: int
    first: str
    second: str

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        inside = bool((self.low <= self.cosines).all() and (self.cosines <= self.high).all() and (self.high <= 1).all())
        refuse_unless(inside, "Its cosines are outside of their bounds, or above 1.")
        refuse_unless(0 < self.cosines.size <= self.dimension, f"It has {self.cosines.size} angles.")
        refuse_unless(bool((np.diff(self.cosines) <= 0).all()), "Its cosines are not in decreasing order.")

    @property
    def angles(self) -> Array:
        """The angles in radians, (k,), in increasing order."""
        return np.arccos(self.cosines)

    @property
    def overlap(self) -> float:
        """Mean squared cosine, in [0, 1]: 1 if the spaces are equal, and k/p on average for a random one."""
        return float(np.mean(self.cosines**2))

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "matrices": f"{self.first} and {self.second}, {self.cosines.size} of {self.dimension:,} dimensions",
            "cosines": ", ".join(f"{cosine:.3f}" for cosine in self.cosines),
            "smallest": f"{self.cosines[-1]:.3f} [{self.low[-1]:.3f}, {self.high[-1]:.3f}]",
            "mean squared cosine": f"{self.overlap:.3f}",
            "sines of the errors of both spaces": f"{self.first_error:.2g}, {self.second_error:.2g}",
        }

    def plot(self, ax: Axes | None = None, **line: Any) -> Figure:
        """Plot the cosines with their bounds.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; by default those of a new figure.
        **line
            Properties of the line, such as `color` and `label`.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.applications.noise.angles_figure import plot_angles  # noqa: PLC0415 - asked only here

        return plot_angles(self, ax, **line)
