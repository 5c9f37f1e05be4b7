"""Result of the class structure of a curvature matrix."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hesspec.applications.class_structure.names import ALL_MEANS, CLASS_MEANS, NOTHING, PARTS, SHARES
from hesspec.applications.class_structure.tables import explained
from hesspec.backend.shown import TextTable
from hesspec.matrices import CURVATURE, symbol_of
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Integers, Record, Strings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hesspec.spectra.spectrum import Spectrum

__all__ = ["ALL_MEANS", "CLASS_MEANS", "NOTHING", "PARTS", "SHARES", "ClassStructure"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClassStructure(Record):
    """Class structure of the Gauss-Newton matrix of a softmax cross-entropy, and its contribution to outliers.

    Eigenvalues and traces are in the units of the matrices. Parts that were not requested are empty.

    Attributes
    ----------
    dimension, classes : int
        Numbers of parameters, p, and of classes, C.
    weights : array (C, C)
        Weights w_{c,c'}: sum over the samples of class c of their probability of class c', divided by N.
    gram : array (K, K)
        Inner products of the means: all g_c, followed by all g_{c,c'} if they were requested.
    gram_true, gram_other : int array (K,)
        Class c and logit c' of each mean; c' is -1 for the class mean g_c, which averages over all c' != c.
    class_eigenvalues, same_eigenvalues, cross_eigenvalues, sum_eigenvalues : array
        Nonzero eigenvalues, descending, of G_class, G_same, G_cross and the sum of these three.
    ritz_values : array (r,)
        Rayleigh-Ritz values of G on the span of the class means, descending: each is at most the eigenvalue of G of the
        same rank.
    traces, trace_errors : array (4,)
        Traces of the four `PARTS` and their standard errors, 0 for exact traces.
    within_traces, within_errors : array (C, C)
        Weighted trace of the covariance of g_{i,c'} within each (c, c'), and its standard error.
    outlier_matrix : str array (n,)
        Class name of the matrix ("Hessian", "GaussNewton") of each eigenvalue below. These are its outliers and, in any
        case, its C largest eigenvalues, largest absolute value first; matrices are concatenated.
    outliers, outlier_bounds : array (n,)
        Eigenvalues and their error bounds.
    outlier_shares : array (n, 5)
        Terms v^T M v of `SHARES` for the eigenvector v of each eigenvalue. They sum to the eigenvalue for the Hessian,
        and for G, whose residual term is rounding; for H the eigenvalue is the residual term.
    outlier_in_class, outlier_in_means : array (n,)
        Squared length, from 0 to 1, of the projection of each eigenvector on the span of the class means, and on that
        of class and cross-class means; NaN if it was not requested.
    outlier_vector_errors : array (n,)
        Bound on the sine of the angle between the computed and the true eigenvector; 1 if nothing is known.
    angle_matrix, angle_span : str array (m,)
        Matrix of each principal angle, and `CLASS_MEANS` or `ALL_MEANS`.
    angles, angle_errors : array (m,)
        Principal angles, in radians and ascending, between the top eigenspace of the matrix (its C largest
        eigenvectors, or fewer if fewer are resolved) and the span, and their error bounds.
    knockout_removed : str array (l,)
        Span that was projected out of the Hessian: `NOTHING`, `CLASS_MEANS` or `ALL_MEANS`.
    knockout_eigenvalues, knockout_bounds : array (l,)
        Outliers of the projected Hessian, and their error bounds. A spectrum without outliers has no entry.
    knockout_edges : array (r, 2)
        Bulk edges of the Hessian after each projection, in the order `NOTHING`, `CLASS_MEANS`, `ALL_MEANS`.
    attributes : mapping
        Network, data set, split, checkpoint, epoch and so on, as in `Spectrum.attributes`.
    """

    KIND: ClassVar = "class structure"
    FORMAT_ATTRIBUTE: ClassVar = "hesspec_structure_format"
    FORMAT: ClassVar = 2
    DIMENSIONS: ClassVar = {
        "weights": ("class", "class"),
        "gram": ("mean", "mean"),
        "gram_true": ("mean",),
        "gram_other": ("mean",),
        "class_eigenvalues": ("class_rank",),
        "same_eigenvalues": ("same_rank",),
        "cross_eigenvalues": ("cross_rank",),
        "sum_eigenvalues": ("sum_rank",),
        "ritz_values": ("ritz",),
        "traces": ("part",),
        "trace_errors": ("part",),
        "within_traces": ("within", "within"),
        "within_errors": ("within", "within"),
        "outlier_matrix": ("outlier",),
        "outliers": ("outlier",),
        "outlier_bounds": ("outlier",),
        "outlier_shares": ("outlier", len(SHARES)),
        "outlier_in_class": ("outlier",),
        "outlier_in_means": ("outlier",),
        "outlier_vector_errors": ("outlier",),
        "angle_matrix": ("angle",),
        "angle_span": ("angle",),
        "angles": ("angle",),
        "angle_errors": ("angle",),
        "knockout_removed": ("left",),
        "knockout_eigenvalues": ("left",),
        "knockout_bounds": ("left",),
        "knockout_edges": ("projection", 2),
    }
    FINITE: ClassVar = (
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
    NOT_NEGATIVE: ClassVar = (
        "weights",
        "trace_errors",
        "within_errors",
        "outlier_bounds",
        "outlier_vector_errors",
        "angle_errors",
        "knockout_bounds",
    )

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

    def _coordinates(self) -> dict[str, Any]:
        # Classes of text are the tokens that the file names, and all others as the last one.
        names = [*json.loads(str(self.attributes.get("tokens", "[]"))), "others"]
        classes = names if len(names) == self.classes else np.arange(self.classes)
        means = [
            f"{classes[true]}" if other < 0 else f"{classes[true]}, {classes[other]}"
            for true, other in zip(self.gram_true, self.gram_other, strict=True)
        ]
        return {
            **dict.fromkeys(("class", "class_1", "within", "within_1"), classes),
            **dict.fromkeys(("mean", "mean_1"), means),
            "part": list(PARTS),
            "outlier_shares_1": list(SHARES),
            "knockout_edges_1": ["lower", "upper"],
        }

    def _units(self) -> dict[str, str]:
        measured = (
            "gram",
            "class_eigenvalues",
            "same_eigenvalues",
            "cross_eigenvalues",
            "sum_eigenvalues",
            "ritz_values",
            "traces",
            "trace_errors",
            "within_traces",
            "within_errors",
            "outliers",
            "outlier_bounds",
            "outlier_shares",
            "knockout_eigenvalues",
            "knockout_bounds",
            "knockout_edges",
        )
        return {**dict.fromkeys(measured, CURVATURE), **dict.fromkeys(("angles", "angle_errors"), "radian")}

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        matrices = str(self.attributes.get("matrices", "")).split()
        rows = {
            "parameters": f"{self.dimension:,}",
            "classes": str(self.classes),
            "means": f"{len(self.gram):,}",
            "explained eigenvalues": ", ".join(
                f"{(self.outlier_matrix == name).sum()} of {symbol_of(name)}" for name in matrices
            ),
        }
        return {name: value for name, value in rows.items() if value}

    def tables(self) -> list[TextTable]:
        """Tables of the parts of G, the largest eigenvalues by part, and the Hessian without the means."""
        return explained(self)

    def predicted(
        self, matrix: str = "Hessian", *, part: Literal["class", "sum", "ritz"] = "class"
    ) -> tuple[Array, Array, Array]:
        """Compare the largest eigenvalues of a matrix with those that the means alone predict.

        Parameters
        ----------
        matrix : str
            Name of a matrix in `outlier_matrix`.
        part : "class", "sum" or "ritz"
            Prediction: eigenvalues of G_class; of G_class + G_cross + G_same, which is G without the spread of the
            samples around their means; or `ritz_values`, which are those of G in the span of the class means.

        Returns
        -------
        outliers, predicted, relative_error : array (k,)
            Positive eigenvalues of the matrix, descending, the predicted ones in the same order, and
            |predicted/measured - 1|; k is the smaller number of the two.
        """
        measured = self.outliers[(self.outlier_matrix == matrix) & (self.outliers > 0)]
        known = self.ritz_values if part == "ritz" else getattr(self, f"{part}_eigenvalues")
        count = min(measured.size, known.size)
        measured, predicted = np.sort(measured)[::-1][:count], known[:count]
        return measured, predicted, np.abs(predicted / measured - 1)

    def distances(self) -> Array:
        """Return Euclidean distances between the means, (K, K), from their Gram matrix."""
        norms = np.diag(self.gram)
        return np.asarray(np.sqrt(np.clip(norms[:, None] + norms[None] - 2 * self.gram, 0, None)))

    def plot(self, spectrum: Spectrum | None = None) -> Figure:
        """Plot the class structure; see `hesspec.applications.class_structure.figure.plot_structure`.

        Parameters
        ----------
        spectrum : Spectrum, optional
            Spectrum of G at the same point, on the same data.
        """
        from hesspec.applications.class_structure.figure import plot_structure  # noqa: PLC0415 - slow to import, and rarely needed

        return plot_structure(self, spectrum)

    def check(self) -> None:
        """Raise ValueError if values are inconsistent; shapes and signs have been checked before."""
        for name in ("dimension", "classes"):
            refuse_unless(getattr(self, name) >= 1, f"Its {name!r} is {getattr(self, name)}.")
        shape = self.weights.shape
        refuse_unless(shape[0] == self.classes, f"Its weights have shape {shape}, but it has {self.classes} classes.")
        refuse_unless(self.traces.size in (0, len(PARTS)), f"It has {self.traces.size} traces of {len(PARTS)} parts.")
        for name in ("gram_true", "gram_other"):
            index = getattr(self, name)
            refuse_unless(((index >= -1) & (index < self.classes)).all(), f"Its {name} are not all classes.")
