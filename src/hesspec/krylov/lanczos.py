"""The Lanczos process, reorthogonalised as much as it needs, restarted in the complement of an invariant subspace."""

from __future__ import annotations

import math
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.errors import NonFiniteError, NotSymmetricError
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.orthogonality import OrthogonalityEstimate
from hesspec.krylov.scaling import smallest_number
from hesspec.krylov.state import fields
from hesspec.krylov.storage import Storage
from hesspec.krylov.vectors import Space, norm, reduce_and_scale

__all__ = ["Lanczos", "check_product", "rounding_unit"]

# Backward error of a step in units of eps ||A||, such that that of m steps is at most sqrt(m) times it. Measured on
# dense operators of all kinds of spectrum (p <= 300, both precisions, any number of steps): ||A Q - Q T - beta q e^T||
# was at most 3.0 sqrt(m) eps ||A|| in 10,000 runs (a residual dropped as rounding, up to STEP_ERROR in one step, being
# part of it); the error of an eigenvalue was at most 2.4 sqrt(m) eps ||A|| in those of 13,500 more that took p steps. A
# single step can take more, up to 6.7 there and 7.4 at p = 3,000, growing like sqrt(p) with the sums in a product;
# steps do not conspire.
# What the forward pass of a network rounds off is not in it, as that changes the matrix and not the steps: from float64
# to float32 the top eigenvalues of small networks moved by 0.4 (untrained) to 6 eps ||A|| (fitted to a loss of 1e-3).
STEP_ERROR = 4.0
# Asymmetry beyond ||A|| times this power of eps, half of the digits, cannot be rounding, whose share is near eps.
ASYMMETRY = 0.5
# Semi-orthogonality: inner products of at most eps to this power leave eps in T (Simon 1984).
SEMI = 0.5
# Reorthogonalisation looks at the vectors whose inner products are beyond eps to this power (Larsen 1998).
APART = 0.75
# The first steps are reorthogonalised whatever the estimate: they cost little, and show an operator's asymmetry.
WATCHED = 8
# What changes from step to step, besides vectors, and its types.
FIELDS: dict[str, type] = {
    **dict.fromkeys(("alpha", "beta", "starts", "_lengths"), list),
    **dict.fromkeys(("defect", "noise", "scale", "orthogonality", "passes", "_worst", "_kept", "_underflow"), float),
    **dict.fromkeys(("exhausted", "spent", "_keeps"), bool),
    **dict.fromkeys(("rest", "_streak"), int),
}


def rounding_unit(dtype: torch.dtype) -> float:
    """Backward error of a Lanczos step relative to ||A||, `STEP_ERROR` eps."""
    return STEP_ERROR * torch.finfo(dtype).eps


def check_product(q: Tensor, image: Any) -> Tensor:
    """The product with this vector, without a graph; ValueError where it is not one."""
    if not isinstance(image, Tensor) or image.shape != q.shape or image.dtype != q.dtype:
        seen = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
        raise ValueError(
            f"The product of the operator with a {tuple(q.shape)} {q.dtype} tensor is {seen}; it has to be of the "
            "same shape and dtype."
        )
    return image.detach()


class Lanczos:
    """A Q = Q T + beta_m q_{m+1} e_m^T, step by step, with Q semi-orthogonal at least.

    When the Krylov space becomes invariant before the dimension is reached, the process goes on from a new random
    vector in its complement: T is then block diagonal, and each block belongs to a start vector of its own.

    Parameters
    ----------
    start : Tensor (p,)
        Start vector; need not be normalised. Of a sharded space, as all vectors here, this rank's slice of it.
    generator : torch.Generator
        For start vectors of later blocks.
    deflated : KrylovBasis, optional
        Orthonormal vectors that everything is kept orthogonal to: the process then is that of P A P, P the projector
        onto their complement.
    norm : float
        ||A|| from below, where P A P may be smaller: products round off what is relative to it.
    storage : Storage, optional
        How the basis is kept; without it none is, and the process ends where its vectors cease to be semi-orthogonal.
    partial : bool
        Reorthogonalise only where the omega recurrence says that semi-orthogonality, |q_j . q_k| <= sqrt(eps), would
        be lost, twice in a row each time; else in every step.
    space : Space, optional
        R^p, where its vectors are sharded.

    Attributes
    ----------
    alpha, beta : list of float
        Diagonal of T; off-diagonal, beta[j] between j and j + 1, the last being the residual's norm. Zero between
        blocks.
    starts : list of int
        First index of each block.
    basis : KrylovBasis
    passes : float
        Number of steps that were reorthogonalised, those against a part of the basis counting as this part.
    defect : float
        Largest norm of what reorthogonalisation removed, beyond the three-term recurrence, from a vector that had no
        cause to have it: rounding and asymmetry, absolute.
    noise : float
        Largest norm of what a product was off by, relative to the product's, where it was measured.
    scale : float
        Largest norm of a product with a Lanczos vector, or `norm`: ||A|| from below.
    orthogonality : float
        Largest |q_j . q_k|, as estimated.
    exhausted : bool
        Whether the basis fills the whole space, or the operator is known to be a multiple of the identity on the rest.
    spent : bool
        Whether the process ended for want of a basis.
    dtype : torch.dtype
        Of the vectors.
    rest : int
        Dimension of that rest (0 where the basis fills the space); its eigenvalue is the last one of T.

    Notes
    -----
    Lanczos 1950; full reorthogonalisation as in Golub and Van Loan, Matrix Computations, 10.3; partial as in Simon
    1984. Let Q = N R with N orthonormal, R = I + U, U upper triangular and of the size omega of the inner products. To
    first order in omega the entries of N^T A N below the diagonal are those of T whatever reorthogonalisation removed,
    and so are those above it by symmetry; the diagonal differs by beta_j (q_j . q_{j+1}). So neighbours have to be
    orthogonal to working precision (a vector of full precision sees to that in each step), and all others to sqrt(eps),
    which leaves omega^2 ||A|| = eps ||A||. The same argument lets the basis be kept with half of the bits.

    Where two random vectors in the complement, one after the other, turn out to be eigenvectors up to rounding, the
    operator is taken to be a multiple of the identity there: the norm of (A - a I) v, v uniform on the sphere of R^q,
    is the root mean square of q eigenvalues' distances from a times a factor that is below 1/x with probability at most
    0.8/x, for each vector alone. No single eigenvalue can be told to better than sqrt(q) times that, as a random vector
    sees 1/q of it.
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
        self._generator, self._deflated = generator, deflated
        self.space = Space(len(start)) if space is None else space
        self.alpha: list[float] = []
        self.beta: list[float] = []
        self.starts: list[int] = []
        self._keeps = storage is not None
        self.defect, self.noise, self.scale, self.orthogonality = 0.0, 0.0, norm, 0.0
        self.exhausted, self.spent, self.rest, self.passes = False, False, 0, 0.0
        self._streak, self._worst, self._kept = 0, 0.0, 0.0
        self._lengths: list[float] = []
        self._underflow = self.space.size * smallest_number(start.dtype, start.device)
        self._next: Tensor | None = None
        self._last: Tensor | None = None
        self._prepare(partial or storage is None, start.dtype, start.device)
        self.basis = KrylovBasis(self.space, dtype=self.dtype, device=self._device, storage=storage)
        self._begin_block(start.clone())

    def _prepare(self, partial: bool, dtype: torch.dtype, device: torch.device) -> None:
        """What follows from the space, and what does not change."""
        self._partial, self.dtype, self._device = partial, dtype, device
        self._dimension = self.space.size - (len(self._deflated) if self._deflated is not None else 0)
        self._eps = torch.finfo(dtype).eps
        self._level = self._eps**SEMI
        self._estimate = OrthogonalityEstimate(self.space.size)

    def state(self) -> dict[str, Any]:
        """All that the process needs to go on, beside generator, deflated vectors and space."""
        last = self._last
        if last is not None and self._keeps and not self.basis.rounded:
            # It is the last row of the basis.
            last = None
        return {
            **{name: getattr(self, name) for name in FIELDS},
            "basis": self.basis,
            "estimate": self._estimate.state(),
            "next": self._next,
            "last": last,
            "has_last": self._last is not None,
        }

    @classmethod
    def restored(
        cls,
        state: dict[str, Any],
        generator: torch.Generator,
        space: Space,
        *,
        deflated: KrylovBasis | None = None,
        partial: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Lanczos:
        """The process at the point where `state` was taken; it resumes to the same bits.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is not the state of a process.
        """
        process = cls.__new__(cls)
        process.space = space
        process._resume(state, generator, deflated, partial, dtype, device)  # noqa: SLF001 - it is of this class
        return process

    def _resume(
        self,
        state: dict[str, Any],
        generator: torch.Generator,
        deflated: KrylovBasis | None,
        partial: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._generator, self._deflated = generator, deflated
        self._prepare(partial, dtype, device)
        for name, value in fields(state, FIELDS).items():
            setattr(self, name, value)
        steps = len(self.alpha)
        self._check_restored(steps)
        kept = fields(state, {"basis": KrylovBasis, "next": Tensor, "last": (Tensor, NoneType), "has_last": bool})
        self.basis, self._next, self._last = kept["basis"], kept["next"], kept["last"]
        if len(self.basis) != (steps if self._keeps else 0):
            raise ValueError(f"a Lanczos process of {steps} steps has a basis of {len(self.basis)} vectors")
        self._estimate.restore(state["estimate"])
        if self._estimate.steps != steps and not self.finished:
            raise ValueError(f"a Lanczos process of {steps} steps has an estimate of {self._estimate.steps}")
        if self._last is None and kept["has_last"]:
            self._last = self.basis[len(self.basis) - 1]

    def _check_restored(self, steps: int) -> None:
        """Refuse numbers that no process has."""
        entries = [
            *self.alpha,
            *self.beta,
            *self._lengths,
            self.defect,
            self.noise,
            self.scale,
            self._worst,
            self._kept,
        ]
        if not len(self.beta) == len(self._lengths) == steps or not all(isinstance(entry, float) for entry in entries):
            raise ValueError("a Lanczos process has entries of T that do not belong together")
        if not np.isfinite(entries).all() or not 0 <= self.orthogonality <= 1:
            raise ValueError("a Lanczos process has numbers that make no sense")
        if [type(start) for start in self.starts] != [int] * len(self.starts) or self.starts[:1] != [0]:
            raise ValueError("a Lanczos process has no start")
        if self.starts != sorted(self.starts) or self.starts[-1] > steps:
            raise ValueError("a Lanczos process has blocks that it has not begun")

    def __len__(self) -> int:
        """Number of steps so far."""
        return len(self.alpha)

    @property
    def finished(self) -> bool:
        """Whether there is no further step."""
        return self.exhausted or self.spent

    def backward_error(self, steps: int) -> float:
        """Spectral norm of what the first steps leave of A Q - Q T - beta q e^T, at most, absolute.

        Rounding, underflow and what showed of asymmetry are known for a step, and the norm of m columns is at most
        sqrt(m) times the largest of theirs. Noise is known relative to the product: its Frobenius norm is that share of
        ||A Q||_F.
        """
        if self.scale == 0:
            return 0.0
        semi = self.orthogonality**2 * self.scale
        step = max(rounding_unit(self.dtype) * self.scale + semi, self._underflow, self.defect)
        products = float(np.linalg.norm(np.array(self._lengths[:steps]) / self.scale)) * self.scale
        return float(np.sqrt(steps)) * step + self.noise * products

    @property
    def vector(self) -> Tensor:
        """Vector (p,) whose product with the operator the next step needs.

        Raises
        ------
        RuntimeError
            If the process has finished.
        """
        if self.finished or self._next is None:
            raise RuntimeError("The Lanczos process is exhausted: its basis fills the whole space.")
        return self._next

    def _note(self, length: float, error: float, underflow: float | None) -> None:
        """Take down the norm of a product, and what it is off by."""
        self._lengths.append(length)
        if underflow is not None:
            self._underflow = underflow
        self.scale, self.noise = max(self.scale, length), max(self.noise, error / length if length > 0 else 0.0)

    def step(self, image: Tensor, error: float = 0.0, underflow: float | None = None) -> None:
        """Take the product of the operator with `vector`.

        Parameters
        ----------
        image : Tensor (p,)
        error : float
            Norm of what this product is known to be off by.
        underflow : float, optional
            Norm of what it lost to underflow, at most, where it was scaled; p smallest numbers by default.

        Raises
        ------
        ValueError
            If the product is no tensor like the vector.
        NonFiniteError
            If the product holds NaN or infinity.
        NotSymmetricError
            If the operator is not symmetric.
        RuntimeError
            If the process has finished.
        """
        q, index = self.vector, len(self.alpha)
        image = check_product(q, image)
        diagonal, length = self.space.inner_and_norm(q, image)
        if not np.isfinite(length):
            raise NonFiniteError(
                f"The product of the operator with Lanczos vector {index + 1} holds NaN or infinity; nothing is "
                "returned."
            )
        if self._keeps:
            self.basis.append(q)
        self._note(length, error, underflow)
        first_of_block = index == self.starts[-1]
        terms = [(-diagonal, q)]
        if not first_of_block and self._last is not None:
            terms.append((-self.beta[-1], self._last))
        w, along, length = self.space.combine(image, terms, q)
        if self._deflated is not None:
            # After the recurrence, not before it: what rounding leaves along the deflated vectors would be carried on
            # by it and grow like its polynomials at 0, without limit where 0 is outside the spectrum.
            self._deflated.orthogonalise(w)
            along, length = self.space.inner_and_norm(q, w)
        self.alpha.append(diagonal)
        share, residual = self._orthogonalise(w, q, index, along, length)
        if self._deflated is not None and residual <= self._level * self.scale:
            # What the deflated vectors and the basis, which are orthogonal to some accuracy, have left of each other in
            # so short a vector can be much of it.
            w.add_(q, alpha=-share)
            self._deflated.orthogonalise(w)
            share, residual = 0.0, self.space.norm(w)
        if len(self.alpha) == self._dimension:
            self.beta.append(0.0)
            self.exhausted = True
        elif residual <= self._negligible():
            self.defect = max(self.defect, residual)
            self.beta.append(0.0)
            if first_of_block and len(self.starts) > 2 and index - self.starts[-2] == 1:
                self.exhausted, self.rest = True, self._dimension - len(self.alpha)
            elif self._keeps:
                self._begin_block(None)
            else:
                self.spent = True
        else:
            self.beta.append(residual)
            self._last, self._next = q, reduce_and_scale(w, share, q, residual)

    def _orthogonalise(self, w: Tensor, q: Tensor, index: int, along: float, length: float) -> tuple[float, float]:
        """Orthogonalise the residual w (p,), in place, as much as it needs, but for its share of q.

        Parameters
        ----------
        w, q : Tensor (p,)
        index : int
            Of this step.
        along, length : float
            q·w and the norm of w.

        Returns
        -------
        share, residual : float
            q·w, which is still to be taken away, and the norm of what is then left.
        """
        residual = self._divisor(length)
        products = self._estimate.predicted(self.alpha, self.beta, (self._eps + self.noise) * self.scale)
        each = np.abs(products).max(axis=0)
        predicted = float(each.max(initial=0.0))
        whole = not self._partial or index < WATCHED
        due = whole or self._streak == 1 or predicted > self._level * residual
        if due and not self._keeps:
            self.spent, due = predicted > self._level * residual, False
        accepted, level = np.hstack([products / residual, self._estimate.random(1, self._eps)]), predicted / residual
        kept = self.basis.kept_error(w, residual) if due else 0.0
        if due:
            allowance = 2 * predicted + kept * residual + self.noise * (self._lengths[-1] + self.scale)
            chosen = self.basis.around(None if whole else np.flatnonzero(each > self._eps**APART * residual))
            removed = self.basis.orthogonalise(w, chosen, length).numpy()
            found = float(np.abs(removed[:index]).max(initial=0.0))
            # After two steps that were reorthogonalised there is nothing that a third could find but errors.
            if whole and (self._streak >= 2 or self._streak == index):
                self._check_symmetry(removed, index, allowance)
                self.defect = max(self.defect, norm(torch.from_numpy(np.maximum(np.abs(removed) - allowance, 0))))
            elif not self._streak:
                excess = self._estimate.learn(predicted, found)
                self.orthogonality = max(self.orthogonality, min(1.0, excess * self._worst))
            along, length = self.space.inner_and_norm(q, w)
            residual = self._divisor(length)
            # A pass leaves what it removes times the basis's own departure from orthogonality; where it removes much,
            # there were two.
            left = min(norm(torch.from_numpy(removed)) / residual, 1.0) * self.orthogonality
            clean = self._eps + left + kept
            rows = np.append(chosen, index) if whole else chosen
            accepted[:, rows] = self._estimate.random(len(rows), clean)
            level = float(np.abs(accepted).max())
            self.passes, self._streak = self.passes + len(chosen) / max(index + 1, 1), self._streak + 1
        else:
            self._streak = 0
        if not self.spent:
            self._estimate.accept(accepted)
            self._worst, self._kept = level, kept
            self.orthogonality = max(self.orthogonality, min(1.0, level))
        if not (self._partial or self.basis.rounded):
            return 0.0, length
        # Neighbours to working precision. q is a unit vector but for rounding, so that Pythagoras knows the norm of
        # what will be left, without another look at it; not where most of w goes away.
        if abs(along) < length / 2:
            return along, length * math.sqrt(1 - (along / length) ** 2)
        w.add_(q, alpha=-along)
        return 0.0, self.space.norm(w)

    def _divisor(self, length: float) -> float:
        """Norm of a residual, to divide by: where it is less than eps of rounding, the block ends with this step."""
        return max(length, self._underflow, self._eps**2 * self.scale)

    def _negligible(self) -> float:
        """Norm up to which a residual is nothing but rounding: that of a step, and that of the basis as it is kept.

        Components of the size omega ||A|| are removed along vectors that are off by the error of keeping them.
        """
        unit = max(rounding_unit(self.dtype), self.orthogonality * self._kept)
        return max(unit * self.scale, self._underflow)

    def _begin_block(self, start: Tensor | None) -> None:
        self.starts.append(len(self.alpha))
        if start is None:
            start = self.space.random_vector(self._generator, dtype=self.dtype, device=self._device)
        # A start vector in the complement loses most of its length where the complement is small: three passes.
        for _ in range(3):
            start.div_(self.space.norm(start))
            if self._deflated is not None:
                self._deflated.orthogonalise(start)
            self.basis.orthogonalise(start)
        self._last, self._next = None, start.div_(self.space.norm(start))
        self._estimate.replace(self._eps + self.basis.kept_error(self._next, 1.0))

    def _check_symmetry(self, removed: npt.NDArray[np.float64], index: int, allowance: float) -> None:
        """Products with earlier vectors are known by symmetry; what reorthogonalisation found beside them is not."""
        earlier = np.abs(removed[:index])
        if not earlier.size:
            return
        worst = int(earlier.argmax())
        tolerance = max(self._eps**ASYMMETRY * self.scale, self._underflow) + allowance
        if float(earlier[worst]) > tolerance:
            expected = self.beta[index - 1] if worst == index - 1 and index != self.starts[-1] else 0.0
            measured = expected + float(removed[worst])
            raise NotSymmetricError(
                f"The operator is not symmetric: with Lanczos vectors u = q_{worst + 1} and v = q_{index + 1} (unit), "
                f"u·Av = {measured:.6g} but v·Au = {expected:.6g}, a difference of {abs(measured - expected):.1e}. "
                "Spectra are measured of symmetric operators only."
            )

    def tridiagonal(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Diagonal (m,) and off-diagonal (m,) of T; the last off-diagonal entry is the residual's norm."""
        return np.array(self.alpha), np.array(self.beta)
