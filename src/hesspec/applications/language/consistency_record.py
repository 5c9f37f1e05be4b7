"""Second moment of gradients against the Gauss-Newton matrix, as a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hesspec.backend.shown import TextTable
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Record, Strings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LabelConsistency"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LabelConsistency(Record):
    """Traces of F and G and their ratio, from `hesspec.language.label_consistency`.

    Attributes
    ----------
    second_moment, gauss_newton : float
        tr F and tr G, in units of squared gradients of the loss.
    ratio : float
        tr F / tr G: 1 in expectation if probabilities are calibrated, larger if they are too certain.
    low, high : float
        Interval of 95% of the ratio, over independent samples.
    samples, parameters : int
        Numbers of samples and of parameters, N and p.
    blocks : str array (b,)
        Names of the parameters.
    block_second_moment, block_gauss_newton : array (b,)
        The traces of each parameter, which sum to those of all.
    block_ratio, block_low, block_high : array (b,)
        Their ratios, with intervals; NaN for a parameter without gradients.
    """

    KIND: ClassVar[str] = "label consistency"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_label_consistency_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = dict.fromkeys(
        ("blocks", "block_second_moment", "block_gauss_newton", "block_ratio", "block_low", "block_high"), ("block",)
    )
    FINITE: ClassVar[tuple[str, ...]] = ("block_second_moment", "block_gauss_newton")
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (*FINITE, "second_moment", "low")

    second_moment: float
    gauss_newton: float
    ratio: float
    low: float
    high: float
    samples: int
    parameters: int
    blocks: Strings
    block_second_moment: Array
    block_gauss_newton: Array
    block_ratio: Array
    block_low: Array
    block_high: Array

    def _coordinates(self) -> dict[str, Any]:
        return {"block": self.blocks}

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        refuse_unless(self.gauss_newton > 0, f"Its trace of G is {self.gauss_newton}.")
        refuse_unless(self.low <= self.ratio <= self.high, f"Its ratio {self.ratio} is outside of its interval.")

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "samples": f"{self.samples:,}, {self.parameters:,} parameters",
            "tr F": f"{self.second_moment:.4g}",
            "tr G": f"{self.gauss_newton:.4g}",
            "tr F / tr G": f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f})",
        }

    def tables(self) -> list[TextTable]:
        """Table of the parameters."""
        columns = zip(
            self.blocks, self.block_gauss_newton, self.block_ratio, self.block_low, self.block_high, strict=True
        )
        rows = [
            (str(name), f"{trace:.3g}", f"{ratio:.3f}", f"{low:.3f} to {high:.3f}")
            if np.isfinite(ratio)
            else (str(name), f"{trace:.3g}", "no gradients", "")
            for name, trace, ratio, low, high in columns
        ]
        return [TextTable("By parameter", ("", "tr G", "tr F / tr G", "95%"), rows)]

    def plot(self, ax: Axes | None = None) -> Figure:
        """Plot the ratio of each parameter and of all, with intervals of 95%.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.figure.Figure
            At most 40 parameters are drawn, those with the largest traces of G.
        """
        from hesspec.applications.language.consistency_figure import plot_consistency  # noqa: PLC0415 - only here

        return plot_consistency(self, ax)
