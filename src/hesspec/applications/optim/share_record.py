"""Result of `dominant_share`: shares of vectors in the top eigenspace of a matrix and in the bulk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from hesspec.backend.number_text import plus_minus
from hesspec.backend.numbers import is_whole
from hesspec.backend.shown import TextTable
from hesspec.matrices import symbol_of
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Record, Strings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DominantShare", "Shares"]


class Shares(NamedTuple):
    """Shares of vectors in a subspace, and their bounds; nan for vectors that are zero.

    Attributes
    ----------
    values, low, high : array (n,)
        Share of the norm of each vector, between 0 and 1, and its bounds.
    """

    values: Array
    low: Array
    high: Array


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class DominantShare(Record):
    """Shares of vectors in the eigenspace of the k largest eigenvalues of a matrix, and in its complement.

    Attributes
    ----------
    names : str array (n,)
        Names of the vectors, such as "gradient", "momentum", "update".
    norms : array (n,)
        Their norms.
    coefficients : array (n, k)
        Components of the unit vectors along the orthonormalised eigenvectors, whose signs are arbitrary; nan for
        vectors that are zero.
    rests : array (n,)
        Norms of the rest of the unit vectors.
    eigenvalues, eigenvalue_bounds : array (k,)
        Eigenvalues, largest absolute value first, and their error bounds.
    angle_errors : array (n, k)
        Bounds, in radians, on the error of the angle between each vector and the eigenspace of the 1, ..., k largest
        eigenvalues; pi/2 if nothing is known.
    dimension : int
        Number of parameters p.
    optimizer : str
        Class names of the optimisers; empty for given vectors.
    """

    KIND: ClassVar[str] = "dominant shares"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_dominant_share_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        "names": ("vector",),
        "norms": ("vector",),
        "coefficients": ("vector", "eigenvector"),
        "rests": ("vector",),
        "eigenvalues": ("eigenvector",),
        "eigenvalue_bounds": ("eigenvector",),
        "angle_errors": ("vector", "eigenvector"),
    }
    FINITE: ClassVar[tuple[str, ...]] = ("norms", "eigenvalues", "eigenvalue_bounds", "angle_errors")
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("norms", "eigenvalue_bounds", "angle_errors")

    names: Strings
    norms: Array
    coefficients: Array
    rests: Array
    eigenvalues: Array
    eigenvalue_bounds: Array
    angle_errors: Array
    dimension: int
    optimizer: str

    def _coordinates(self) -> dict[str, Any]:
        return {"vector": self.names}

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        refuse_unless(self.names.size > 0, "It has no vectors.")
        refuse_unless(1 <= self.k <= self.dimension, f"It has {self.k} eigenvectors, but {self.dimension} parameters.")
        lengths = np.hypot(np.linalg.norm(self.coefficients, axis=1), self.rests)[self.norms > 0]
        refuse_unless(bool((np.abs(lengths - 1) < 1e-6).all()), "Its coefficients are not those of unit vectors.")

    @property
    def k(self) -> int:
        """Number of eigenvectors."""
        return int(self.eigenvalues.size)

    @property
    def random_share(self) -> float:
        """Root mean square of the dominant share of random vectors with uniform direction, sqrt(k/p)."""
        return math.sqrt(self.k / self.dimension)

    def dominant(self, k: int | None = None) -> Shares:
        """Return the shares in the eigenspace of the k largest eigenvalues, of all eigenvectors by default.

        Raises
        ------
        ValueError
            If `k` is not between 1 and the number of eigenvectors.
        """
        angles, errors = self._angles(k)
        low, high = np.cos(np.minimum(angles + errors, np.pi / 2)), np.cos(np.maximum(angles - errors, 0))
        return Shares(np.cos(angles), low, high)

    def bulk(self, k: int | None = None) -> Shares:
        """Return the shares outside of the eigenspace of the k largest eigenvalues; see `dominant`."""
        angles, errors = self._angles(k)
        low, high = np.sin(np.maximum(angles - errors, 0)), np.sin(np.minimum(angles + errors, np.pi / 2))
        return Shares(np.sin(angles), low, high)

    def _angles(self, k: int | None) -> tuple[Array, Array]:
        """Angles between vectors and eigenspace, and bounds on their errors, in radians."""
        if k is not None and (not is_whole(k, 1) or k > self.k):
            raise ValueError(f"k is {k!r}; it must be an integer from 1 to {self.k}, the number of eigenvectors.")
        count = self.k if k is None else int(k)
        inside = np.linalg.norm(self.coefficients[:, :count], axis=1)
        outside = np.hypot(np.linalg.norm(self.coefficients[:, count:], axis=1), self.rests)
        return np.arctan2(outside, inside), self.angle_errors[:, count - 1]

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        matrix = symbol_of(str(self.attributes.get("matrix", "matrix")))
        shown = {
            "eigenvectors": f"{self.k} of {matrix}, {self.eigenvalues[0]:.4g} to {self.eigenvalues[-1]:.4g}",
            "parameters": f"{self.dimension:,}",
            "random vector": f"dominant share about {self.random_share:.3g}",
        }
        return {"optimizer": self.optimizer, **shown} if self.optimizer else shown

    def tables(self) -> list[TextTable]:
        """Table of the shares."""
        dominant, bulk = self.dominant(), self.bulk()
        rows = [
            (str(name), f"{norm:.4g}", *(_with_bounds(shares, index) for shares in (dominant, bulk)))
            for index, (name, norm) in enumerate(zip(self.names, self.norms, strict=True))
        ]
        return [TextTable("", ("", "norm", "dominant share", "bulk share"), rows)]

    def plot(self, ax: Axes | None = None) -> Figure:
        """Plot the dominant share of each vector against the number of eigenvectors.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw into. By default those of a new figure.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.applications.optim.share_figure import plot_shares  # noqa: PLC0415 - asked only here

        return plot_shares(self, ax)


def _with_bounds(shares: Shares, index: int) -> str:
    value, low, high = (float(numbers[index]) for numbers in shares)
    return plus_minus(value, max(high - value, value - low)) if math.isfinite(value) else "undefined"
