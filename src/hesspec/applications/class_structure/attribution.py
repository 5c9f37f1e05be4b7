"""How much of each outlier the class structure explains: shares, subspace overlaps, spectra without the means."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesspec.applications.class_structure.means import ClassMeans, Span, within_by_class
from hesspec.applications.class_structure.record import ALL_MEANS, CLASS_MEANS, NOTHING, PARTS, SHARES, ClassStructure
from hesspec.backend.algebra import SymmetricOperator
from hesspec.backend.bars import bar_of
from hesspec.backend.memory import in_words, parse_memory
from hesspec.backend.memory_shares import free_shares, shares_of
from hesspec.backend.number_text import three_digits
from hesspec.backend.progress import Progress
from hesspec.backend.ranks import ALONE
from hesspec.backend.shown import Shown, TextTable
from hesspec.backend.suggest import unknown
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.projected import ProjectedOperator
from hesspec.krylov.storage import Storage
from hesspec.krylov.vectors import Space, norm
from hesspec.matrices import DEFAULT_MATRICES
from hesspec.measure.basis_memory import choose_storage, same_on_all_ranks
from hesspec.measure.eigenpairs import Eigenpairs, outlier_pairs
from hesspec.measure.spectrum import spectrum
from hesspec.operators import CurvatureOperator
from hesspec.operators.class_parts import Projections
from hesspec.operators.named import operator_class
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.spectra.spectrum import Spectrum

__all__ = ["Attribution", "attribute_outliers", "class_structure", "project_out"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Attribution(Shown):
    """Attribution of eigenvectors of one matrix to the class structure; fields as in `ClassStructure`.

    Attributes
    ----------
    shares : array (k, 5)
        Terms v^T M v that each eigenvalue is the sum of, in the order of `SHARES`.
    in_class, in_means : array (k,)
        Squared length of the projection of each eigenvector on the span of the class means, and on that of class and
        cross-class means. The second is empty if `cross` is False.
    angles : mapping of span to array (r,)
        Principal angles between all eigenvectors together and the span, in radians, ascending.
    angle_error : float
        Bound on the error of each angle, from those of the eigenvectors.
    """

    shares: Array
    in_class: Array
    in_means: Array
    angles: Mapping[str, Array]
    angle_error: float

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        degrees = {span: np.degrees(angles) for span, angles in self.angles.items() if angles.size}
        return {
            "eigenvectors": str(len(self.shares)),
            **{f"angles to the {span}": f"{found[0]:.1f}° to {found[-1]:.1f}°" for span, found in degrees.items()},
            "error of the angles": f"{np.degrees(self.angle_error):.1g}°",
        }

    def tables(self) -> list[TextTable]:
        """Table of the terms of each eigenvalue, and of the parts of its eigenvector in the spans of the means."""
        spans = [column for column in (self.in_class, self.in_means) if column.size]
        rows = [
            (
                str(rank),
                *(three_digits(share) for share in shares),
                *(f"{column[rank - 1]:.0%}" for column in spans),
            )
            for rank, shares in enumerate(self.shares, 1)
        ]
        names = ("in class", "in means")[: len(spans)]
        return [TextTable("Terms of each eigenvalue", ("", *PARTS, "H", *names), rows)]


def attribute_outliers(structure: ClassMeans, pairs: Eigenpairs, *, cross: bool = True) -> Attribution:
    """Split eigenvalues by the class structure, and compare their eigenvectors with the spans of the means.

    For an eigenvector v of the Hessian, lambda = v^T G_class v + v^T G_cross v + v^T G_within v + v^T G_same v + v^T H
    v. One Jacobian-vector product with v gives all terms except the last. It also gives the inner products of v with
    all means and hence, with their Gram matrix, the projection on their span; no basis is formed. This costs half a
    Gauss-Newton product for each vector, and no memory.

    Parameters
    ----------
    structure : ClassStructure
        Class structure for the same model, loss and data.
    pairs : Eigenpairs
        Eigenpairs of the Hessian, G or H, with k eigenvectors.
    cross : bool
        Whether to include the span of the cross-class means, which needs the Gram matrix of all C^2 means.

    Returns
    -------
    Attribution

    Notes
    -----
    Angles are computed as in Björck and Golub (1973), as arc cosines of the singular values of Q^T V. The sine of the
    angle between V and the true eigenvectors is at most the root of the sum of squared vector errors, and principal
    angles change by at most this angle.
    """
    found = structure.project(pairs.vectors)
    shares = np.empty((len(found), len(SHARES)))
    for i, projections in enumerate(found):
        parts = _quadratic_forms(projections)
        shares[i] = [*parts, pairs.values[i] - sum(parts)]
    inner = np.stack([f.pair.reshape(-1).cpu().numpy() for f in found], axis=1) if found else np.empty((0, 0))
    spans: list[Span] = [CLASS_MEANS, ALL_MEANS] if cross else [CLASS_MEANS]
    overlaps: dict[str, Array] = {span: structure.span(span).T @ inner for span in spans} if found else {}
    squares = {span: np.minimum((overlap**2).sum(0), 1) for span, overlap in overlaps.items()}
    angles: dict[str, Array] = {
        span: np.sort(np.arccos(np.clip(np.linalg.svd(overlap, compute_uv=False), 0, 1)))
        for span, overlap in overlaps.items()
    }
    sine = min(1.0, float(np.sqrt((pairs.vector_errors**2).sum())))
    empty = np.empty(0)
    return Attribution(
        shares, squares.get(CLASS_MEANS, empty), squares.get(ALL_MEANS, empty), angles, float(np.arcsin(sine))
    )


def _quadratic_forms(found: Projections) -> list[float]:
    """v^T M v for the parts M of G, in the order of `PARTS`."""
    off = found.weights * found.off
    centred = found.pair - found.mean[:, None]
    return [
        float((off.sum(1) * found.mean**2).sum()),
        float((off * centred**2).sum()),
        float(within_by_class(found).sum()),
        float((found.weights.diagonal() * found.pair.diagonal() ** 2).sum()),
    ]


def project_out(
    operator: SymmetricOperator,
    vectors: Iterable[Tensor],
    *,
    count: int,
    steps: int = 64,
    seed: int = 0,
    memory: int | None = None,
    on_step: Callable[[int, int | None], None] | None = None,
) -> Spectrum:
    """Measure the spectrum of P A P, where P projects vectors out.

    Parameters
    ----------
    operator : SymmetricOperator
        The operator A.
    vectors : iterable of Tensor (p,)
        At most `count` vectors. They are orthonormalised; those in the span of earlier ones are ignored.
    count : int
        Largest number of vectors.
    steps, seed
        See `hesspec.spectrum`.
    memory : int, optional
        Memory for the vectors and the Krylov basis in bytes, half of it for each.

    Raises
    ------
    MemoryError
        If the vectors do not fit on disk, even with half of their bits.
    """
    p, device = operator.shape[0], torch.device(operator.device)
    ranks = getattr(operator, "ranks", ALONE)
    room = (int(ranks.least(free_shares(device, ranks).basis)) if memory is None else memory) // 2
    # Every rank stores the vectors whole, as they are applied to whole Krylov vectors.
    keeping = same_on_all_ranks(ranks, lambda: choose_storage(operator, p, count, "auto", None, room))
    if not isinstance(keeping, Storage):
        raise MemoryError(
            f"{count} vectors of {p:,} numbers, to be projected out, fit neither into {in_words(room)} nor on disk."
        )
    basis = KrylovBasis(Space(p), dtype=operator.dtype, device=device, storage=keeping)
    for vector in vectors:
        unit = vector / norm(vector)
        basis.orthogonalise(unit)
        length = norm(unit)
        # The remainder of a vector in the span of the others is rounding, not a direction.
        if length > np.sqrt(torch.finfo(operator.dtype).eps):
            basis.append(unit / length)
    return spectrum(ProjectedOperator(operator, basis), steps=steps, seed=seed, memory=room, on_step=on_step)


def class_structure(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Iterable[Any],
    params: ParameterSpec = None,
    *,
    classes: Sequence[int] | Tensor | None = None,
    matrices: Sequence[str] = DEFAULT_MATRICES,
    cross: bool = True,
    knockout: bool = True,
    steps: int = 64,
    seed: int = 0,
    memory: str | int | None = None,
    on_spectrum: Callable[[str, Spectrum], None] | None = None,
    on_progress: Progress | None = None,
    progress: bool = True,
    group: dist.ProcessGroup | None = None,
) -> ClassStructure:
    """Measure the class structure of G, and how much of the outliers of Hess, G and H it explains.

    Parameters
    ----------
    model, loss_fn, data, params, classes, group
        See `ClassMeans`, with its conditions. For a language model, `hesspec.frequent_classes` gives `classes`.
    matrices : sequence of str
        Matrices whose outliers are attributed: "Hessian", "GaussNewton", "Residual". For the first two, the C largest
        eigenvalues are included in any case. A spectrum of each is measured, and its eigenvectors take 2 C p numbers.
    cross : bool
        Whether to form the C^2 cross-class means. This is expensive for many classes: the passes cost C/2 Gauss-Newton
        products for each slice of the parameters that fits into memory, and the Gram matrix C^4 p operations. Without
        them there are no eigenvalues of G_cross and no span of cross-class means.
    knockout : bool
        Whether to project the means out of the Hessian, which needs one more spectrum, or two with `cross`.
    steps, seed
        Steps and seed of the spectra; see `hesspec.spectrum`.
    memory : str or int, optional
        Device memory to use in addition to model, data and eigenvectors: "8GB", or a number of bytes.
    on_spectrum : callable, optional
        Called with the name and the spectrum of each matrix as soon as it is measured.
    on_progress : callable, optional
        Called with the current phase, the work done in it, and its total (None if unknown).
    progress : bool
        See `hesspec.spectrum`.

    Returns
    -------
    ClassStructure

    Raises
    ------
    ValueError, NonFiniteError, MemoryError
        See `ClassMeans` and `hesspec.spectrum`.
    """
    for name in matrices:
        if name not in DEFAULT_MATRICES:
            raise ValueError(unknown("matrix", name, DEFAULT_MATRICES))
    with bar_of("class structure", wanted=progress and on_progress is None) as bar:
        say = on_progress or bar or (lambda *_: None)
        return _explained(
            (model, loss_fn, data, params),
            classes,
            matrices,
            cross,
            knockout,
            steps,
            seed,
            memory,
            on_spectrum,
            say,
            group,
        )


def _explained(
    problem: tuple[nn.Module, LossFunction, Iterable[Any], ParameterSpec],
    classes: Sequence[int] | Tensor | None,
    matrices: Sequence[str],
    cross: bool,
    knockout: bool,
    steps: int,
    seed: int,
    memory: str | int | None,
    on_spectrum: Callable[[str, Spectrum], None] | None,
    say: Progress,
    group: dist.ProcessGroup | None,
) -> ClassStructure:
    """See `class_structure`; `say` is told the current phase and the work done in it."""
    start = time.perf_counter()
    # The memory is shared by the structure and one operator at a time.
    each = None if memory is None else parse_memory(memory) // 2
    products, room = (None, None) if each is None else shares_of(each)
    structure = ClassMeans(*problem, classes=classes, memory=each, group=group)
    say("means", 0, None)
    if cross:
        structure.pair_gram  # noqa: B018 - formed first, so that the class means are computed from it
    count = structure.classes
    fields: dict[str, Any] = _of_means(structure, cross=cross)
    predicted = time.perf_counter() - start
    say("traces", 0, None)
    traces = [structure.trace(part) for part in PARTS]
    within, errors = structure.within_traces(seed=seed)
    found: dict[str, tuple[Eigenpairs, npt.NDArray[np.intp], Attribution]] = {}
    for name in matrices:
        operator = operator_class(name)(*problem, memory=products, group=group)
        # H has no class structure.
        least = 0 if name == "Residual" else count
        pairs, places = outlier_pairs(
            operator, classes=count, least=least, steps=steps, seed=seed, memory=room, on_step=_steps_of(say, name)
        )
        if on_spectrum is not None:
            on_spectrum(name, pairs.spectrum)
        found[name] = pairs, places, _attributed(structure, pairs, cross)
        if knockout and name == "Hessian":
            fields |= _knocked_out(structure, operator, pairs, cross, steps, seed, room, say)
    return ClassStructure(
        dimension=structure.dimension,
        classes=count,
        weights=structure.weights,
        **fields,
        ritz_values=structure.ritz_values(),
        traces=np.array([value for value, _ in traces]),
        trace_errors=np.array([error for _, error in traces]),
        within_traces=within,
        within_errors=errors,
        **_of_outliers(found),
        attributes={
            "matrix": "ClassStructure",
            "matrices": " ".join(matrices),
            "steps": steps,
            "seed": seed,
            "dtype": str(structure.dtype).removeprefix("torch."),
            "device": str(structure.device),
            "seconds_means": predicted,
            "seconds": time.perf_counter() - start,
        },
    )


def _of_means(structure: ClassMeans, *, cross: bool) -> dict[str, Any]:
    """Gram matrix of the means, and the eigenvalues computed from it."""
    count = structure.classes
    if cross:
        # All g_c, as combinations of the g_{c,c'}, followed by the g_{c,c'}.
        off = structure.weights * (1 - np.eye(count))
        centres = np.zeros((count, count, count))
        centres[np.arange(count), :, np.arange(count)] = off / off.sum(1, keepdims=True)
        vectors = np.concatenate([centres.reshape(count**2, count), np.eye(count**2)], axis=1)
        gram = vectors.T @ structure.pair_gram @ vectors
        true, other = (axis.ravel() for axis in np.indices((count, count)))
    else:
        gram = structure.class_gram[:count, :count]
        true = other = np.empty(0, dtype=np.int64)
    some = {part: structure.eigenvalues(part) for part in ("class", "same", *(("cross", "sum") if cross else ()))}
    return {
        "gram": gram,
        "gram_true": np.concatenate([np.arange(count), true]),
        "gram_other": np.concatenate([np.full(count, -1), other]),
        **{f"{part}_eigenvalues": values for part, values in some.items()},
    }


def _attributed(structure: ClassMeans, outliers: Eigenpairs, cross: bool) -> Attribution:
    """Attribute eigenpairs; angles are those of the C largest."""
    found = attribute_outliers(structure, outliers, cross=cross)
    if outliers.values.size > structure.classes:
        largest = attribute_outliers(structure, _some(outliers, np.arange(structure.classes)), cross=cross)
        found = replace(found, angles=largest.angles, angle_error=largest.angle_error)
    return found


def _some(pairs: Eigenpairs, chosen: npt.NDArray[np.intp]) -> Eigenpairs:
    return replace(
        pairs,
        values=pairs.values[chosen],
        residuals=pairs.residuals[chosen],
        vector_errors=pairs.vector_errors[chosen],
        vectors=pairs.vectors[:, torch.from_numpy(chosen).to(pairs.vectors.device)],
    )


def _of_outliers(found: Mapping[str, tuple[Eigenpairs, npt.NDArray[np.intp], Attribution]]) -> dict[str, Any]:
    """Attributed eigenvalues and angles of all matrices, concatenated."""

    def joined(parts: Iterable[Any], like: Array) -> Any:
        return np.concatenate([like, *parts])

    def empty(*shape: int) -> Array:
        return np.empty((0, *shape))

    names = [name for name, (pairs, _, _) in found.items() for _ in pairs.values]
    spans = [
        (name, span, angle, attribution.angle_error)
        for name, (_, _, attribution) in found.items()
        for span, angles in attribution.angles.items()
        for angle in angles
    ]
    attributions = [attribution for _, _, attribution in found.values()]
    return {
        "outlier_matrix": np.array(names, dtype=str),
        # Ritz values with their bounds, which hold in a one-to-one pairing; Rayleigh quotients differ by less than
        # these.
        "outliers": joined([pairs.spectrum.eigenvalues[places] for pairs, places, _ in found.values()], empty()),
        "outlier_bounds": joined([pairs.spectrum.error_bounds[places] for pairs, places, _ in found.values()], empty()),
        "outlier_shares": joined([attribution.shares for attribution in attributions], empty(len(SHARES))),
        "outlier_in_class": joined([attribution.in_class for attribution in attributions], empty()),
        "outlier_in_means": joined(
            [a.in_means if a.in_means.size else np.full(a.in_class.size, np.nan) for a in attributions], empty()
        ),
        "outlier_vector_errors": joined([pairs.vector_errors for pairs, _, _ in found.values()], empty()),
        "angle_matrix": np.array([name for name, _, _, _ in spans], dtype=str),
        "angle_span": np.array([span for _, span, _, _ in spans], dtype=str),
        "angles": np.array([angle for _, _, angle, _ in spans]),
        "angle_errors": np.array([error for _, _, _, error in spans]),
    }


def _knocked_out(
    structure: ClassMeans,
    hessian: CurvatureOperator,
    pairs: Eigenpairs,
    cross: bool,
    steps: int,
    seed: int,
    room: int | None,
    say: Progress,
) -> dict[str, Any]:
    """Outliers and bulk edges of the Hessian without the means."""
    spectra = {NOTHING: pairs.spectrum}
    spans: list[Span] = [CLASS_MEANS, ALL_MEANS] if cross else [CLASS_MEANS]
    for span in spans:
        spectra[span] = project_out(
            hessian,
            structure.basis(span),
            count=structure.span(span).shape[1],
            steps=steps,
            seed=seed,
            memory=room,
            on_step=_steps_of(say, f"Hessian without {span}"),
        )
    return {
        "knockout_removed": np.array([name for name, s in spectra.items() for _ in s.outliers], dtype=str),
        "knockout_eigenvalues": np.concatenate([s.outliers for s in spectra.values()]),
        "knockout_bounds": np.concatenate([s.error_bounds[s.is_outlier] for s in spectra.values()]),
        "knockout_edges": np.array([s.bulk_edges for s in spectra.values()], dtype=float),
    }


def _steps_of(say: Progress, what: str) -> Callable[[int, int | None], None]:
    return lambda done, total: say(what, done, total)
