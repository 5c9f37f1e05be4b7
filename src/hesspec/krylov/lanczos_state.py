"""State of a Lanczos process: T, basis, errors of its steps, and orthogonality of its vectors."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hesspec.krylov.basis import KrylovBasis

__all__ = ["LanczosState", "Orthogonality", "StepErrors", "Tridiagonal", "rounding_unit"]

# Backward error of a step in units of eps ||A||, such that that of m steps is at most sqrt(m) times as large. Measured
# on dense operators with all kinds of spectra (p <= 300, both precisions, any number of steps): ||A Q - Q T - beta q
# e^T|| was at most 3.0 sqrt(m) eps ||A|| in 10,000 runs (a residual dropped as rounding, up to STEP_ERROR in one step,
# being part of it); the error of an eigenvalue was at most 2.4 sqrt(m) eps ||A|| in those of 13,500 more that took p
# steps. A single step can take more, up to 6.7 there and 7.4 at p = 3,000, growing like sqrt(p) with the sums in a
# product; steps do not conspire. Rounding in the forward pass of a network is not included, as it changes the matrix
# and not the steps: from float64 to float32 the top eigenvalues of small networks moved by 0.4 (untrained) to 6 eps
# ||A|| (fitted to a loss of 1e-3).
STEP_ERROR = 4.0


def rounding_unit(dtype: torch.dtype) -> float:
    """Backward error of a Lanczos step relative to ||A||, `STEP_ERROR` eps."""
    return STEP_ERROR * torch.finfo(dtype).eps


@dataclass
class Tridiagonal:
    """T of a Lanczos process; see `Lanczos` for its attributes."""

    alpha: list[float] = field(default_factory=list)
    beta: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def check(self) -> None:
        """Raise ValueError if it is inconsistent."""
        if len(self.beta) != len(self.alpha):
            raise ValueError("a Lanczos process has entries of T that do not belong together")
        if self.starts[:1] != [0]:
            raise ValueError("a Lanczos process has no start")
        if self.starts != sorted(self.starts) or self.starts[-1] > len(self.alpha):
            raise ValueError("a Lanczos process has blocks that it has not begun")
        if not np.isfinite([*self.alpha, *self.beta]).all():
            raise ValueError("a Lanczos process has entries of T that are not finite")


@dataclass
class StepErrors:
    """Errors of the steps of a process.

    Attributes
    ----------
    scale : float
        Largest norm of a product with a Lanczos vector, or its initial value: a lower bound on ||A||.
    underflow : float
        Bound on the norm of the underflow error of a product.
    defect : float
        Largest norm of unexpected components that reorthogonalisation removed beyond the three-term recurrence:
        rounding and asymmetry, absolute.
    noise : float
        Largest measured error of a product, relative to its norm.
    lengths : list of float
        Norms of all products.
    """

    scale: float
    underflow: float
    defect: float = 0.0
    noise: float = 0.0
    lengths: list[float] = field(default_factory=list)

    def check(self, steps: int) -> None:
        """Raise ValueError if they do not match the number of steps."""
        if len(self.lengths) != steps:
            raise ValueError("a Lanczos process has norms of products that it has not taken")
        if not np.isfinite([*self.lengths, self.defect, self.noise, self.scale]).all():
            raise ValueError("a Lanczos process has errors that are not finite")

    def record(self, length: float, error: float, underflow: float | None) -> None:
        """Record the norm of a product, and its error."""
        self.lengths.append(length)
        if underflow is not None:
            self.underflow = underflow
        self.scale, self.noise = max(self.scale, length), max(self.noise, error / length if length > 0 else 0.0)

    def divisor(self, length: float, eps: float) -> float:
        """Norm of a residual as a divisor; if it is below eps times rounding, the block ends with this step."""
        return max(length, self.underflow, eps**2 * self.scale)

    def backward_error(self, steps: int, unit: float, orthogonality: float) -> float:
        """Bound on the spectral norm of A Q - Q T - beta q e^T for the first steps, absolute.

        Rounding (`unit` times ||A|| in a step), underflow and observed asymmetry are known for each step, and the norm
        of m columns is at most sqrt(m) times the largest of theirs. Noise is known relative to the product: its
        Frobenius norm is that share of ||A Q||_F.
        """
        if self.scale == 0:
            return 0.0
        semi = orthogonality**2 * self.scale
        step = max(unit * self.scale + semi, self.underflow, self.defect)
        products = float(np.linalg.norm(np.array(self.lengths[:steps]) / self.scale)) * self.scale
        return float(np.sqrt(steps)) * step + self.noise * products


@dataclass
class Orthogonality:
    """Orthogonality of the vectors of a process, and the reorthogonalisation so far.

    Attributes
    ----------
    largest : float
        Largest |q_j . q_k|, as estimated.
    passes : float
        Number of reorthogonalisations, of the last vector or the last two; fractional if against a part of the basis.
    streak : int
        Number of consecutive last steps that were reorthogonalised.
    worst : float
        Largest estimated inner product of the last vector with earlier ones.
    kept : float
        Error of it in a stored basis, see `KrylovBasis.kept_error`.
    """

    largest: float = 0.0
    passes: float = 0.0
    streak: int = 0
    worst: float = 0.0
    kept: float = 0.0

    def check(self) -> None:
        """Raise ValueError if the numbers are invalid."""
        if not np.isfinite([self.worst, self.kept]).all() or not 0 <= self.largest <= 1:
            raise ValueError("a Lanczos process has numbers of its orthogonality that make no sense")


@dataclass
class LanczosState:
    """Everything that changes from step to step, except the estimate of orthogonality.

    Attributes
    ----------
    keeps : bool
        Whether the basis is stored.
    basis : KrylovBasis
        Empty if it is not stored.
    errors : StepErrors
    tridiagonal : Tridiagonal
    orthogonality : Orthogonality
    exhausted, spent : bool
    rest : int
        As in `Lanczos`.
    next : Tensor (p,) or None
        The vector to multiply.
    last : Tensor (p,) or None
        The previous one in the same block; omitted in a snapshot if it is the last row of the basis.
    """

    keeps: bool
    basis: KrylovBasis
    errors: StepErrors
    tridiagonal: Tridiagonal = field(default_factory=Tridiagonal)
    orthogonality: Orthogonality = field(default_factory=Orthogonality)
    exhausted: bool = False
    spent: bool = False
    rest: int = 0
    next: Tensor | None = None
    last: Tensor | None = None

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return len(self.tridiagonal.alpha)

    @property
    def finished(self) -> bool:
        """Whether there is no further step."""
        return self.exhausted or self.spent

    def check(self) -> None:
        """Raise ValueError if the state is inconsistent."""
        self.tridiagonal.check()
        self.errors.check(self.steps)
        self.orthogonality.check()
        if len(self.basis) != (self.steps if self.keeps else 0):
            raise ValueError(f"a Lanczos process of {self.steps} steps has a basis of {len(self.basis)} vectors")
        in_basis = self.keeps and not self.basis.rounded
        if self.next is None or (self.last is None and self.steps > self.tridiagonal.starts[-1] and not in_basis):
            raise ValueError(f"a Lanczos process of {self.steps} steps lacks a vector")
