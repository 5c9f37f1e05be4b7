"""Result of a comparison: numbers of several spectra with their intervals, differences, distances and overlaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hesspec.applications.comparison.difference import DISTANCE, NONE, OVERLAP, Difference
from hesspec.backend.number_text import three_digits
from hesspec.backend.shown import TextTable
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Integers, Record, Strings

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["MANY", "Comparison"]

# Pairs of spectra from which an overview takes the place of all their numbers.
MANY = 5
# Columns of the overview, with their short headings.
COLUMNS = {
    "largest eigenvalue": "largest",
    "trace": "trace",
    "upper bulk edge": "upper edge",
    "outliers": "outliers",
    DISTANCE: "W1",
    OVERLAP: "overlap",
}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Comparison(Record):
    """Comparison of the spectra of several runs at one or several places, such as matrices, splits and checkpoints.

    Differences are those from the first run. Their intervals add up both intervals of 95%, so that they hold with at
    least 90% whatever the errors have in common, and with 95% for the trace. Spectra of the same seed share probes, and
    their errors are not independent.

    Measures have mass 1 each, whatever the numbers of parameters: eigenvalues, edges, shares and distances of networks
    of different size are comparable, while trace and effective rank grow with the number of parameters.

    Parameters
    ----------
    runs : str array (r,)
        Names of what is compared.
    places : str array (l,)
        What the spectra are of.
    quantities : str array (q,)
        Names of the numbers, as in `hesspec.applications.comparison.quantities.QUANTITIES`.
    matrices : str array (r * l,)
        Matrix of each spectrum, those of the first run first.
    parameters : int array (r, l)
        Numbers of parameters.
    values, lower, upper : array (r, l, q)
        Numbers with their intervals; NaN where there is none.
    distances, distance_bounds : array (r, l)
        Wasserstein-1 distance between the measures of each run and of the first, and the bound on its error.
    overlaps, overlap_errors : array (r, l)
        Mean squared cosine of the principal angles between the spans of the largest eigenvectors of each run and of the
        first, and its error: two standard errors, or a bound if eigenvectors were given. NaN where the parameters
        differ or eigenvectors are unknown.
    overlap_counts : int array (r, l)
        Dimension of these spans.
    eigenvalues, error_bounds : array (r, l, k)
        Resolved eigenvalues by decreasing absolute value, and their bounds; NaN beyond the last.
    is_outlier : int array (r, l, k)
        1 for outliers.
    curve_at, curve : array (r, l, n)
        Density of each bulk, in shares of the eigenvalues per unit; NaN without a bulk.
    unmatched : str array (u,)
        Spectra that only some of the runs have, which are not compared.
    notes : str array (v,)
        Files that were left out, with the reason.
    attributes : mapping
    """

    KIND: ClassVar = "comparison of spectra"
    FORMAT_ATTRIBUTE: ClassVar = "hesspec_comparison_format"
    FORMAT: ClassVar = 1
    DIMENSIONS: ClassVar = {
        "runs": ("run",),
        "places": ("place",),
        "quantities": ("quantity",),
        "matrices": ("spectrum",),
        "parameters": ("run", "place"),
        "values": ("run", "place", "quantity"),
        "lower": ("run", "place", "quantity"),
        "upper": ("run", "place", "quantity"),
        "distances": ("run", "place"),
        "distance_bounds": ("run", "place"),
        "overlaps": ("run", "place"),
        "overlap_errors": ("run", "place"),
        "overlap_counts": ("run", "place"),
        "eigenvalues": ("run", "place", "rank"),
        "error_bounds": ("run", "place", "rank"),
        "is_outlier": ("run", "place", "rank"),
        "curve_at": ("run", "place", "point"),
        "curve": ("run", "place", "point"),
        "unmatched": ("only",),
        "notes": ("note",),
    }
    FINITE: ClassVar = ("distances", "distance_bounds")
    NOT_NEGATIVE: ClassVar = ("distances", "distance_bounds", "overlap_counts", "parameters")

    runs: Strings
    places: Strings
    quantities: Strings
    matrices: Strings
    parameters: Integers
    values: Array
    lower: Array
    upper: Array
    distances: Array
    distance_bounds: Array
    overlaps: Array
    overlap_errors: Array
    overlap_counts: Integers
    eigenvalues: Array
    error_bounds: Array
    is_outlier: Integers
    curve_at: Array
    curve: Array
    unmatched: Strings
    notes: Strings

    def _coordinates(self) -> dict[str, Any]:
        return {"run": self.runs, "place": self.places, "quantity": self.quantities}

    def check(self) -> None:
        """Raise ValueError if there are fewer than two runs, or values are outside their intervals."""
        refuse_unless(self.runs.size > 1, f"It has {self.runs.size} runs, and a comparison has at least two.")
        refuse_unless(
            self.matrices.size == self.runs.size * self.places.size, f"It has {self.matrices.size} names of matrices."
        )
        known = np.isfinite(self.lower) & np.isfinite(self.upper)
        inside = (self.lower <= self.values) & (self.values <= self.upper)
        refuse_unless(inside[known].all(), "Its values are not all inside their intervals.")
        refuse_unless(np.isin(self.is_outlier, (0, 1)).all(), "Its is_outlier is not 0 or 1 everywhere.")

    @property
    def same_size(self) -> bool:
        """Whether all spectra at each place have the same number of parameters."""
        return bool((self.parameters == self.parameters[0]).all())

    def differences(self) -> Iterator[Difference]:
        """Differences of each run from the first, by place and run: all numbers, the distance, and the overlap."""
        for j, place in enumerate(map(str, self.places)):
            for i, run in enumerate(map(str, self.runs[1:]), start=1):
                for k, quantity in enumerate(map(str, self.quantities)):
                    first, second = (float(self.values[which, j, k]) for which in (0, i))
                    # As Python's numbers: traces may be infinite.
                    lower = float(self.lower[i, j, k]) - float(self.upper[0, j, k])
                    upper = float(self.upper[i, j, k]) - float(self.lower[0, j, k])
                    known = np.isfinite(lower) and np.isfinite(upper)
                    exceeds = bool(lower > 0 or upper < 0) if known else None
                    yield Difference(place, quantity, run, first, second, second - first, lower, upper, exceeds)
                distance, bound = float(self.distances[i, j]), float(self.distance_bounds[i, j])
                low = max(distance - bound, 0.0)
                yield Difference(
                    place, DISTANCE, run, np.nan, np.nan, distance, low, distance + bound, distance > bound
                )
                if self.overlap_counts[i, j]:
                    overlap, error = float(self.overlaps[i, j]), float(self.overlap_errors[i, j])
                    name = f"{OVERLAP}, {self.overlap_counts[i, j]} largest"
                    ends = max(overlap - error, 0.0), min(overlap + error, 1.0)
                    yield Difference(place, name, run, np.nan, np.nan, overlap, *ends, None)

    def shown(self) -> Iterator[Difference]:
        """`differences` that tables show: numbers that are known, and the mean eigenvalue only where sizes differ."""
        return (each for each in self._existing() if each.is_known)

    def _existing(self) -> Iterator[Difference]:
        for each in self.differences():
            if np.isfinite(each.difference) and (each.quantity != "mean eigenvalue" or not self.same_size):
                yield each

    @property
    def is_long(self) -> bool:
        """Whether there are so many pairs of spectra that tables show an overview."""
        return (self.runs.size - 1) * self.places.size > MANY

    def overview(self) -> TextTable:
        """Table of the main differences, with a row for each pair of spectra; * marks those that exceed their error."""
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for each in self.shown():
            # The overlap's name has the number of vectors, which differs between places.
            name = OVERLAP if each.quantity.startswith(OVERLAP) else each.quantity
            row = rows.setdefault((each.place, each.run), {})
            if name == "outliers":
                row[name] = " → ".join(each.pair)
            elif name in COLUMNS:
                row[name] = three_digits(each.difference) + ("*" if each.exceeds_error else "")
        columns = [name for name in COLUMNS if any(name in row for row in rows.values())]
        several = self.runs.size > 2
        return TextTable(
            f"Differences from {self.runs[0]}",
            ["", *(["compared"] if several else []), *(COLUMNS[name] for name in columns)],
            [
                [place, *([run] if several else []), *(row.get(name, NONE) for name in columns)]
                for (place, run), row in rows.items()
            ],
            (f"*: more than its error. {NONE}: not known well enough. W1: {DISTANCE}. Overlap: of eigenspaces.",),
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Return a row for each place, run and quantity, with the columns of `Difference` and `reference`.

        Returns
        -------
        pandas.DataFrame
        """
        import pandas as pd  # noqa: PLC0415 - slow to import, and only needed here

        frame = pd.DataFrame(self.differences(), columns=list(Difference._fields))
        frame.insert(2, "reference", str(self.runs[0]))
        frame["exceeds_error"] = frame["exceeds_error"].astype("boolean")
        return frame

    def to_json(self) -> dict[str, Any]:
        """Return what a JSON file holds: the runs, the differences as a list of rows, and what was not compared."""
        rows: list[dict[str, Any]] = []
        for each in self.differences():
            row = each._asdict()
            rows.append({k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()})
        return {
            "runs": self.runs.tolist(),
            "reference": str(self.runs[0]),
            "parameters": self.parameters.tolist(),
            "differences": rows,
            "unmatched": self.unmatched.tolist(),
            "notes": self.notes.tolist(),
        }

    def remarks(self) -> list[str]:
        """Sentences about sizes and about what is not compared."""
        found = []
        if not self.same_size:
            found.append(
                "The numbers of parameters differ. Each measure has mass 1: compare mean eigenvalues rather than "
                "traces; trace and effective rank grow with the number of parameters."
            )
        unknown = [each.quantity for each in self._existing() if not each.is_known]
        if unknown:
            pairs = (self.runs.size - 1) * self.places.size
            counts = {name: unknown.count(name) for name in dict.fromkeys(unknown)}
            where = "" if pairs == 1 else f" (number of {pairs} pairs)"
            names = ", ".join(name if pairs == 1 else f"{name} ({count})" for name, count in counts.items())
            found.append(
                f"Not shown, as their errors exceed the numbers{where}: {names}. Measure with trace=0.05 (--trace 5%) "
                "to know the trace, and with more steps or probes to know the others."
            )
        if self.unmatched.size:
            found.append(f"Only in some, and not compared: {'; '.join(self.unmatched)}.")
        return [*found, *map(str, self.notes)]

    def summary(self) -> dict[str, str]:
        """Names and values as text, for `repr` and notebooks: each difference with its error, if there are few."""
        rows = {"runs": f"{', '.join(self.runs[1:])}, compared with {self.runs[0]}"}
        if self.places.size == 1 and self.places[0]:
            rows["of"] = str(self.places[0])
        for each in () if self.is_long else self.shown():
            parts = [part for part in (each.place if self.places.size > 1 else "", each.quantity) if part]
            name = ", ".join([*([each.run] if self.runs.size > 2 else []), *parts])
            first, second = each.pair
            change = f"{first} → {second}, by " if first else ""
            verdict = f" ({each.verdict})" if each.verdict else ""
            rows[name] = f"{change}{each.text}{verdict}"
        return rows | {f"note {number}": text for number, text in enumerate(self.remarks(), start=1)}

    def tables(self) -> list[TextTable]:
        """`overview`, if there are many pairs of spectra."""
        return [self.overview()] if self.is_long else []

    def plot(self) -> Figure:
        """Plot the spectra of all runs at each place on one axis: colours by run, markers by matrix.

        Returns
        -------
        matplotlib.figure.Figure
            Panels with the density of each bulk as a curve, and below it a row of points for each run: outliers with
            error bars, and smaller ones for resolved eigenvalues of the bulk. The axis is symmetric and logarithmic. At
            most 9 places are drawn, the first ones.
        """
        from hesspec.applications.comparison.figure import plot_comparison  # noqa: PLC0415 - imports matplotlib

        return plot_comparison(self)
