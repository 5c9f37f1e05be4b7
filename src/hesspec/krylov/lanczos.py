"""Lanczos recurrence, restarted in the complement of an invariant subspace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.backend.text import kind_of
from hesspec.errors import NonFiniteError
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.lanczos_state import LanczosState, StepErrors, rounding_unit
from hesspec.krylov.reorthogonalisation import SEMI, Reorthogonalisation
from hesspec.krylov.scaling import smallest_number
from hesspec.krylov.state_dicts import restored, state_of
from hesspec.krylov.storage import Storage
from hesspec.krylov.vectors import Space, reduce_and_scale

__all__ = ["Lanczos", "check_product"]


def check_product(q: Tensor, image: Any) -> Tensor:
    """Check the product with this vector and return it without a graph; raises ValueError if it is invalid."""
    if not isinstance(image, Tensor) or image.shape != q.shape or image.dtype != q.dtype:
        seen = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else kind_of(image)
        raise ValueError(
            f"The product of the operator with a {tuple(q.shape)} {q.dtype} tensor is {seen}; it must have the "
            "same shape and dtype."
        )
    return image.detach()


class Lanczos:
    """Lanczos process A Q = Q T + beta_m q_{m+1} e_m^T, step by step, with Q at least semi-orthogonal.

    If the Krylov space becomes invariant before the dimension is reached, the process continues from a new random
    vector in its complement: T is then block diagonal, with a start vector for each block.

    Parameters
    ----------
    start : Tensor (p,)
        Start vector, not necessarily normalised. In a sharded space, this and all other vectors are this rank's slices.
    generator : torch.Generator
        Generator for start vectors of later blocks.
    deflated : KrylovBasis, optional
        Orthonormal vectors to which everything is kept orthogonal: the process is then that of P A P with P the
        projector onto their complement.
    norm : float
        Lower bound on ||A||, as P A P may be smaller: rounding of products is relative to ||A||.
    storage : Storage, optional
        How the basis is stored; if None, it is not stored, and the process ends when semi-orthogonality is lost.
    partial : bool
        Reorthogonalise only when the omega recurrence predicts that semi-orthogonality, |q_j . q_k| <= sqrt(eps), would
        be lost, each time the last two vectors together; otherwise in every step.
    space : Space, optional
        The space R^p, if its vectors are sharded.

    Notes
    -----
    Lanczos 1950; full reorthogonalisation as in Golub and Van Loan, Matrix Computations, 10.3; partial as in Simon
    1984. Let Q = N R with N orthonormal, R = I + U, U upper triangular and of the size omega of the inner products. To
    first order in omega the entries of N^T A N below the diagonal are those of T whatever reorthogonalisation removed,
    and so are those above it by symmetry; the diagonal differs by beta_j (q_j . q_{j+1}). So neighbours must be
    orthogonal to working precision (ensured in each step by a vector in full precision), and all others to sqrt(eps),
    which leaves omega^2 ||A|| = eps ||A||. By the same argument the basis can be stored with half of the bits.

    If two consecutive random vectors in the complement are eigenvectors up to rounding, the operator is assumed to be a
    multiple of the identity there: the norm of (A - a I) v, for v uniform on the sphere of R^q, is the root-mean-square
    distance of q eigenvalues from a times a factor that is below 1/x with probability at most 0.8/x, for each vector
    separately. A single eigenvalue is only known to sqrt(q) times that, as a random vector contains 1/q of it.
    """

    def __init__(
        self,
        start: Tensor,
        generator: torch.Generator,
        *,
        deflated: KrylovBasis | None = None,
        norm: float = 0.0,
        storage: Storage | None,
        partial: bool = False,
        space: Space | None = None,
    ) -> None:
        space = Space(len(start)) if space is None else space
        basis = KrylovBasis(space, dtype=start.dtype, device=start.device, storage=storage)
        errors = StepErrors(norm, underflow=space.size * smallest_number(start.dtype, start.device))
        state = LanczosState(storage is not None, basis, errors)
        self._take(state, generator, space, deflated, partial=partial)
        self._begin_block(start.clone())

    def _take(
        self,
        state: LanczosState,
        generator: torch.Generator,
        space: Space,
        deflated: KrylovBasis | None,
        *,
        partial: bool,
    ) -> None:
        self._state, self._generator, self.space, self._deflated = state, generator, space, deflated
        self._dimension = space.size - (len(deflated) if deflated is not None else 0)
        self._reorthogonalisation = Reorthogonalisation(space, state, partial=partial or not state.keeps)

    # The recurrence ---------------------------------------------------------------------------------------------------

    @property
    def vector(self) -> Tensor:
        """Vector (p,) whose product with the operator the next step needs, and which that step may change in place.

        Raises
        ------
        RuntimeError
            If the process has finished.
        """
        if self.finished or self._state.next is None:
            raise RuntimeError("The Lanczos process is exhausted: its basis fills the whole space.")
        return self._state.next

    def step(self, image: Tensor, error: float = 0.0, underflow: float | None = None) -> None:
        """Advance by one step, given the product of the operator with `vector`.

        Parameters
        ----------
        image : Tensor (p,)
        error : float
            Norm of the known error of this product.
        underflow : float, optional
            Bound on the norm of its underflow error, if it was scaled; by default p times the smallest number.

        Raises
        ------
        ValueError
            If the product is not a tensor like the vector.
        NonFiniteError
            If the product contains NaN or infinity.
        NotSymmetricError
            If the operator is not symmetric.
        RuntimeError
            If the process has finished.
        """
        q, state, t = self.vector, self._state, self._state.tridiagonal
        image = check_product(q, image)
        alpha, length = self.space.inner_and_norm(q, image)
        if not np.isfinite(length):
            raise NonFiniteError(
                f"The product of the operator with Lanczos vector {state.steps + 1} holds NaN or infinity; nothing is "
                "returned."
            )
        state.errors.record(length, error, underflow)
        # w = A q - alpha q - beta q_last, with w·q and ||w||
        terms = [(-alpha, q)]
        if state.steps > t.starts[-1] and state.last is not None:
            terms.append((-t.beta[-1], state.last))
        w, along, length = self.space.combine(image, terms, q)
        if self._deflated is not None:
            # After the recurrence, not before it: rounding errors along the deflated vectors would be propagated and
            # grow like its polynomials at 0, without limit if 0 is outside the spectrum.
            self._deflated.orthogonalise(w)
            along, length = self.space.inner_and_norm(q, w)
        t.alpha.append(alpha)
        share, beta, state.spent = self._reorthogonalisation.apply(w, q, along, length)
        if self._deflated is not None and beta <= torch.finfo(self.dtype).eps ** SEMI * state.errors.scale:
            # The deflated vectors and the basis are orthogonal only to some accuracy, and their remaining components
            # can dominate so short a vector.
            w.add_(q, alpha=-share)
            self._deflated.orthogonalise(w)
            share, beta = 0.0, self.space.norm(w)
        if state.steps == self._dimension:
            t.beta.append(0.0)
            state.exhausted = True
        elif beta <= self._negligible():
            self._end_block(beta)
        else:
            t.beta.append(beta)
            state.last, state.next = q, reduce_and_scale(w, share, q, beta)

    def _negligible(self) -> float:
        """Norm up to which a residual is only rounding, of a step and of the stored basis.

        Components of size omega ||A|| are removed along vectors that have the error of their storage.
        """
        errors, known = self._state.errors, self._state.orthogonality
        return max(max(rounding_unit(self.dtype), known.largest * known.kept) * errors.scale, errors.underflow)

    # Blocks -----------------------------------------------------------------------------------------------------------

    def _end_block(self, residual: float) -> None:
        """End a block, whose space is invariant up to a residual, and start another one if possible."""
        state, starts, index = self._state, self.starts, len(self) - 1
        state.errors.defect = max(state.errors.defect, residual)
        state.tridiagonal.beta.append(0.0)
        if index == starts[-1] and len(starts) > 2 and index - starts[-2] == 1:
            state.exhausted, state.rest = True, self._dimension - len(self)
        elif state.keeps:
            device = self.basis.device
            self._begin_block(self.space.random_vector(self._generator, dtype=self.dtype, device=device))
        else:
            state.spent = True

    def _begin_block(self, start: Tensor) -> None:
        state = self._state
        self.starts.append(len(self))
        # A start vector loses most of its length if the complement is small: three passes.
        for _ in range(3):
            start.div_(self.space.norm(start))
            if self._deflated is not None:
                self._deflated.orthogonalise(start)
            state.basis.orthogonalise(start)
        state.last, state.next = None, start.div_(self.space.norm(start))
        kept = state.basis.kept_error(state.next, 1.0)
        self._reorthogonalisation.estimate.replace(torch.finfo(self.dtype).eps + kept)

    # What is known ----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of steps so far."""
        return self._state.steps

    def tridiagonal(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Diagonal (m,) and off-diagonal (m,) of T; the last off-diagonal entry is the residual's norm."""
        return np.array(self._state.tridiagonal.alpha), np.array(self._state.tridiagonal.beta)

    def backward_error(self, steps: int) -> float:
        """Bound on the spectral norm of A Q - Q T - beta q e^T for the first steps, absolute."""
        return self._state.errors.backward_error(steps, rounding_unit(self.dtype), self._state.orthogonality.largest)

    @property
    def basis(self) -> KrylovBasis:
        """Lanczos vectors that have been multiplied; empty if they are not stored."""
        return self._state.basis

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the vectors."""
        return self._state.basis.dtype

    @property
    def starts(self) -> list[int]:
        """First index of each block; the off-diagonal entry of T before it is zero."""
        return self._state.tridiagonal.starts

    @property
    def passes(self) -> float:
        """Number of reorthogonalisations, of one or two vectors; fractional if against a part of the basis."""
        return self._state.orthogonality.passes

    @property
    def rest(self) -> int:
        """Dimension of the space, beyond the basis, on which the operator is known to be a multiple of the identity.

        It is 0 if the basis fills the space; the eigenvalue is the last one of T.
        """
        return self._state.rest

    @property
    def exhausted(self) -> bool:
        """Whether the basis fills the space, or the operator is known to be a multiple of the identity on the rest."""
        return self._state.exhausted

    @property
    def spent(self) -> bool:
        """Whether the process ended because the basis is not stored."""
        return self._state.spent

    @property
    def finished(self) -> bool:
        """Whether there is no further step."""
        return self._state.finished

    # Snapshots --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """State from which the process resumes, apart from generator, deflated vectors and space."""
        kept = self._state
        if kept.keeps and not kept.basis.rounded:
            # It is the last row of the basis.
            kept = replace(kept, last=None)
        return {**state_of(kept), "estimate": self._reorthogonalisation.estimate.state()}

    @classmethod
    def restored(
        cls,
        state: Any,
        generator: torch.Generator,
        space: Space,
        *,
        deflated: KrylovBasis | None = None,
        partial: bool,
    ) -> Lanczos:
        """Restore the process from `state`; it resumes bit for bit.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is not a valid state.
        """
        kept = restored(LanczosState, state)
        kept.check()
        if kept.last is None and kept.steps > kept.tridiagonal.starts[-1]:
            kept.last = kept.basis[len(kept.basis) - 1]
        process = cls.__new__(cls)
        process._take(kept, generator, space, deflated, partial=partial)  # noqa: SLF001 - it is of this class
        estimate = process._reorthogonalisation.estimate  # noqa: SLF001
        estimate.restore(state["estimate"])
        if estimate.steps != kept.steps and not kept.finished:
            raise ValueError(f"a Lanczos process of {kept.steps} steps has an estimate of {estimate.steps}")
        return process
