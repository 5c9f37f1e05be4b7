"""The Lanczos process with full reorthogonalisation, restarted in the complement of an invariant subspace."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.errors import NonFiniteError, NotSymmetricError
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.operator import SymmetricOperator
from hesspec.krylov.vectors import inner, norm, random_vector

__all__ = ["Lanczos", "rounding_unit"]

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


def rounding_unit(dtype: torch.dtype) -> float:
    """Backward error of a Lanczos step relative to ||A||, `STEP_ERROR` eps."""
    return STEP_ERROR * torch.finfo(dtype).eps


class Lanczos:
    """A Q = Q T + beta_m q_{m+1} e_m^T, step by step, with Q orthonormal to working precision.

    When the Krylov space becomes invariant before the dimension is reached, the process goes on from a new random
    vector in its complement: T is then block diagonal, and each block belongs to a start vector of its own.

    Parameters
    ----------
    operator : SymmetricOperator
        (p, p).
    start : Tensor (p,)
        Start vector; need not be normalised.
    generator : torch.Generator
        For start vectors of later blocks.
    deflated : KrylovBasis, optional
        Orthonormal vectors that everything is kept orthogonal to: the process then is that of P A P, P the projector
        onto their complement.

    Attributes
    ----------
    alpha, beta : list of float
        Diagonal of T; off-diagonal, beta[j] between j and j + 1, the last being the residual's norm. Zero between
        blocks.
    starts : list of int
        First index of each block.
    basis : KrylovBasis
    defect : float
        Largest norm of what full reorthogonalisation removed in a step beyond the three-term recurrence: rounding and
        asymmetry, absolute.
    scale : float
        Largest norm of a product with a Lanczos vector: ||A|| from below.
    exhausted : bool
        Whether the basis fills the whole space, or the operator is known to be a multiple of the identity on the rest.
    rest : int
        Dimension of that rest (0 where the basis fills the space); its eigenvalue is the last one of T.

    Notes
    -----
    Lanczos 1950; full reorthogonalisation as in Golub and Van Loan, Matrix Computations, 10.3. Where two random vectors
    in the complement, one after the other, turn out to be eigenvectors up to rounding, the operator is taken to be a
    multiple of the identity there: the norm of (A - a I) v, v uniform on the sphere of R^q, is the root mean square of
    q eigenvalues' distances from a times a factor that is below 1/x with probability at most 0.8/x, for each vector
    alone. No single eigenvalue can be told to better than sqrt(q) times that, as a random vector sees 1/q of it.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        start: Tensor,
        generator: torch.Generator,
        deflated: KrylovBasis | None = None,
    ) -> None:
        self._operator, self._generator, self._deflated = operator, generator, deflated
        self._dimension = len(start) - (len(deflated) if deflated is not None else 0)
        self.alpha: list[float] = []
        self.beta: list[float] = []
        self.starts: list[int] = []
        self.basis = KrylovBasis(len(start), dtype=start.dtype, device=start.device)
        self.defect, self.scale, self.exhausted, self.rest = 0.0, 0.0, False, 0
        self._underflow = float(np.sqrt(len(start))) * torch.finfo(start.dtype).tiny
        self._next: Tensor | None = None
        self._begin_block(start.clone())

    def __len__(self) -> int:
        """Number of steps so far."""
        return len(self.alpha)

    @property
    def step_error(self) -> float:
        """Backward error of a step, absolute: rounding, underflow, and what showed of asymmetry."""
        if self.scale == 0:
            return 0.0
        return max(rounding_unit(self.basis[0].dtype) * self.scale, self._underflow, self.defect)

    def step(self) -> None:
        """One product with the operator.

        Raises
        ------
        ValueError
            If the product is no tensor like the vector.
        NonFiniteError
            If the product holds NaN or infinity.
        NotSymmetricError
            If the operator is not symmetric.
        RuntimeError
            If the process is exhausted.
        """
        if self.exhausted or self._next is None:
            raise RuntimeError("The Lanczos process is exhausted: its basis fills the whole space.")
        q, index = self._next, len(self.alpha)
        self.basis.append(q)
        image = self._operator @ q
        if not isinstance(image, Tensor) or image.shape != q.shape or image.dtype != q.dtype:
            seen = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
            raise ValueError(
                f"The product of the operator with a {tuple(q.shape)} {q.dtype} tensor is {seen}; it has to be of the "
                "same shape and dtype."
            )
        image = image.detach()
        length = norm(image)
        if not np.isfinite(length):
            raise NonFiniteError(
                f"The product of the operator with Lanczos vector {index + 1} holds NaN or infinity; nothing is "
                "returned."
            )
        self.scale = max(self.scale, length)
        w = image.clone()
        diagonal = inner(q, w)
        w.add_(q, alpha=-diagonal)
        first_of_block = index == self.starts[-1]
        if not first_of_block:
            w.add_(self.basis[index - 1], alpha=-self.beta[-1])
        if self._deflated is not None:
            # After the recurrence, not before it: what rounding leaves along the deflated vectors would be carried on
            # by it and grow like its polynomials at 0, without limit where 0 is outside the spectrum.
            self._deflated.orthogonalise(w)
        self._check_symmetry(self.basis.orthogonalise(w), index)
        self.alpha.append(diagonal)
        residual = norm(w)
        if len(self.basis) == self._dimension:
            self.beta.append(0.0)
            self.exhausted = True
        elif residual <= max(rounding_unit(q.dtype) * self.scale, self._underflow):
            self.beta.append(0.0)
            if first_of_block and len(self.starts) > 2 and index - self.starts[-2] == 1:
                self.exhausted, self.rest = True, self._dimension - len(self.basis)
            else:
                self._begin_block(None)
        else:
            self.beta.append(residual)
            self._next = w.div_(residual)

    def _begin_block(self, start: Tensor | None) -> None:
        self.starts.append(len(self.alpha))
        if start is None:
            q = self.basis[0]
            start = random_vector(len(q), self._generator, dtype=q.dtype, device=q.device)
        # A start vector in the complement loses most of its length where the complement is small: three passes.
        for _ in range(3):
            start.div_(norm(start))
            if self._deflated is not None:
                self._deflated.orthogonalise(start)
            self.basis.orthogonalise(start)
        self._next = start.div_(norm(start))

    def _check_symmetry(self, removed: Tensor, index: int) -> None:
        """Products with earlier vectors are known by symmetry; what reorthogonalisation found beside them is not."""
        if not removed.numel():
            return
        self.defect = max(self.defect, norm(removed))
        earlier = removed[:index].abs()
        if not earlier.numel():
            return
        worst = int(earlier.argmax())
        tolerance = max(torch.finfo(self.basis[0].dtype).eps ** ASYMMETRY * self.scale, self._underflow)
        if float(earlier[worst]) > tolerance:
            expected = self.beta[index - 1] if worst == index - 1 and index != self.starts[-1] else 0.0
            measured = expected + float(removed[worst])
            raise NotSymmetricError(
                f"The operator is not symmetric: with Lanczos vectors u = q_{worst + 1} and v = q_{index + 1} (unit), "
                f"u·Av = {measured:.6g} but v·Au = {expected:.6g}. Spectra are measured of symmetric operators only."
            )

    def tridiagonal(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Diagonal (m,) and off-diagonal (m,) of T; the last off-diagonal entry is the residual's norm."""
        return np.array(self.alpha), np.array(self.beta)
