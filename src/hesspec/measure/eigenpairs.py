"""Eigenpairs of the largest resolved eigenvalues, with the spectrum of the same run: `hesspec.eigenpairs`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.backend.algebra import SymmetricOperator
from hesspec.backend.bars import steps_of
from hesspec.backend.heap import returned_memory
from hesspec.backend.number_text import plus_minus
from hesspec.backend.numbers import check_counts
from hesspec.backend.shown import Shown, TextTable
from hesspec.krylov.lanczos_state import rounding_unit
from hesspec.krylov.ritz import Array
from hesspec.krylov.run import KrylovRun, OnStep
from hesspec.matrices import symbol_of
from hesspec.measure.runs import name_of, run_spectrum
from hesspec.spectra.sampling import residual_bound
from hesspec.spectra.spectrum import Spectrum

__all__ = ["Eigenpairs", "eigenpairs", "outlier_pairs", "pairs_of"]


@dataclass(frozen=True, repr=False)
class Eigenpairs(Shown):
    """Eigenvectors of the resolved eigenvalues with the largest absolute value, and the spectrum of the same run.

    Attributes
    ----------
    values : array (k,)
        Rayleigh quotients v^T A v, largest absolute value first.
    residuals : array (k,)
        Measured ||A v - value v||, plus an allowance for rounding: each value is at most this far from an eigenvalue.
    vector_errors : array (k,)
        Bound on the sine of the angle between v and the eigenvector, residual / gap (Davis and Kahan 1970). The gap is
        the distance to the nearest other eigenvalue or node of the spectrum, minus the error bound of that one. The
        bound is 1 if it gives no information, as for an eigenvalue that is known to be multiple. It holds if no
        eigenvalue in the gap was missed.
    vectors : Tensor (p, k)
        Unit eigenvectors, one per column.
    spectrum : Spectrum
        Spectrum from the same run.
    """

    values: Array
    residuals: Array
    vector_errors: Array
    vectors: Tensor
    spectrum: Spectrum

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "matrix": symbol_of(str(self.spectrum.attributes.get("matrix", "operator"))),
            "parameters": f"{self.spectrum.dimension:,}",
            "eigenvectors": f"{self.values.size}, {self.vectors.dtype} on {self.vectors.device}",
        }

    def tables(self) -> list[TextTable]:
        """Table of the eigenvalues."""
        numbers = zip(self.values, self.residuals, self.vector_errors, strict=True)
        rows = [
            (str(rank), plus_minus(value, residual), f"{error:.2g}")
            for rank, (value, residual, error) in enumerate(numbers, 1)
        ]
        return [TextTable("", ("", "eigenvalue", "error of the eigenvector"), rows)]


@returned_memory()
def eigenpairs(
    operator: SymmetricOperator,
    *,
    count: int,
    steps: int = 64,
    seed: int = 0,
    memory: str | int | None = None,
    basis: str = "auto",
    offload: str | None = None,
    on_step: OnStep | None = None,
    progress: bool = True,
) -> Eigenpairs:
    """Measure a spectrum, and return it with the eigenvectors of its largest resolved eigenvalues.

    Parameters
    ----------
    operator, steps, seed, memory, basis, offload, on_step, progress
        See `spectrum`.
    count : int
        Largest number of eigenvectors, by absolute eigenvalue; fewer are returned if fewer are resolved. Each needs
        one more product and p numbers of memory.

    Returns
    -------
    Eigenpairs

    Raises
    ------
    ValueError, NonFiniteError, MemoryError
        See `spectrum`.

    Examples
    --------
    >>> import torch, hesspec
    >>> operator = torch.diag(torch.cat([torch.linspace(-0.1, 0.1, 300), torch.tensor([5.0, 9.0])]))
    >>> pairs = hesspec.eigenpairs(operator, count=2, steps=32)
    >>> pairs.values.round(4), pairs.vectors[-1].abs().round(decimals=4)
    (array([9., 5.]), tensor([1., 0.]))
    """
    check_counts(count=count)
    with steps_of(f"eigenpairs of {name_of(operator)}", on_step, wanted=progress) as shown:
        run, found = run_spectrum(operator, steps, 1, seed, 0.0, memory, basis, offload, shown, int(count))
    return pairs_of(run, found, np.arange(len(run.top)))


@returned_memory()
def outlier_pairs(
    operator: SymmetricOperator,
    *,
    classes: int,
    least: int,
    steps: int = 64,
    seed: int = 0,
    memory: str | int | None = None,
    on_step: OnStep | None = None,
) -> tuple[Eigenpairs, npt.NDArray[np.intp]]:
    """Measure the eigenpairs of the outliers among the 2 C largest eigenvalues, and of the `least` largest in any case.

    Late in training the C eigenvalues of the class structure may blend into the tail of the bulk.

    Returns
    -------
    pairs : Eigenpairs
    places : int array (n,)
        Their indices in the spectrum.
    """
    run, found = run_spectrum(operator, steps, 1, seed, 0.0, memory, "auto", None, on_step, 2 * classes)
    found = replace(found, attributes={**found.attributes, "classes": classes})
    chosen = np.flatnonzero(found.is_outlier[: len(run.top)] | (np.arange(len(run.top)) < least))
    return pairs_of(run, found, chosen), chosen


def pairs_of(run: KrylovRun, found: Spectrum, chosen: npt.NDArray[np.intp]) -> Eigenpairs:
    """Compute selected eigenpairs of the largest resolved eigenvalues, with one product for each."""
    operator, space = run.operator, run.space
    slices = torch.empty(space.length, chosen.size, dtype=operator.dtype, device=operator.device)
    values, residuals = np.empty(chosen.size), np.empty(chosen.size)
    for i, index in enumerate(chosen):
        vector = run.top[int(index)]
        slices[:, i] = vector / space.norm(vector)
    products = operator @ slices if chosen.size else slices
    for i, (vector, product) in enumerate(zip(slices.T, products.T, strict=True)):
        values[i] = space.inner(vector, product)
        residuals[i] = space.norm(product - values[i] * vector)
    # Largest part of a residual that rounding and other errors of products may hide.
    floor = max(rounding_unit(operator.dtype) * found.norm, found.rounding / math.sqrt(found.steps))
    values, residuals = operator.restore(values), operator.restore(residuals) + floor
    vectors = slices
    if space.ranks.size > 1:
        vectors = torch.empty(space.size, chosen.size, dtype=operator.dtype, device=operator.device)
        for i, vector in enumerate(slices.T):
            vectors[:, i] = space.ranks.whole(vector, space.size)
    errors = _vector_errors(found, chosen, values, residuals)
    # The eigenvector of an eigenvalue that is or may be multiple is not unique.
    errors[~run.simple[chosen]] = 1.0
    return Eigenpairs(values, residuals, errors, vectors, found)


def _vector_errors(found: Spectrum, chosen: npt.NDArray[np.intp], values: Array, residuals: Array) -> Array:
    """Residual over gap, where the gap is the smallest distance to another point of the measure."""
    points = np.concatenate([found.eigenvalues, found.bulk_nodes])
    radii = np.concatenate([found.error_bounds, [residual_bound(found, node) for node in found.bulk_nodes]])
    distances = np.abs(points - values[:, None]) - radii
    distances[np.arange(chosen.size), chosen] = np.inf
    gaps = distances.min(axis=1, initial=np.inf)
    return np.asarray(np.divide(residuals, gaps, out=np.ones(chosen.size), where=residuals < gaps))
