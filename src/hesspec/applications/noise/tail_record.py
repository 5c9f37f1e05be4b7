"""Results on gradient noise: its projections, and tail indices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hesspec.backend.number_text import plus_minus
from hesspec.backend.shown import TextTable
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Integers, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GradientNoise", "TailIndex"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TailIndex(Record):
    """Estimate of the tail index alpha, as its inverse, which is what the estimator measures.

    Attributes
    ----------
    inverse, inverse_error : float
        1/alpha of all components together, and its standard error.
    inverses, inverse_errors : array (k,)
        1/alpha of each component, and standard errors; nan for components whose values are all zero.
    block, blocks : int
        Length of blocks n1; their number n2.
    samples : int
        Number of values of each component.
    zeros : int array (k,)
        Number of exact zeros of each component, which were left out.
    lengths : int array (m,)
        Lengths of blocks for which alpha of all components together was estimated.
    curve, curve_errors : array (m,)
        1/alpha for each of these lengths, and standard errors.
    """

    KIND: ClassVar[str] = "tail index"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_tail_index_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        "inverses": ("component",),
        "inverse_errors": ("component",),
        "zeros": ("component",),
        "lengths": ("length",),
        "curve": ("length",),
        "curve_errors": ("length",),
    }
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("inverse_error", "zeros")

    inverse: float
    inverse_error: float
    inverses: Array
    inverse_errors: Array
    block: int
    blocks: int
    samples: int
    zeros: Integers
    lengths: Integers
    curve: Array
    curve_errors: Array

    def _coordinates(self) -> dict[str, Any]:
        return {"length": self.lengths}

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        refuse_unless(self.inverses.size > 0, "It has no components.")
        fits = self.block >= 2 and self.blocks >= 2 and self.block * self.blocks <= self.samples
        refuse_unless(fits, f"Its {self.blocks} blocks of {self.block} are not those of {self.samples} values.")
        refuse_unless((self.zeros <= self.samples).all(), f"Its zeros are more than its {self.samples} values.")
        refuse_unless((self.lengths >= 2).all(), "Its lengths are not all at least 2.")

    @property
    def alpha(self) -> float:
        """Tail index of all components together; inf if sums do not grow with the length of blocks."""
        return float(_inverted(np.array([self.inverse]))[0])

    @property
    def standard_error(self) -> float:
        """Standard error of alpha."""
        return self.alpha**2 * self.inverse_error

    @property
    def alphas(self) -> Array:
        """Tail index of each component (k,)."""
        return _inverted(self.inverses)

    @property
    def standard_errors(self) -> Array:
        """Standard errors of the tail indices of components (k,)."""
        return np.asarray(self.alphas**2 * self.inverse_errors)

    @property
    def alpha_curve(self) -> Array:
        """Tail index of all components together for each of the lengths of blocks (m,)."""
        return _inverted(self.curve)

    @property
    def alpha_curve_errors(self) -> Array:
        """Standard errors of `alpha_curve` (m,)."""
        return np.asarray(self.alpha_curve**2 * self.curve_errors)

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        shown = {
            "alpha": plus_minus(self.alpha, self.standard_error) + " (standard error)",
            "blocks": f"{self.blocks:,} of {self.block:,} values",
            "components": f"{self.inverses.size:,}",
        }
        if self.zeros.any():
            empty = int((self.zeros == self.samples).sum())
            shown["zeros"] = f"{self.zeros.sum():,} left out" + (f"; {empty:,} components are zero" if empty else "")
        return shown

    def tables(self) -> list[TextTable]:
        """Table of alpha against the length of blocks."""
        rows = [
            (f"{length:,}", plus_minus(value, error))
            for length, value, error in zip(self.lengths, self.alpha_curve, self.alpha_curve_errors, strict=True)
        ]
        return [TextTable("Against the length of blocks", ("length", "alpha"), rows)]

    def plot(self, ax: Axes | None = None) -> Figure:
        """Plot alpha against the length of blocks, with standard errors; it is constant for stable data.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Panel to draw into; by default a new figure.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.applications.noise.exit_figure import plot_tail_indices  # noqa: PLC0415 - asked only here

        return plot_tail_indices({"": self}, ax)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class GradientNoise(Record):
    """Gradients of minibatches minus the gradient of all data, projected on directions.

    Attributes
    ----------
    projections : array (count, k)
        Noise of each minibatch along each direction, eigenvectors first, in loss per parameter.
    gradient : array (k,)
        Gradient of all data along the directions.
    eigenvalues : array (k,)
        Eigenvalues of the eigenvectors; nan for directions of the bulk.
    is_eigenvector : int array (k,)
        1 for eigenvectors, 0 for directions of the bulk.
    batch_size : int
        Number of samples in a minibatch.
    samples : int
        Number of samples in all data.
    parameters : int
        Number of parameters, p.
    """

    KIND: ClassVar[str] = "gradient noise"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_gradient_noise_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        "projections": ("batch", "direction"),
        "gradient": ("direction",),
        "eigenvalues": ("direction",),
        "is_eigenvector": ("direction",),
    }
    FINITE: ClassVar[tuple[str, ...]] = ("projections", "gradient")

    projections: Array
    gradient: Array
    eigenvalues: Array
    is_eigenvector: Integers
    batch_size: int
    samples: int
    parameters: int

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        refuse_unless(self.projections.size > 0, "It has no batches, or no directions.")
        refuse_unless(np.isin(self.is_eigenvector, (0, 1)).all(), "Its is_eigenvector are not all 0 or 1.")
        known = np.isfinite(self.eigenvalues) == (self.is_eigenvector == 1)
        refuse_unless(known.all(), "Its eigenvalues are not those of its eigenvectors.")
        fits = 1 <= self.batch_size <= self.samples
        refuse_unless(fits, f"Its batches have {self.batch_size} of {self.samples} samples.")

    @property
    def along_eigenvectors(self) -> Array:
        """Noise along the eigenvectors (count, k)."""
        return np.asarray(self.projections[:, self.is_eigenvector == 1])

    @property
    def in_bulk(self) -> Array:
        """Noise along random directions orthogonal to the eigenvectors (count, k)."""
        return np.asarray(self.projections[:, self.is_eigenvector == 0])

    @property
    def variances(self) -> Array:
        """Mean squares of the noise along each direction (k,), whose mean is 0 by construction."""
        return np.asarray((self.projections**2).mean(axis=0))

    def tail_indices(self, block: int | None = None) -> dict[str, TailIndex]:
        """Return the tail indices along the eigenvectors and in the bulk, as far as there are such directions.

        Parameters
        ----------
        block : int, optional
            Length of blocks; see `tail_index`.

        Returns
        -------
        dict of str to TailIndex
            By "eigenvectors" and "bulk".
        """
        from hesspec.applications.noise.tails import tail_index  # noqa: PLC0415 - which imports this module

        parts = {"eigenvectors": self.along_eigenvectors, "bulk": self.in_bulk}
        return {name: tail_index(part, block=block) for name, part in parts.items() if part.size}

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        shown = {
            "minibatches": f"{len(self.projections):,} of {self.batch_size:,} of {self.samples:,} samples",
            "directions": f"{self.is_eigenvector.sum():,} eigenvectors, {(self.is_eigenvector == 0).sum():,} of the "
            f"bulk, of {self.parameters:,}",
        }
        for name, kind in (("eigenvectors", 1), ("bulk", 0)):
            chosen = self.variances[self.is_eigenvector == kind]
            if chosen.size:
                shown[f"standard deviation, {name}"] = f"{math.sqrt(chosen.mean()):.4g}"
        return shown

    def tables(self) -> list[TextTable]:
        """Table of directions."""
        rows = []
        for place, (value, variance) in enumerate(zip(self.eigenvalues, self.variances, strict=True), 1):
            known = math.isfinite(value)
            rows.append((str(place), f"{value:.4g}" if known else "bulk", f"{math.sqrt(variance):.3g}"))
        return [TextTable("Directions", ("", "eigenvalue", "standard deviation of the noise"), rows)]

    def plot(self, ax: Axes | None = None) -> Figure:
        """Plot the tail index along each direction, with standard errors.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Panel to draw into; by default a new figure.

        Returns
        -------
        matplotlib.figure.Figure
            Lines are the tail indices of all directions of a kind together.

        Raises
        ------
        ValueError
            If there are fewer than four minibatches.
        """
        from hesspec.applications.noise.exit_figure import plot_noise  # noqa: PLC0415 - asked only here

        return plot_noise(self, ax)


def _inverted(values: Array) -> Array:
    """Invert 1/alpha; inf where it is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(values > 0, 1 / values, np.where(np.isnan(values), np.nan, np.inf)))
