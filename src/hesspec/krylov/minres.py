"""Minimum residual method for symmetric systems that may be indefinite."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.krylov.conjugate_gradients import Multiply, Solved, column_norms
from hesspec.krylov.preconditioning import SpectralPreconditioner

__all__ = ["minres"]


def minres(
    multiply: Multiply,
    rhs: Tensor,
    *,
    preconditioner: SpectralPreconditioner | None = None,
    tolerance: float,
    max_iterations: int,
) -> Solved:
    r"""Solve B X = F with a symmetric matrix B, for each column of F (p, n).

    MINRES of Paige and Saunders (1975) on :math:`M^{-1/2} B M^{-1/2}`, whose residuals it minimises over Krylov spaces.
    Columns are independent, and run in lockstep, so that each product is one with a matrix. If B is singular, it
    converges for right-hand sides in the range of B.

    Parameters
    ----------
    multiply, rhs, tolerance, max_iterations
        See `hesspec.krylov.conjugate_gradients.conjugate_gradients`.
    preconditioner : SpectralPreconditioner, optional
        M, positive definite. Without it, M = I.

    Returns
    -------
    Solved
        `smallest` is the smallest absolute harmonic Ritz value of the preconditioned matrix. 1/`smallest` is a Ritz
        value of its inverse, so `smallest` is at least the smallest absolute eigenvalue, up to rounding.

    Notes
    -----
    The residual of the QR factorisation of T obeys r_k = s^2 r_{k-1} + c eta v_{k+1}, which gives its norm without
    preconditioning, too.
    """

    def weighted(columns: Tensor) -> Tensor:
        return columns if preconditioner is None else preconditioner.root(columns)

    def remaining() -> bool:
        norms = column_norms(residual) if preconditioner is None else preconditioner.norms(residual)
        return bool((norms > target).any())

    def scaled(columns: Tensor, factors: Tensor) -> Tensor:
        return columns * factors.to(columns.dtype)

    def divided(columns: Tensor, lengths: Tensor) -> Tensor:
        return scaled(columns, 1 / torch.where(lengths > 0, lengths, 1))

    residual, target = weighted(rhs), tolerance * column_norms(rhs)
    # Eta is the norm of the residual with a sign; beta couples v to the vector before.
    eta = column_norms(residual)
    v, before = divided(residual, eta), torch.zeros_like(rhs)
    beta, sine, sine_before = (torch.zeros_like(eta) for _ in range(3))
    cosine, cosine_before = torch.ones_like(eta), torch.ones_like(eta)
    found, direction, direction_before = (torch.zeros_like(rhs) for _ in range(3))
    alphas, betas, iterations = [], [], 0
    while (unfinished := remaining()) and iterations < max_iterations:
        image = weighted(multiply(weighted(v)))
        alpha = (v * image).sum(0, dtype=torch.float64)
        image = image - scaled(v, alpha) - scaled(before, beta)
        following = column_norms(image)
        delta = cosine * alpha - cosine_before * sine * beta
        second, third = sine * alpha + cosine_before * cosine * beta, sine_before * beta
        first = torch.hypot(delta, following)
        cosine_before, sine_before = cosine, sine
        # Where first is zero, so are both numerators: the Krylov space of the column is exhausted.
        whole = torch.where(first > 0, first, 1)
        cosine, sine = delta / whole, following / whole
        older = v - scaled(direction_before, third) - scaled(direction, second)
        direction_before, direction = direction, divided(older, first)
        found = found + scaled(direction, cosine * eta)
        eta = -sine * eta
        before, v, beta = v, divided(image, following), following
        residual = scaled(residual, sine**2) + scaled(v, cosine * eta)
        alphas.append(alpha)
        betas.append(beta)
        iterations += 1
    x = weighted(found)
    # At the end, as each copy to the host waits for the device.
    diagonals = (torch.stack(each).cpu().numpy() if each else np.empty((0, 0)) for each in (alphas, betas))
    return Solved(x, rhs - multiply(x), iterations, not unfinished, _smallest(*diagonals))


def _smallest(alphas: npt.NDArray[np.float64], betas: npt.NDArray[np.float64]) -> float:
    """Smallest absolute harmonic Ritz value over all columns, from the diagonals (k, n) of their T.

    With T_ the (k + 1, k) matrix of the recurrence, the inverses of harmonic Ritz values are the eigenvalues of R^-T T
    R^-1, T_ = Q R.
    """
    found = [float("nan")]
    for alpha, beta in zip(alphas.T, betas.T, strict=True):
        steps = int(np.argmax(beta <= 0)) + 1 if (beta <= 0).any() else len(alpha)
        tall = np.zeros((steps + 1, steps))
        np.fill_diagonal(tall, alpha[:steps])
        np.fill_diagonal(tall[1:], beta[:steps])
        np.fill_diagonal(tall[:, 1:], beta[: steps - 1])
        triangle = np.linalg.qr(tall)[1]
        if not np.abs(triangle.diagonal()).min() > 0:
            return 0.0
        half = np.linalg.solve(triangle.T, tall[:steps])
        inverses = np.linalg.eigvalsh(np.linalg.solve(triangle.T, half.T))
        found.append(1 / float(np.abs(inverses).max()))
    return float(np.nanmin(found)) if len(found) > 1 else found[0]
