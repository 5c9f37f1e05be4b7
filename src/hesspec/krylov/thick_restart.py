"""Thick-restart Lanczos: outermost eigenpairs from a basis of bounded size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.errors import NonFiniteError
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.lanczos import Lanczos
from hesspec.krylov.ritz import RESOLVED
from hesspec.krylov.state_dicts import fields
from hesspec.krylov.vectors import Space

__all__ = ["OuterPairs", "ThickRestart"]

Array = npt.NDArray[np.float64]

# State that changes from step to step, with its types.
FIELDS: Final[dict[str, type]] = {
    **dict.fromkeys(("size", "most", "kept", "before", "used"), int),
    **dict.fromkeys(("floor", "residual"), float),
    "projected": np.ndarray,
    "basis": KrylovBasis,
    "next": Tensor,
}


@dataclass(frozen=True)
class OuterPairs:
    """Resolved eigenpairs, largest absolute value first.

    Attributes
    ----------
    values, residuals : array (k,)
        Eigenvalues theta, and residual norms ||A y - theta y||.
    vectors : KrylovBasis
        Orthonormal eigenvectors y.
    matvecs : int
        Total number of products, including those of the first cycle.
    """

    values: Array
    residuals: Array
    vectors: KrylovBasis
    matvecs: int


class ThickRestart:
    """Continuation of a Lanczos run whose basis is full: keep the outer half of its Ritz vectors, and refill the basis.

    It ends when a cycle resolves no further eigenvalue, when as many are resolved as can be kept, or when the products
    are used up.

    Parameters
    ----------
    lanczos : Lanczos
        Run of m steps, in a single block, with a basis stored in full precision; its size m is that of all cycles.
    matvecs : int
        Largest total number of products.

    Attributes
    ----------
    outer : OuterPairs or None
        Result, once the process has ended.

    Notes
    -----
    Wu and Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems" (2000). While the basis is
    rotated, the half that is kept is in memory twice.
    """

    def __init__(self, lanczos: Lanczos, matvecs: int) -> None:
        alpha, beta = lanczos.tridiagonal()
        self._space, self._size, self._most = lanczos.space, len(lanczos), matvecs
        self._floor = lanczos.backward_error(len(lanczos))
        self._projected: Array = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
        self._basis, self._next, self._residual = lanczos.basis, lanczos.vector, float(beta[-1])
        self._kept, self._before, self._used = self._size // 2, -1, self._size
        self.outer: OuterPairs | None = None
        self._turn()

    @classmethod
    def restored(cls, state: dict[str, Any], space: Space) -> ThickRestart:
        """Restore the process from `state`.

        Raises
        ------
        ValueError
            If it is not a valid state.
        """
        given = fields(state, FIELDS)
        size, vectors = given["size"], len(given["basis"])
        if given["projected"].shape != (size, size) or not 0 <= given["kept"] <= vectors < size:
            raise ValueError("a restarted basis and its matrix do not match")
        process = cls.__new__(cls)
        process.outer = None
        for name, value in {**given, "space": space}.items():
            setattr(process, f"_{name}", value)
        return process

    def state(self) -> dict[str, Any]:
        """State from which an unfinished process can be resumed."""
        return {name: getattr(self, f"_{name}") for name in FIELDS}

    def rounding(self, steps: int) -> float:
        """Rounding as in `Lanczos.backward_error`, for the larger number of steps."""
        return float(np.sqrt(steps / self._size)) * self._floor

    @property
    def vector(self) -> Tensor:
        """Vector (p,) whose product with the operator the next step needs."""
        return self._next

    def step(self, image: Tensor) -> None:
        """Take the product of the operator with `vector`.

        Raises
        ------
        NonFiniteError
            If the product contains NaN or infinity.
        """
        index, basis, projected = len(self._basis), self._basis, self._projected
        basis.append(self._next)
        projected[index, index] = self._space.inner(self._next, image)
        image = image.clone()
        # Twice: the first pass removes couplings, which are not due to rounding.
        basis.orthogonalise(image)
        basis.orthogonalise(image)
        self._residual = self._space.norm(image)
        if not np.isfinite(self._residual):
            raise NonFiniteError(
                f"Product {self._used + 1} of the operator with a Lanczos vector contains NaN or infinity; no "
                "result is returned."
            )
        self._used += 1
        if self._residual <= self.rounding(1):
            # An invariant subspace: its eigenpairs are exact, and the rest of the basis adds nothing.
            values, vectors = np.linalg.eigh(projected[: index + 1, : index + 1])
            order = np.argsort(-np.abs(values), kind="stable")[: self._kept]
            self._end(values[order], np.zeros(len(order)), vectors[:, order])
            return
        self._next = image.div_(self._residual)
        if index + 1 < self._size:
            projected[index, index + 1] = projected[index + 1, index] = self._residual
        else:
            self._turn()

    def _turn(self) -> None:
        """Rotate the full basis to its outer Ritz vectors, or end."""
        values, vectors = np.linalg.eigh(self._projected)
        order = np.argsort(-np.abs(values), kind="stable")
        values, vectors = values[order], vectors[:, order]
        residuals = self._residual * np.abs(vectors[-1])
        open_ = residuals + self.rounding(self._used) > RESOLVED * np.abs(values)
        resolved = int(np.argmax(open_)) if open_.any() else self._size
        kept = self._kept
        if resolved <= self._before or resolved >= kept or self._used + self._size - kept > self._most:
            self._end(values[:resolved], residuals[:resolved], vectors[:, :resolved])
            return
        self._rotate(vectors[:, :kept])
        self._before, couplings = resolved, self._residual * vectors[-1, :kept]
        self._projected = np.zeros((self._size, self._size))
        self._projected[:kept, :kept] = np.diag(values[:kept])
        self._projected[:kept, kept] = self._projected[kept, :kept] = couplings

    def _rotate(self, vectors: Array) -> None:
        self._basis = self._basis.subspace(torch.from_numpy(np.ascontiguousarray(vectors)))

    def _end(self, values: Array, residuals: Array, vectors: Array) -> None:
        self._rotate(vectors)
        self.outer = OuterPairs(values, residuals, self._basis, self._used)
