"""Curvature of several objectives at the same weights, as a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hesspec.backend.number_text import plus_minus
from hesspec.backend.shown import TextTable
from hesspec.matrices import symbol_of
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Integers, Record, Strings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ObjectiveComparison"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ObjectiveComparison(Record):
    """Spectra of several objectives at the same weights, from `hesspec.language.compare_objectives`.

    A measurement is that of a matrix of one objective; a pair is that of two objectives and a matrix.

    Attributes
    ----------
    objective, matrix : str array (r,)
        Name of the objective and of the matrix of each measurement.
    eigenvalues, bounds : array (r, k)
        Largest eigenvalues by absolute value, in units of the loss, with |true - given| <= bound; NaN beyond the last
        that is resolved.
    traces, trace_errors : array (r,)
        Traces and their standard errors.
    effective_ranks : array (r,)
        Sum of |lambda| over the largest |lambda|.
    outliers : int array (r,)
        Number of outliers.
    first, second, pair_matrix : str array (s,)
        Names of the objectives of each pair, and of the matrix.
    cosines, low, high : array (s, k)
        Cosines of the principal angles between the eigenspaces of the largest eigenvalues, in decreasing order, with
        bounds; NaN beyond the dimension of the spaces, all NaN if none is known.
    dimension : int
        Number of parameters, p, that all objectives share.
    """

    KIND: ClassVar[str] = "comparison of objectives"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_objectives_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        **dict.fromkeys(
            ("objective", "matrix", "traces", "trace_errors", "effective_ranks", "outliers"), ("measurement",)
        ),
        **dict.fromkeys(("eigenvalues", "bounds"), ("measurement", "rank")),
        **dict.fromkeys(("first", "second", "pair_matrix"), ("pair",)),
        **dict.fromkeys(("cosines", "low", "high"), ("pair", "rank")),
    }
    FINITE: ClassVar[tuple[str, ...]] = ("traces", "trace_errors", "effective_ranks")
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("trace_errors", "effective_ranks", "outliers")

    objective: Strings
    matrix: Strings
    eigenvalues: Array
    bounds: Array
    traces: Array
    trace_errors: Array
    effective_ranks: Array
    outliers: Integers
    first: Strings
    second: Strings
    pair_matrix: Strings
    cosines: Array
    low: Array
    high: Array
    dimension: int

    def _coordinates(self) -> dict[str, Any]:
        columns = {"measurement": (self.objective, self.matrix), "pair": (self.first, self.second, self.pair_matrix)}
        return {name: [", ".join(row) for row in zip(*parts, strict=True)] for name, parts in columns.items()}

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        refuse_unless(self.objective.size > 0, "It has no measurements.")
        refuse_unless(self.eigenvalues.shape[1] > 0, "It has no eigenvalues.")
        known = np.isfinite(self.cosines)
        inside = (self.low <= self.cosines) & (self.cosines <= self.high) & (self.high <= 1)
        refuse_unless(bool(inside[known].all()), "Its cosines are outside of their bounds, or above 1.")

    @property
    def objectives(self) -> list[str]:
        """Names of the objectives, in the order in which they were given."""
        return list(dict.fromkeys(map(str, self.objective)))

    @property
    def overlaps(self) -> Array:
        """Mean squared cosine of each pair (s,): 1 for equal spaces, k/p on average for random ones; NaN if unknown."""
        known = np.isfinite(self.cosines)
        total = (np.where(known, self.cosines, 0.0) ** 2).sum(axis=1)
        count = known.sum(axis=1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "objectives": ", ".join(self.objectives),
            "matrices": ", ".join(dict.fromkeys(map(symbol_of, map(str, self.matrix)))),
            "parameters": f"{self.dimension:,}",
        }

    def tables(self) -> list[TextTable]:
        """Tables of the spectra and of the overlaps of their largest eigenspaces."""
        rows = []
        for place, name in enumerate(self.objective):
            value, bound = self.eigenvalues[place, 0], self.bounds[place, 0]
            largest = plus_minus(value, bound) if np.isfinite(value) else "not resolved"
            trace = plus_minus(self.traces[place], self.trace_errors[place])
            rank, count = f"{self.effective_ranks[place]:.3g}", str(self.outliers[place])
            rows.append((str(name), symbol_of(str(self.matrix[place])), largest, trace, rank, count))
        headings = ("objective", "matrix", "largest eigenvalue", "trace (standard error)", "effective rank", "outliers")
        pairs = []
        for place, matrix in enumerate(self.pair_matrix):
            dimensions, shown = int(np.isfinite(self.cosines[place]).sum()), ("not known", "")
            if dimensions:
                low, high = self.low[place, 0], self.high[place, 0]
                shown = f"{self.overlaps[place]:.3f}", f"{self.cosines[place, 0]:.3f} [{low:.3f}, {high:.3f}]"
            names = f"{self.first[place]} and {self.second[place]}"
            pairs.append((names, symbol_of(str(matrix)), str(dimensions), *shown))
        of_pairs = ("objectives", "matrix", "dimensions", "mean squared cosine", "largest cosine")
        return [
            TextTable("Spectra", headings, rows),
            TextTable("Principal angles of the largest eigenspaces", of_pairs, pairs),
        ]

    def plot(self) -> Figure:
        """Plot the largest eigenvalues of each objective over their trace, and the cosines of principal angles.

        Returns
        -------
        matplotlib.figure.Figure
            An objective has one colour, a matrix one kind of line.
        """
        from hesspec.applications.language.objectives_figure import plot_objectives  # noqa: PLC0415 - only here

        return plot_objectives(self)
