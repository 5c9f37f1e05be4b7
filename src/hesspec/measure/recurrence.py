r"""Eigenpairs of one Krylov run whose residuals follow from its recurrence, without products.

A run has A Q = Q T + beta q e^T + F with q orthogonal to Q, and F up to rounding along Q: what reorthogonalisation has
removed. With Q = N R, N orthonormal, R upper triangular, F vanishes from A N = N T + beta q e^T / R_mm up to rounding
(see `Lanczos`). So for V = N S, S the eigenvectors of T with T S = S D, the matrix of residuals is of rank one,

.. math:: A V - V D = \beta \, q \, (e^\top S) ,

up to `Spectrum.rounding` and the rounding of V. In the basis of a restarted run, or in one stored with half of the
bits, Ritz vectors have errors that the recurrence does not know: there the residuals are measured, with one product for
each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hesspec.backend.algebra import SymmetricOperator
from hesspec.backend.arithmetic import full_float32
from hesspec.backend.bars import steps_of
from hesspec.backend.heap import returned_memory
from hesspec.krylov.lanczos_state import rounding_unit
from hesspec.krylov.ritz import Array
from hesspec.krylov.storage import Storage
from hesspec.measure.eigenpairs import pairs_of
from hesspec.measure.runs import name_of, run_spectrum
from hesspec.spectra.sampling import residual_bound
from hesspec.spectra.spectrum import Spectrum

__all__ = ["ResolvedPairs", "resolved_pairs"]


@dataclass(frozen=True)
class ResolvedPairs:
    """Resolved eigenpairs of largest absolute value, and the spectrum of the same run.

    Attributes
    ----------
    values : array (k,)
        Approximate eigenvalues d.
    vectors : Tensor (p, k)
        Approximate eigenvectors V, orthonormal columns.
    residuals : array (k,)
    rounding : float
        A V - V D = R + F with column norms of R at most `residuals`, and ||F||_F at most `rounding`. If R is from the
        recurrence, it has rank one, so its norm is that of `residuals`.
    products : int
        Products beyond those of the spectrum.
    spectrum : Spectrum
    """

    values: Array
    vectors: Tensor
    residuals: Array
    rounding: float
    products: int
    spectrum: Spectrum


@returned_memory()
@full_float32()
def resolved_pairs(operator: SymmetricOperator, *, count: int, steps: int, seed: int) -> ResolvedPairs:
    """Measure a spectrum, and return it with at most `count` of its resolved eigenpairs; see `hesspec.eigenpairs`."""
    with steps_of(f"eigenpairs of {name_of(operator)}", None, wanted=True) as shown:
        run, found = run_spectrum(operator, steps, 1, seed, 0.0, None, "auto", None, shown, count)
    k, unit = len(run.top), rounding_unit(operator.dtype) * found.norm
    if isinstance(run.keeping, Storage) and not run.keeping.half:
        values, products = found.eigenvalues[:k], 0
        residuals = np.array([_residual(found, place) for place in range(k)])
        # Columns that are contiguous in memory are written, and read one by one, at its speed.
        vectors = torch.empty(k, found.dimension, dtype=operator.dtype, device=operator.device).T
        for i in range(k):
            vectors[:, i] = run.space.ranks.whole(run.top[i], run.space.size)
        # Rounding of the steps, and of the entries of V.
        rounding = (found.rounding + unit * np.sqrt(k)) * (k > 0)
    else:
        pairs = pairs_of(run, found, np.arange(k))
        values, residuals, vectors, rounding, products = pairs.values, pairs.residuals, pairs.vectors, 0.0, k
    return ResolvedPairs(values, vectors, residuals, float(rounding), products, found)


def _residual(found: Spectrum, place: int) -> float:
    """Residual norm of a resolved Ritz pair in exact arithmetic; its error bound if it is of a later block."""
    value, bound = found.eigenvalues[place], float(found.error_bounds[place])
    if (found.ritz_values == value).any():
        bound = min(bound, residual_bound(found, value))
    return max(bound - found.rounding, 0.0)
