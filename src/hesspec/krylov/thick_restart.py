"""Thick-restart Lanczos: the outermost eigenpairs from a basis of bounded size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.errors import NonFiniteError
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.lanczos import Lanczos
from hesspec.krylov.ritz import RESOLVED
from hesspec.krylov.vectors import inner, norm

__all__ = ["OuterPairs", "thick_restart"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OuterPairs:
    """Resolved eigenpairs, largest absolute value first.

    Attributes
    ----------
    values, residuals : array (k,)
        Eigenvalues and the norms of A y - theta y.
    vectors : KrylovBasis
        Their orthonormal vectors y.
    matvecs : int
        Products in all, those of the first cycle included.
    """

    values: Array
    residuals: Array
    vectors: KrylovBasis
    matvecs: int


def thick_restart(
    lanczos: Lanczos,
    multiply: Callable[[Tensor], Tensor],
    matvecs: int,
    rounding: Callable[[int], float],
) -> OuterPairs:
    """Go on from a Lanczos run whose basis is full: keep the outer half of its Ritz vectors, and fill up again.

    Ends when a cycle resolves no further eigenvalue, when all that can be kept are resolved, or when the products are
    used up.

    Parameters
    ----------
    lanczos : Lanczos
        Of m steps, in a single block, with a basis kept in full precision; its size m bounds that of all cycles.
    multiply : callable
        Product with the operator.
    matvecs : int
        Most products in all.
    rounding : callable
        From a number of steps to their backward error, absolute.

    Raises
    ------
    NonFiniteError
        If a product holds NaN or infinity.

    Notes
    -----
    Wu and Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems" (2000). Beside the basis, the
    kept half of it is in memory while it is rotated.
    """
    size, used = len(lanczos), len(lanczos)
    alpha, beta = lanczos.tridiagonal()
    projected = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    basis, following, residual = lanczos.basis, lanczos.vector, float(beta[-1])
    kept, before = size // 2, -1
    while True:
        values, vectors = np.linalg.eigh(projected)
        order = np.argsort(-np.abs(values), kind="stable")
        values, vectors = values[order], vectors[:, order]
        residuals = residual * np.abs(vectors[-1])
        open_ = residuals + rounding(used) > RESOLVED * np.abs(values)
        resolved = int(np.argmax(open_)) if open_.any() else size
        finished = resolved <= before or resolved >= kept or used + size - kept > matvecs
        count = resolved if finished else kept
        basis = basis.subspace(torch.from_numpy(np.ascontiguousarray(vectors[:, :count])))
        if finished:
            return OuterPairs(values[:count], residuals[:count], basis, used)
        before, couplings = resolved, residual * vectors[-1, :kept]
        projected = np.zeros((size, size))
        projected[:kept, :kept] = np.diag(values[:kept])
        projected[:kept, kept] = projected[kept, :kept] = couplings
        for index in range(kept, size):
            basis.append(following)
            image = multiply(following)
            projected[index, index] = inner(following, image)
            image = image.clone()
            # Twice: the first pass takes away couplings, which are no rounding.
            basis.orthogonalise(image)
            basis.orthogonalise(image)
            residual = norm(image)
            if not np.isfinite(residual):
                raise NonFiniteError(
                    f"Product {used + 1} of the operator with a Lanczos vector holds NaN or infinity; nothing is "
                    "returned."
                )
            used += 1
            if residual <= rounding(1):
                # An invariant subspace: what is in it is exact, and the rest of the basis adds nothing to it.
                values, vectors = np.linalg.eigh(projected[: index + 1, : index + 1])
                order = np.argsort(-np.abs(values), kind="stable")[:kept]
                basis = basis.subspace(torch.from_numpy(np.ascontiguousarray(vectors[:, order])))
                return OuterPairs(values[order], np.zeros(len(order)), basis, used)
            if index + 1 < size:
                projected[index, index + 1] = projected[index + 1, index] = residual
            following = image.div_(residual)
