"""What was found of the class structure of a curvature matrix, to keep, to plot and to report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from hesspec.backend.netcdf import format_of, read_dataset, sealed, write_dataset
from hesspec.spectra import checked_fields

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hesspec.spectra.spectrum import Spectrum

__all__ = ["ALL_MEANS", "CLASS_MEANS", "NOTHING", "PARTS", "SHARES", "Structure", "load_structure"]

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Strings = npt.NDArray[np.str_]

FORMAT = 2
# Dimensions of each array, by a letter for each length: C classes, K means, n outliers, m angles, l outliers of what is
# left, r projections; and what of it has to be finite or not negative.
DIMENSIONS: Final = {
    "weights": "CC",
    "gram": "KK",
    "gram_true": "K",
    "gram_other": "K",
    "class_eigenvalues": "a",
    "same_eigenvalues": "b",
    "cross_eigenvalues": "c",
    "sum_eigenvalues": "d",
    "ritz_values": "e",
    "traces": "t",
    "trace_errors": "t",
    "within_traces": "ww",
    "within_errors": "ww",
    "outlier_matrix": "n",
    "outliers": "n",
    "outlier_bounds": "n",
    "outlier_shares": "n5",
    "outlier_in_class": "n",
    "outlier_in_means": "n",
    "outlier_vector_errors": "n",
    "angle_matrix": "m",
    "angle_span": "m",
    "angles": "m",
    "angle_errors": "m",
    "knockout_removed": "l",
    "knockout_eigenvalues": "l",
    "knockout_bounds": "l",
    "knockout_edges": "r2",
}
NOT_NEGATIVE: Final = (
    "weights",
    "trace_errors",
    "within_errors",
    "outlier_bounds",
    "outlier_vector_errors",
    "angle_errors",
    "knockout_bounds",
)
FINITE: Final = (
    "weights",
    "gram",
    "class_eigenvalues",
    "same_eigenvalues",
    "cross_eigenvalues",
    "sum_eigenvalues",
    "ritz_values",
    "outliers",
    "knockout_eigenvalues",
    "angles",
)

PARTS: Final = ("class", "cross", "within", "same")
"""The parts of G in the order of `Structure.traces`: G = G_class + G_cross + G_within + G_same."""

SHARES: Final = (*PARTS, "residual")
"""The terms that an eigenvalue is the sum of, v^T M v for each part M of G, and for H, in the order of
`Structure.outlier_shares`."""

NOTHING: Final = "nothing"
CLASS_MEANS: Final = "class means"
ALL_MEANS: Final = "class and cross-class means"
"""What is projected out in `Structure.knockout_removed`."""


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Class structure of the Gauss-Newton matrix of a softmax cross-entropy, and what of the outliers it explains.

    Eigenvalues and traces are in the units of the matrices. What was not asked for is empty.

    Attributes
    ----------
    dimension, classes : int
        p and C.
    weights : array (C, C)
        w_{c,c'}: sum over the samples of class c of their probability of class c', divided by N.
    gram : array (K, K)
        Inner products of the means: of all g_c, and then, where they were asked for, of all g_{c,c'}.
    gram_true, gram_other : int array (K,)
        Class c of each mean, and c'; -1 stands for the class mean g_c, which is over all c' != c.
    class_eigenvalues, same_eigenvalues, cross_eigenvalues, sum_eigenvalues : array
        Non-zero eigenvalues, descending, of G_class, G_same, G_cross and the sum of these three.
    ritz_values : array (r,)
        Rayleigh-Ritz values of G on the span of the class means, descending: each is at most the eigenvalue of G of the
        same rank.
    traces, trace_errors : array (4,)
        Of the four `PARTS`, with the standard error where a trace is an estimate, else 0.
    within_traces, within_errors : array (C, C)
        Trace of the covariance of g_{i,c'} within each (c, c'), by weight, and its standard error.
    outlier_matrix : str array (n,)
        Class name of the matrix ("Hessian", "GaussNewton") of each outlier below; outliers of several matrices are one
        after the other, each by decreasing absolute value.
    outliers, outlier_bounds : array (n,)
        Eigenvalues and bounds of their errors.
    outlier_shares : array (n, 5)
        v^T M v for the terms of `SHARES`, for the eigenvector v of each outlier. They sum to the eigenvalue for the
        Hessian; for G, too, whose residual term is rounding; for H the eigenvalue is the residual term.
    outlier_in_class, outlier_in_means : array (n,)
        Squared length, from 0 to 1, of the projection of each eigenvector on the span of the class means, and on that
        of class and cross-class means; NaN where it was not asked for.
    outlier_vector_errors : array (n,)
        Bound of the sine of the angle between the computed and the true eigenvector (1 where nothing is known).
    angle_matrix, angle_span : str array (m,)
        Matrix of each principal angle, and `CLASS_MEANS` or `ALL_MEANS`.
    angles, angle_errors : array (m,)
        Principal angles, in radians and ascending, between the top eigenspace of the matrix (as many eigenvectors as
        there are classes, or all outliers where these are fewer) and the span, with bounds of their errors.
    knockout_removed : str array (l,)
        `NOTHING`, `CLASS_MEANS` or `ALL_MEANS`: what was projected out of the Hessian.
    knockout_eigenvalues, knockout_bounds : array (l,)
        Outliers of what is left, and bounds of their errors. A spectrum without outliers has no entry here.
    knockout_edges : array (r, 2)
        Bulk edges of the Hessian after each projection, in the order `NOTHING`, `CLASS_MEANS`, `ALL_MEANS`.
    attributes : mapping
        Network, data set, split, checkpoint, epoch and so on, as of a `Spectrum`.
    """

    dimension: int
    classes: int
    weights: Array
    gram: Array
    gram_true: Integers
    gram_other: Integers
    class_eigenvalues: Array
    same_eigenvalues: Array
    cross_eigenvalues: Array = field(default_factory=lambda: np.empty(0))
    sum_eigenvalues: Array = field(default_factory=lambda: np.empty(0))
    ritz_values: Array = field(default_factory=lambda: np.empty(0))
    traces: Array = field(default_factory=lambda: np.empty(0))
    trace_errors: Array = field(default_factory=lambda: np.empty(0))
    within_traces: Array = field(default_factory=lambda: np.empty((0, 0)))
    within_errors: Array = field(default_factory=lambda: np.empty((0, 0)))
    outlier_matrix: Strings = field(default_factory=lambda: np.empty(0, dtype=str))
    outliers: Array = field(default_factory=lambda: np.empty(0))
    outlier_bounds: Array = field(default_factory=lambda: np.empty(0))
    outlier_shares: Array = field(default_factory=lambda: np.empty((0, len(SHARES))))
    outlier_in_class: Array = field(default_factory=lambda: np.empty(0))
    outlier_in_means: Array = field(default_factory=lambda: np.empty(0))
    outlier_vector_errors: Array = field(default_factory=lambda: np.empty(0))
    angle_matrix: Strings = field(default_factory=lambda: np.empty(0, dtype=str))
    angle_span: Strings = field(default_factory=lambda: np.empty(0, dtype=str))
    angles: Array = field(default_factory=lambda: np.empty(0))
    angle_errors: Array = field(default_factory=lambda: np.empty(0))
    knockout_removed: Strings = field(default_factory=lambda: np.empty(0, dtype=str))
    knockout_eigenvalues: Array = field(default_factory=lambda: np.empty(0))
    knockout_bounds: Array = field(default_factory=lambda: np.empty(0))
    knockout_edges: Array = field(default_factory=lambda: np.empty((0, 2)))
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def predicted(
        self, matrix: str = "Hessian", *, part: Literal["class", "sum", "ritz"] = "class"
    ) -> tuple[Array, Array, Array]:
        """The largest outliers of a matrix beside the eigenvalues that the means alone predict.

        Parameters
        ----------
        matrix : str
            A name in `outlier_matrix`.
        part : "class", "sum" or "ritz"
            Eigenvalues of G_class; of G_class + G_cross + G_same, which is all of G but the spread of the samples
            around their means; or `ritz_values`, which are of all of G in the span of the class means.

        Returns
        -------
        outliers, predicted, relative_error : array (k,)
            Positive outliers, descending, the eigenvalues in the same order, and |predicted/outlier - 1|; k is the
            smaller number of the two.
        """
        measured = self.outliers[(self.outlier_matrix == matrix) & (self.outliers > 0)]
        known = self.ritz_values if part == "ritz" else getattr(self, f"{part}_eigenvalues")
        count = min(measured.size, known.size)
        measured, predicted = np.sort(measured)[::-1][:count], known[:count]
        return measured, predicted, np.abs(predicted / measured - 1)

    def distances(self) -> Array:
        """Euclidean distances between the means, (K, K), from their Gram matrix."""
        norms = np.diag(self.gram)
        return np.asarray(np.sqrt(np.clip(norms[:, None] + norms[None] - 2 * self.gram, 0, None)))

    def plot(self, spectrum: Spectrum | None = None) -> Figure:
        """Figure of all that was measured; see `hesspec.applications.class_structure.figure.plot_structure`.

        Parameters
        ----------
        spectrum : Spectrum, optional
            Of G, at the same point and on the same data.
        """
        from hesspec.applications.class_structure.figure import plot_structure  # noqa: PLC0415 - slow to import, and asked only here

        return plot_structure(self, spectrum)

    def to_dataset(self) -> xr.Dataset:
        """All fields as a dataset; scalars are attributes."""
        arrays: dict[str, Any] = {}
        scalars: dict[str, Any] = {"hesspec_structure_format": FORMAT}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                stored = value.astype(object) if value.dtype.kind == "U" else value
                arrays[item.name] = ([f"{item.name}_{axis}" for axis in range(value.ndim)], stored)
            elif item.name == "attributes":
                scalars["attributes"] = checked_fields.attributes_as_text(value)
            else:
                scalars[item.name] = value
        return sealed(xr.Dataset(arrays, attrs=scalars))

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> Structure:
        """Inverse of `to_dataset`.

        Raises
        ------
        ValueError
            If the dataset is not a class structure, has values that one cannot have, or is of a later format than this
            version reads.
        """
        _format_of(dataset)
        values: dict[str, Any] = {}
        for item in fields(cls):
            if item.name in DIMENSIONS and (item.name in dataset or item.default_factory is MISSING):
                if item.type == "Strings":
                    values[item.name] = checked_fields.texts(dataset, item.name)
                else:
                    dtype = np.int64 if item.type == "Integers" else np.float64
                    values[item.name] = checked_fields.array(dataset, item.name, dtype, len(DIMENSIONS[item.name]))
        found = cls(
            dimension=checked_fields.integer(dataset, "dimension", 1),
            classes=checked_fields.integer(dataset, "classes", 1),
            **values,
            attributes=checked_fields.attributes_of(dataset),
        )
        _refuse_impossible(found)
        return found

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write to a NetCDF file, whole or not at all.

        Parameters
        ----------
        path : path
        overwrite : bool
            Whether a file that is there is replaced.

        Raises
        ------
        FileExistsError
            If there is such a file, and it is not to be replaced.
        OSError
            If the folder cannot be made or written to; the message says how much room the file needs.
        """
        write_dataset(self.to_dataset(), path, overwrite=overwrite)


def _format_of(dataset: xr.Dataset) -> int:
    return format_of(dataset, "hesspec_structure_format", FORMAT, "class structure")


def _refuse_impossible(structure: Structure) -> None:
    """Raise ValueError where numbers are not those of a class structure."""
    lengths: dict[str, int] = {"C": structure.classes}
    for name, letters in DIMENSIONS.items():
        shape = getattr(structure, name).shape
        for letter, length in zip(letters, shape, strict=True):
            wanted = int(letter) if letter.isdecimal() else lengths.setdefault(letter, length)
            checked_fields.refuse_unless(
                length == wanted, f"Its variable {name!r} has shape {shape}, and {wanted} in place of {length}."
            )
    for name in FINITE:
        checked_fields.refuse_unless(np.isfinite(getattr(structure, name)).all(), f"Its {name} are not all finite.")
    for name in NOT_NEGATIVE:
        checked_fields.refuse_unless((getattr(structure, name) >= 0).all(), f"Its {name} are not all at least zero.")
    for name in ("gram_true", "gram_other"):
        index = getattr(structure, name)
        checked_fields.refuse_unless(
            ((index >= -1) & (index < structure.classes)).all(), f"Its {name} are not all classes."
        )


def load_structure(path: str | os.PathLike[str]) -> Structure:
    """Read a class structure that `Structure.save` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        As of `hesspec.load`, for a class structure.
    """
    return read_dataset(path, "class structure", _format_of, Structure.from_dataset)
