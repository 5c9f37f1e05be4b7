"""Results about Gauss-Newton steps: competitors of the true class, and steps compared over dampings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hesspec.backend.shown import TextTable
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Integers, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CompetitorShare", "StepComparison"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class CompetitorShare(Record):
    """How much of the output curvature distinguishes the competitors of the true class, and how many there are.

    With q the softmax of all classes but the true one y, the traces are those of the two parts of the curvature in the
    logits, tr G_1 = mean p_y (1 - p_y) (1 + sum q^2) and tr G_2 = mean (1 - p_y) (1 - sum q^2).

    Attributes
    ----------
    share : float
        tr G_2 / (tr G_1 + tr G_2), which Fast Gauss-Newton leaves out; (C - 2)/(C - 1) for equal logits.
    participation : float
        Mean of 1 / sum q^2, the effective number of competitors, from 1 (concentrated) to C - 1.
    true_vs_rest, within_competitor : float
        The two traces, in units of the loss.
    loss : float
        The loss.
    samples : int
        Number of samples (rows of logits) that count.
    classes : int array (c,)
        Classes that occur as targets.
    class_samples : int array (c,)
        Number of samples of each.
    class_shares, class_participations : array (c,)
        Share and participation of the samples of each class.
    """

    KIND: ClassVar[str] = "competitor share"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_competitor_share_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = dict.fromkeys(
        ("classes", "class_samples", "class_shares", "class_participations"), ("class",)
    )
    FINITE: ClassVar[tuple[str, ...]] = ("class_shares", "class_participations")
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (
        *DIMENSIONS,
        "share",
        "participation",
        "true_vs_rest",
        "within_competitor",
    )

    share: float
    participation: float
    true_vs_rest: float
    within_competitor: float
    loss: float
    samples: int
    classes: Integers
    class_samples: Integers
    class_shares: Array
    class_participations: Array

    def _coordinates(self) -> dict[str, Any]:
        return {"class": self.classes}

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        refuse_unless(self.share <= 1 and bool((self.class_shares <= 1).all()), "It has a share above 1.")

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "share within competitors": f"{self.share:.4g}",
            "effective competitors": f"{self.participation:.4g}",
            "loss": f"{self.loss:.4g}",
            "samples": f"{self.samples:,}",
        }

    def tables(self) -> list[TextTable]:
        """Table of the classes."""
        columns = zip(self.classes, self.class_samples, self.class_shares, self.class_participations, strict=True)
        rows = [(str(c), f"{n:,}", f"{share:.3f}", f"{number:.3g}") for c, n, share, number in columns]
        return [TextTable("", ("class", "samples", "share", "effective competitors"), rows)]

    def plot(self, ax: Axes | None = None) -> Figure:
        """Plot the share of each class against its effective number of competitors.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default a new figure.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.applications.optim.figure import plot_share  # noqa: PLC0415 - asked only here

        return plot_share(self, ax)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class StepComparison(Record):
    """Fast Gauss-Newton steps against full Gauss-Newton steps at one point, over dampings.

    Attributes
    ----------
    dampings : array (n,)
        Dampings mu, ascending, in units of eigenvalues of G.
    cosines : array (n,)
        Cosine of the angle between the two steps.
    relative_errors : array (n,)
        ||x_fast - x_full|| / ||x_full||.
    bounds : array (n,)
        ||G_2|| / mu, which bounds these up to the error of `within_norm`.
    fast_iterations, full_iterations : int array (n,)
        Conjugate-gradient iterations of the two solves.
    norm, within_norm : float
        Largest eigenvalue of G and of its within-competitor part G_2, as Lanczos estimates from below.
    share, participation : float
        See `CompetitorShare`.
    loss : float
        The loss.
    dimension, samples : int
        Numbers of parameters and of samples (rows of logits).
    """

    KIND: ClassVar[str] = "comparison of steps"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_steps_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = dict.fromkeys(
        ("dampings", "cosines", "relative_errors", "bounds", "fast_iterations", "full_iterations"), ("damping",)
    )
    FINITE: ClassVar[tuple[str, ...]] = ("dampings", "cosines", "relative_errors", "bounds")
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (
        "dampings",
        "relative_errors",
        "bounds",
        "fast_iterations",
        "full_iterations",
        "norm",
        "within_norm",
        "share",
        "participation",
    )

    dampings: Array
    cosines: Array
    relative_errors: Array
    bounds: Array
    fast_iterations: Integers
    full_iterations: Integers
    norm: float
    within_norm: float
    share: float
    participation: float
    loss: float
    dimension: int
    samples: int

    def _coordinates(self) -> dict[str, Any]:
        return {"damping": self.dampings}

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        ascending = self.dampings.size > 0 and self.dampings[0] > 0 and bool((np.diff(self.dampings) > 0).all())
        refuse_unless(ascending, "Its dampings are not positive and ascending.")

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "parameters": f"{self.dimension:,}",
            "samples": f"{self.samples:,}",
            "loss": f"{self.loss:.4g}",
            "largest eigenvalue": f"{self.norm:.4g}, within competitors {self.within_norm:.4g}",
            "share within competitors": f"{self.share:.4g}",
            "effective competitors": f"{self.participation:.4g}",
        }

    def tables(self) -> list[TextTable]:
        """Table of the dampings."""
        columns = zip(
            self.dampings, self.cosines, self.relative_errors, self.fast_iterations, self.full_iterations, strict=True
        )
        rows = [(f"{mu:.3g}", f"{cosine:.3f}", f"{error:.3g}", str(a), str(b)) for mu, cosine, error, a, b in columns]
        headings = ("damping", "cosine", "relative error", "iterations", "iterations, full")
        return [TextTable("", headings, rows)]

    def plot(self, ax: Axes | None = None) -> Figure:
        """Plot cosine and relative error of the steps over the damping.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default a new figure.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.applications.optim.figure import plot_steps  # noqa: PLC0415 - asked only here

        return plot_steps({"": self}, ax)
