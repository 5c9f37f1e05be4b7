"""Result of `hesspec.by_block`: the spectrum of each diagonal block of a matrix, as one labelled result."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from hesspec.applications.blocks.distance import shape_distances
from hesspec.backend.number_text import percent, plus_minus, three_digits
from hesspec.backend.shown import TextTable
from hesspec.backend.suggest import unknown
from hesspec.matrices import unit_of
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Integers, Record, Strings
from hesspec.spectra.sampling import Estimate
from hesspec.spectra.spectrum import Spectrum

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BlockSpectra"]

# Arrays of spectra, end to end, by the dimension along which they are joined.
_JOINED = {
    "resolved": ("eigenvalues", "error_bounds", "eigenvalue_weights", "eigenvalue_sampled"),
    "bulk": ("bulk_nodes", "bulk_weights", "bulk_probe"),
    "ritz": ("ritz_values", "ritz_weights", "ritz_bounds", "ritz_probe"),
}
# Fields in units of eigenvalues.
_EIGENVALUES = ("eigenvalues", "error_bounds", "bulk_nodes", "ritz_values", "ritz_bounds")
_NUMBERS = ("norm", "rounding", "probes", "steps", "matvecs", "exact", "seeds", "positive")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class BlockSpectra(Record):
    """Spectra of the diagonal blocks of a curvature matrix, each with everything that a `Spectrum` has.

    `result["layer 3"]` is the spectrum of a block; iteration is over the names. The block "rest" holds all entries that
    are in no other block.

    Attributes
    ----------
    names : array (b,) of str
        Names of the blocks.
    contents : array (b,) of str
        Parameters of each block, by name, with the number of their entries where the block holds a part of them.
    parameters : int array (b,)
        Number of parameters of each block.
    whole : int
        Number of parameters of the matrix.
    num_resolved, num_bulk, num_ritz : int array (b,)
        Lengths of the arrays of each spectrum, which the following ones hold end to end.
    eigenvalues, error_bounds, eigenvalue_weights, eigenvalue_sampled, bulk_nodes, bulk_weights, bulk_probe, \
ritz_values, ritz_weights, ritz_bounds, ritz_probe : array
        See `Spectrum`.
    norm, rounding, probes, steps, matvecs, exact, stopped : array (b,)
        See `Spectrum`.
    seeds : int array (b,)
        Seed of the probes of each block.
    positive : int array (b,)
        1 for blocks of a positive semi-definite matrix.
    """

    KIND: ClassVar[str] = "spectra of blocks"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_blocks_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        **dict.fromkeys(("names", "contents", "parameters", "stopped", *_NUMBERS), ("block",)),
        **{f"num_{dimension}": ("block",) for dimension in _JOINED},
        **{name: (dimension,) for dimension, names in _JOINED.items() for name in names},
    }
    FINITE: ClassVar[tuple[str, ...]] = (
        "eigenvalues",
        "eigenvalue_weights",
        "bulk_nodes",
        "bulk_weights",
        "ritz_values",
        "ritz_weights",
    )
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (
        "error_bounds",
        "eigenvalue_weights",
        "bulk_weights",
        "ritz_weights",
        "ritz_bounds",
        "norm",
        "rounding",
    )

    names: Strings
    contents: Strings
    parameters: Integers
    whole: int
    num_resolved: Integers
    num_bulk: Integers
    num_ritz: Integers
    eigenvalues: Array
    error_bounds: Array
    eigenvalue_weights: Array
    eigenvalue_sampled: Array
    bulk_nodes: Array
    bulk_weights: Array
    bulk_probe: Integers
    ritz_values: Array
    ritz_weights: Array
    ritz_bounds: Array
    ritz_probe: Integers
    norm: Array
    rounding: Array
    probes: Integers
    steps: Integers
    matvecs: Integers
    exact: Integers
    stopped: Strings
    seeds: Integers
    positive: Integers

    def _coordinates(self) -> dict[str, Any]:
        return {"block": self.names}

    def _derived(self) -> dict[str, Any]:
        """Names of the blocks of all eigenvalues and points, unless the lengths of the blocks do not add up."""
        counts = {name: getattr(self, f"num_{name}") for name in _JOINED}
        return {
            f"{name}_block": (name, np.repeat(self.names, count).astype(object))
            for name, count in counts.items()
            if count.sum() == getattr(self, _JOINED[name][0]).size
        }

    def _units(self) -> dict[str, str]:
        unit = unit_of([str(self.attributes.get("matrix", ""))])
        return dict.fromkeys((*_EIGENVALUES, "norm", "rounding"), unit)

    @classmethod
    def of(
        cls,
        spectra: Mapping[str, Spectrum],
        contents: Sequence[str],
        whole: int,
        attributes: Mapping[str, Any],
    ) -> Self:
        """Join the spectra of blocks, in order, into one result."""
        every = list(spectra.values())
        joined = {
            name: np.concatenate([getattr(each, name) for each in every])
            for names in _JOINED.values()
            for name in names
        }
        integers = ("probes", "steps", "matvecs", "exact")
        return cls(
            names=np.array(list(spectra)),
            contents=np.array(list(contents)),
            parameters=np.array([each.dimension for each in every]),
            whole=whole,
            num_resolved=np.array([each.eigenvalues.size for each in every]),
            num_bulk=np.array([each.bulk_nodes.size for each in every]),
            num_ritz=np.array([each.ritz_values.size for each in every]),
            **joined,
            norm=np.array([each.norm for each in every]),
            rounding=np.array([each.rounding for each in every]),
            **{name: np.array([int(getattr(each, name)) for each in every]) for name in integers},
            stopped=np.array([each.stopped for each in every]),
            seeds=np.array([int(each.attributes.get("seed", 0)) for each in every]),
            positive=np.array([int(each.attributes.get("positive_semidefinite") is True) for each in every]),
            attributes=dict(attributes),
        )

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        refuse_unless(self.names.size > 0, "It has no blocks.")
        refuse_unless(len(set(self.names.tolist())) == self.names.size, "Two of its blocks have the same name.")
        refuse_unless(
            bool((self.parameters >= 1).all()) and int(self.parameters.sum()) <= self.whole,
            f"Its blocks have {self.parameters.tolist()} parameters of {self.whole}.",
        )
        for dimension, names in _JOINED.items():
            counts = getattr(self, f"num_{dimension}")
            size = getattr(self, names[0]).size
            refuse_unless(
                bool((counts >= 0).all()) and int(counts.sum()) == size,
                f"Its num_{dimension} sum to {int(counts.sum())}, and there are {size} numbers.",
            )
        for spectrum in self.spectra.values():
            spectrum.check()

    @cached_property
    def spectra(self) -> dict[str, Spectrum]:
        """Spectrum of each block by name, without sketches of eigenvectors."""
        parts: dict[str, list[Any]] = {}
        for dimension, names in _JOINED.items():
            ends = np.cumsum(getattr(self, f"num_{dimension}"))[:-1]
            parts |= {name: np.split(getattr(self, name), ends) for name in names}
        found = {}
        for number, block in enumerate(self.names.tolist()):
            attributes = {**self.attributes, "block": block, "seed": int(self.seeds[number])}
            attributes.pop("positive_semidefinite", None)
            if self.positive[number]:
                attributes["positive_semidefinite"] = True
            found[block] = Spectrum(
                dimension=int(self.parameters[number]),
                **{name: values[number] for name, values in parts.items()},
                norm=float(self.norm[number]),
                rounding=float(self.rounding[number]),
                probes=int(self.probes[number]),
                steps=int(self.steps[number]),
                matvecs=int(self.matvecs[number]),
                exact=bool(self.exact[number]),
                stopped=str(self.stopped[number]),
                attributes=attributes,
            )
        return found

    def __getitem__(self, name: str) -> Spectrum:
        """Spectrum of a block.

        Raises
        ------
        KeyError
            If there is no such block.
        """
        if name not in self.spectra:
            raise KeyError(unknown("block", name, self.spectra))
        return self.spectra[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the blocks."""
        return iter(self.spectra)

    def __len__(self) -> int:
        """Number of blocks."""
        return int(self.names.size)

    # Numbers of blocks ------------------------------------------------------------------------------------------------

    @property
    def largest(self) -> Array:
        """Eigenvalue of each block with the largest absolute value, shape (b,)."""
        return np.array([_largest(spectrum)[0] for spectrum in self.spectra.values()])

    @property
    def largest_bounds(self) -> Array:
        """Bounds on the errors of `largest`, shape (b,)."""
        return np.array([_largest(spectrum)[1] for spectrum in self.spectra.values()])

    @property
    def traces(self) -> Array:
        """Trace of each block, shape (b,)."""
        return np.array([spectrum.trace for spectrum in self.spectra.values()])

    @property
    def trace_errors(self) -> Array:
        """Standard errors of `traces`, shape (b,)."""
        return np.array([spectrum.trace_standard_error for spectrum in self.spectra.values()])

    @property
    def mean_eigenvalues(self) -> Array:
        """Trace of each block over its number of parameters, shape (b,)."""
        return np.asarray(self.traces / self.parameters)

    @property
    def effective_ranks(self) -> Array:
        """Effective rank of each block, shape (b,); see `Spectrum.effective_rank`."""
        return np.array([spectrum.effective_rank for spectrum in self.spectra.values()])

    @property
    def negative_shares(self) -> list[Estimate]:
        """Share of negative eigenvalues of each block, with its interval; see `Spectrum.num_negative`."""
        return [
            Estimate(*(number / spectrum.dimension for number in spectrum.num_negative))
            for spectrum in self.spectra.values()
        ]

    @property
    def is_whole(self) -> bool:
        """Whether the blocks hold all parameters of the matrix, so that their traces sum to its trace."""
        return int(self.parameters.sum()) == self.whole

    @property
    def trace(self) -> float:
        """Trace of the whole matrix: the sum of those of the blocks; NaN unless the blocks hold all parameters."""
        return float(self.traces.sum()) if self.is_whole else math.nan

    @property
    def trace_standard_error(self) -> float:
        """Standard error of `trace`: the probes of blocks are independent."""
        return float(np.sqrt((self.trace_errors**2).sum())) if self.is_whole else math.nan

    @property
    def trace_shares(self) -> Array:
        """Share of each block in the trace of the whole matrix, shape (b,); NaN unless all parameters are in blocks."""
        return np.asarray(self.traces / self.trace)

    @property
    def trace_share_errors(self) -> Array:
        """Standard errors of `trace_shares`, to first order, shape (b,).

        With t_b the traces, s_b = t_b / T their shares and e_b independent errors of t_b:
        Var(s_b) T^2 = (1 - s_b)^2 e_b^2 + s_b^2 sum_{c != b} e_c^2.
        """
        shares, squares = self.trace_shares, self.trace_errors**2
        others = squares.sum() - squares
        return np.asarray(np.sqrt((1 - shares) ** 2 * squares + shares**2 * others) / abs(self.trace))

    @cached_property
    def distances(self) -> tuple[Array, Array]:
        """Distances (b, b) between the shapes of spectra, and bounds on their errors; see `shape_distances`."""
        return shape_distances(list(self.spectra.values()))

    @property
    def heterogeneity(self) -> Estimate:
        """Mean distance between two different blocks, with the interval that the bounds give; NaN for one block."""
        distances, bounds = self.distances
        pairs = np.triu_indices(len(self), 1)
        if not pairs[0].size:
            return Estimate(math.nan, math.nan, math.nan)
        mean, bound = float(np.nanmean(distances[pairs])), float(np.nanmean(bounds[pairs]))
        return Estimate(mean, max(mean - bound, 0.0), min(mean + bound, 1.0))

    # Views ------------------------------------------------------------------------------------------------------------

    def to_dataframe(self) -> pd.DataFrame:
        """Return a row for each block, indexed by its name.

        Returns
        -------
        pandas.DataFrame
            Columns `parameters`, `largest`, `largest_bound`, `trace`, `trace_error`, `negative_share`,
            `effective_rank`, `trace_share`, `trace_share_error` and `contents`.
        """
        import pandas as pd  # noqa: PLC0415 - slow to import, and only needed here

        return pd.DataFrame(
            {
                "parameters": self.parameters,
                "largest": self.largest,
                "largest_bound": self.largest_bounds,
                "trace": self.traces,
                "trace_error": self.trace_errors,
                "negative_share": [share.value for share in self.negative_shares],
                "effective_rank": self.effective_ranks,
                "trace_share": self.trace_shares,
                "trace_share_error": self.trace_share_errors,
                "contents": self.contents,
            },
            index=pd.Index(self.names, name="block"),
        )

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        unlike = self.heterogeneity
        rows = {
            "matrix": str(self.attributes.get("matrix", "operator")),
            "blocks": f"{len(self)}, by {self.attributes['by']}" if "by" in self.attributes else str(len(self)),
            "parameters": f"{int(self.parameters.sum()):,}"
            + ("" if self.is_whole else f" of {self.whole:,}, so shares of the whole are not known"),
            "Lanczos steps": f"up to {int(self.steps.max())} for each block (matvecs: {int(self.matvecs.sum())})",
        }
        if self.is_whole:
            rows["trace of the whole"] = plus_minus(self.trace, 2 * self.trace_standard_error)
        if math.isfinite(unlike.value):
            rows["mean distance of shapes"] = f"{unlike.value:.3g}, proven: {unlike.lower:.2g} to {unlike.upper:.2g}"
        return rows

    def tables(self) -> list[TextTable]:
        """Table of the blocks."""
        header = (
            "block",
            "parameters",
            "largest eigenvalue",
            "trace ± 2 standard errors",
            "share of the trace",
            "mean eigenvalue",
            "negative",
            "effective rank",
        )
        numbers = zip(
            self.names.tolist(),
            self.parameters,
            self.largest,
            self.largest_bounds,
            self.traces,
            self.trace_errors,
            self.trace_shares,
            self.mean_eigenvalues,
            self.negative_shares,
            self.effective_ranks,
            strict=True,
        )
        rows = [
            (
                name,
                f"{count:,}",
                plus_minus(largest, bound),
                plus_minus(trace, 2 * error),
                percent(share) if math.isfinite(share) else "–",
                three_digits(mean),
                _interval(negative),
                three_digits(rank),
            )
            for name, count, largest, bound, trace, error, share, mean, negative, rank in numbers
        ]
        return [TextTable("Blocks", header, rows)]

    def plot(self, ax: Axes | None = None) -> Figure:
        """Plot the largest eigenvalue and the share of the trace of each block, and the distances between blocks.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes for the largest eigenvalues only; a new figure with three panels by default.
        """
        from hesspec.applications.blocks.figure import plot_blocks  # noqa: PLC0415 - matplotlib takes time to import

        return plot_blocks(self, ax)


def _largest(spectrum: Spectrum) -> tuple[float, float]:
    """Eigenvalue of the largest absolute value and its bound: the outermost Ritz value where it is not resolved."""
    place = int(np.argmax(np.abs(spectrum.ritz_values)))
    outer = float(spectrum.ritz_values[place]), float(spectrum.ritz_bounds[place])
    if not spectrum.eigenvalues.size or abs(spectrum.eigenvalues[0]) < abs(outer[0]) - outer[1]:
        return outer
    return float(spectrum.eigenvalues[0]), float(spectrum.error_bounds[0])


def _interval(share: Estimate) -> str:
    lower, upper = percent(share.lower), percent(share.upper)
    return lower if lower == upper else f"{lower} to {upper}"
