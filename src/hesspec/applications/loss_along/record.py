"""The loss along directions as a result: what was computed, and its expansion to second order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hesspec.backend.shown import TextTable
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LossAlong"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LossAlong(Record):
    r"""Loss along unit directions and on the plane of the first two, from `hesspec.loss_along`.

    The quadratic is :math:`L + t\, g^\top d + \frac{t^2}{2} d^\top \mathrm{Hess}\, d`; in the plane, with the mixed
    term. Losses are in units of the loss, displacements in units of the parameters.

    Attributes
    ----------
    risk : float
        Loss L at the weights themselves.
    displacements : array (k, n)
        Displacements t along each direction, ascending, with 0 among them.
    losses : array (k, n)
        Loss at each of them; nan or infinite where the loss is.
    slopes : array (k,)
        Gradient times direction.
    curvatures : array (k, k)
        Inner products of the directions in the Hessian; its diagonal holds the curvatures along the directions.
    plane_losses : array (n, n) or (0, 0)
        Loss displaced along the first direction (rows) and the second (columns), if it was requested.
    """

    KIND: ClassVar[str] = "loss along directions"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_loss_along_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        "displacements": ("direction", "point"),
        "losses": ("direction", "point"),
        "slopes": ("direction",),
        "curvatures": ("direction", "other_direction"),
        "plane_losses": ("plane_row", "plane_column"),
    }
    FINITE: ClassVar[tuple[str, ...]] = ("risk", "displacements", "slopes", "curvatures")

    risk: float
    displacements: Array
    losses: Array
    slopes: Array
    curvatures: Array
    plane_losses: Array

    def _coordinates(self) -> dict[str, Any]:
        # The plane has the displacements along its two directions.
        return dict(zip(("plane_row", "plane_column"), self.displacements, strict=False))

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        k, n = self.displacements.shape
        refuse_unless(k > 0 and n > 0, "It has no directions or no displacements.")
        refuse_unless(self.curvatures.shape == (k, k), f"It has {k} directions, but other curvatures.")
        refuse_unless(bool((np.diff(self.displacements) > 0).all()), "Its displacements are not ascending.")
        size = self.plane_losses.size
        refuse_unless(not size or (k > 1 and self.plane_losses.shape == (n, n)), "Its plane has another size.")

    @property
    def quadratic(self) -> Array:
        """Expansion to second order at the displacements, (k, n)."""
        t = self.displacements
        curvature = np.diag(self.curvatures)[:, None]
        return np.asarray(self.risk + t * self.slopes[:, None] + t**2 / 2 * curvature)

    @property
    def plane_quadratic(self) -> Array:
        """Expansion to second order in the plane of the first two directions, (n, n)."""
        s, t = self.displacements[0][:, None], self.displacements[1][None, :]
        first, second, mixed = self.curvatures[0, 0], self.curvatures[1, 1], self.curvatures[0, 1]
        linear = s * self.slopes[0] + t * self.slopes[1]
        return np.asarray(self.risk + linear + s**2 / 2 * first + t**2 / 2 * second + s * t * mixed)

    @property
    def departures(self) -> Array:
        """Largest difference of loss and quadratic on each direction, relative to the range of the quadratic, (k,)."""
        expected = self.quadratic
        span = np.ptp(expected, axis=1)
        difference = np.abs(self.losses - expected).max(axis=1)
        return np.asarray(np.divide(difference, span, out=np.full(len(span), np.inf), where=span > 0))

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        k, n = self.displacements.shape
        return {
            "loss": f"{self.risk:.6g}",
            "directions": f"{k}, with {n} points each" + (", and their plane" if self.plane_losses.size else ""),
        }

    def tables(self) -> list[TextTable]:
        """Table of the directions."""
        numbers = zip(np.diag(self.curvatures), self.slopes, self.displacements[:, -1], self.departures, strict=True)
        rows = [
            (str(rank), f"{curvature:.4g}", f"{slope:.3g}", f"{reach:.3g}", f"{departure:.1%}")
            for rank, (curvature, slope, reach, departure) in enumerate(numbers, 1)
        ]
        return [TextTable("", ("", "curvature", "slope", "up to", "departure from the quadratic"), rows)]

    def plot(self) -> Figure:
        """Plot the loss along each direction with its quadratic and, if there is one, the plane.

        Returns
        -------
        matplotlib.figure.Figure
            Slices along the first four directions, and the plane as contours of the loss with those of the quadratic.
        """
        from hesspec.applications.loss_along.figure import plot_slices  # noqa: PLC0415 - asked only here

        return plot_slices(self)
