"""Result of `monitor_shares`: shares of an optimiser's vectors in the top eigenspace, through a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hesspec.backend.number_text import plus_minus
from hesspec.backend.shown import TextTable
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Integers, Record, Strings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DominantShareRun"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class DominantShareRun(Record):
    """Shares of gradient, momentum and update in the top eigenspace of the Hessian, at several steps of a training.

    Attributes
    ----------
    steps : int array (m,)
        Numbers of the steps, whose vectors were measured before they were taken.
    names : str array (n,)
        Names of the vectors: "gradient", "momentum", "update".
    values, low, high : array (m, n)
        Dominant shares and their bounds, see `DominantShare.dominant`; nan for vectors that are zero or missing.
    eigenvectors : int array (m,)
        Number k of eigenvectors of each measurement; fewer than asked for where fewer are resolved.
    dimension : int
        Number of parameters p.
    optimizer : str
        Class names of the optimisers.
    """

    KIND: ClassVar[str] = "dominant shares through a training"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_dominant_share_run_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        "steps": ("measurement",),
        "names": ("vector",),
        "values": ("measurement", "vector"),
        "low": ("measurement", "vector"),
        "high": ("measurement", "vector"),
        "eigenvectors": ("measurement",),
    }
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("steps", "eigenvectors")

    steps: Integers
    names: Strings
    values: Array
    low: Array
    high: Array
    eigenvectors: Integers
    dimension: int
    optimizer: str

    def _coordinates(self) -> dict[str, Any]:
        return {"measurement": self.steps, "vector": self.names}

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        known = np.isfinite(self.values)
        inside = (self.low >= 0) & (self.low <= self.values) & (self.values <= self.high) & (self.high <= 1)
        refuse_unless(bool(inside[known].all()), "Its shares are not within their bounds.")

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        if not self.steps.size:
            return {"measurements": "0"}
        most = int(self.eigenvectors.max())
        return {
            "optimizer": self.optimizer,
            "measurements": f"{self.steps.size:,}, steps {self.steps[0]:,} to {self.steps[-1]:,}",
            "eigenvectors": f"{most} of {self.dimension:,}",
            "random vector": f"dominant share about {(most / self.dimension) ** 0.5:.3g}",
        }

    def tables(self) -> list[TextTable]:
        """Table of the shares at the first, middle and last step."""
        places = sorted({0, self.steps.size // 2, self.steps.size - 1}) if self.steps.size else []
        rows = [(str(name), *(self._text(place, column) for place in places)) for column, name in enumerate(self.names)]
        return [TextTable("Dominant share", ("", *(f"step {self.steps[place]:,}" for place in places)), rows)]

    def _text(self, place: int, column: int) -> str:
        value, low, high = (float(each[place, column]) for each in (self.values, self.low, self.high))
        return plus_minus(value, max(high - value, value - low)) if np.isfinite(value) else "–"

    def plot(self, ax: Axes | None = None) -> Figure:
        """Plot the dominant share of each vector against the step, with its bounds.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw into. By default those of a new figure.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ValueError
            If there are no measurements.
        """
        from hesspec.applications.optim.share_figure import plot_share_run  # noqa: PLC0415 - asked only here

        return plot_share_run(self, ax)
