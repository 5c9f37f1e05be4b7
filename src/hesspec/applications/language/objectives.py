"""Curvature of several objectives at the same weights: `hesspec.language.compare_objectives`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, Final

import numpy as np
from torch import nn

from hesspec.applications.language.objectives_record import ObjectiveComparison
from hesspec.backend.numbers import check_counts
from hesspec.measure.eigenpairs import Eigenpairs, eigenpairs
from hesspec.measure.eigenspaces import PrincipalCosines, eigenspace_errors, principal_cosines
from hesspec.operators import GaussNewton, Hessian, Residual, SecondMoment
from hesspec.operators.base import CurvatureOperator
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec, select_parameters
from hesspec.spectra.record import Array

__all__ = ["compare_objectives"]

MATRICES: dict[str, type[CurvatureOperator]] = {
    kind.__name__: kind for kind in (GaussNewton, Hessian, Residual, SecondMoment)
}
# Largest sine of the angle between a computed and the true eigenspace at which angles between spaces are reported.
KNOWN: Final = 0.1
Objective = tuple[nn.Module, LossFunction, Iterable[Any]]


def compare_objectives(
    objectives: Mapping[str, Objective],
    params: ParameterSpec = None,
    *,
    matrices: Iterable[str] = ("GaussNewton", "Hessian"),
    count: int = 10,
    steps: int = 64,
    seed: int = 0,
) -> ObjectiveComparison:
    """Compare the curvature of several objectives with respect to the same weights.

    Parameters
    ----------
    objectives : mapping of str to (model, loss_fn, data)
        Objectives by name, each as for `hesspec.Hessian`, such as imitation (a language model, the cross-entropy of
        tokens), binary (`ValueHead`, `BCEWithLogitsLoss`) and ranked (`Pairwise` of it, `CrossEntropyLoss`). Their
        models share a backbone.
    params : optional
        The shared weights, as for `hesspec.Hessian`: best the backbone itself, as names differ between the models. By
        default all parameters of each model.
    matrices : iterable of str
        Names of matrices: "GaussNewton", "Hessian", "Residual", "SecondMoment".
    count : int
        Largest number of eigenvalues and of dimensions of the eigenspaces that are compared.
    steps, seed : int
        See `hesspec.eigenpairs`.

    Returns
    -------
    ObjectiveComparison
        Largest eigenvalues with bounds, traces, effective ranks and numbers of outliers, and for each pair of
        objectives the principal angles between the spaces of the largest eigenvalues. The dimension of these spaces is
        the largest one, up to `count`, at which both are known to an angle with a sine of 0.1: more steps give more.

    Raises
    ------
    ValueError
        If there are no objectives, an argument is out of range, the parameters of two objectives are not the same
        tensors, or for the reasons of `hesspec.eigenpairs`.

    Notes
    -----
    Each matrix of each objective takes `steps` + `count` products, and its eigenvectors `count` p numbers of memory
    until all have been compared. Losses are in their own units: compare traces and eigenvalues of objectives by their
    ratios.
    """
    kinds = list(matrices)
    unknown = [name for name in kinds if name not in MATRICES]
    if unknown or not kinds:
        raise ValueError(f"matrices is {kinds}; it must list some of {', '.join(MATRICES)}.")
    if not isinstance(objectives, Mapping) or not objectives:
        raise ValueError("objectives must be a mapping of names to (model, loss_fn, data), with at least one of them.")
    check_counts(count=count)
    if params is not None and not isinstance(params, str | nn.Module | nn.Parameter):
        params = list(params)  # read once for each objective
    _check_shared(objectives, params)
    measured: dict[tuple[str, str], Eigenpairs] = {}
    for name, (model, loss_fn, data) in objectives.items():
        for kind in kinds:
            operator = MATRICES[kind](model, loss_fn, data, params)
            measured[name, kind] = eigenpairs(operator, count=int(count), steps=steps, seed=seed)
    pairs = [(one, other, kind) for kind in kinds for one, other in combinations(objectives, 2)]
    angles = [_cosines(measured[one, kind], measured[other, kind]) for one, other, kind in pairs]
    spectra = [found.spectrum for found in measured.values()]
    first, second, of = (np.array([pair[side] for pair in pairs], dtype=str) for side in range(3))
    cosines, low, high = (_padded([getattr(a, name) for a in angles], count) for name in ("values", "low", "high"))
    return ObjectiveComparison(
        objective=np.array([name for name, _ in measured]),
        matrix=np.array([kind for _, kind in measured]),
        eigenvalues=_padded([found.values for found in measured.values()], count),
        bounds=_padded([found.residuals for found in measured.values()], count),
        traces=np.array([spectrum.trace for spectrum in spectra]),
        trace_errors=np.array([spectrum.trace_standard_error for spectrum in spectra]),
        effective_ranks=np.array([spectrum.effective_rank for spectrum in spectra]),
        outliers=np.array([int(spectrum.is_outlier.sum()) for spectrum in spectra], dtype=np.int64),
        first=first,
        second=second,
        pair_matrix=of,
        cosines=cosines,
        low=low,
        high=high,
        dimension=spectra[0].dimension,
        attributes={"seed": seed, "steps": steps},
    )


def _check_shared(objectives: Mapping[str, Objective], params: ParameterSpec) -> None:
    """Reject objectives with respect to other tensors, or to the same ones in another order."""
    first, *others = objectives
    wanted = [id(value) for value in select_parameters(objectives[first][0], params).values()]
    for name in others:
        if [id(value) for value in select_parameters(objectives[name][0], params).values()] != wanted:
            raise ValueError(
                f"The parameters of {first!r} and {name!r} are not the same tensors in the same order, so that their "
                "eigenvectors cannot be compared; let both models contain one backbone, and pass it as params=."
            )


def _cosines(first: Eigenpairs, second: Eigenpairs) -> PrincipalCosines:
    """Return the angles between the largest spaces that are known; none if no space of both is."""
    most = min(first.values.size, second.values.size)
    known = 0
    if most:
        errors = np.maximum(eigenspace_errors(first, most), eigenspace_errors(second, most))
        known = int(np.flatnonzero(errors <= KNOWN).max(initial=-1)) + 1
    if not known:
        return PrincipalCosines(np.empty(0), np.empty(0), np.empty(0), (1.0, 1.0))
    return principal_cosines(first, second, known)


def _padded(rows: list[Array], count: int) -> Array:
    found = np.full((len(rows), int(count)), np.nan)
    for row, values in zip(found, rows, strict=True):
        row[: values.size] = values
    return found
