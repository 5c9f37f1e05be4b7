r"""Tests of whether an eigenvalue could have further copies that a Lanczos run has not shown.

Let u be a unit eigenvector of lambda, orthogonal to those found, and x_j = q_j \cdot u its component of the j-th
Lanczos vector. From A Q = Q T + beta q e^T + F, with f_j the j-th column of F, the error of a step,

.. math:: \beta_j x_{j+1} = (\lambda - \alpha_j) x_j - \beta_{j-1} x_{j-1} - f_j \cdot u,

which is known from T up to its initial value, and grows as fast as the process converges. By Bessel's inequality the
sum of all x_j^2 is at most 1: if the solution would be far longer, there is no such u.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hesspec.krylov.ritz import Array

__all__ = ["outgrown_by_rounding", "outgrown_by_start"]

# Factor by which the component of a further copy would exceed a unit vector if it started with its standard deviation.
# A normal variable is below 1/1,000 of its standard deviation with probability 8e-4.
CERTAIN = 1e3


def outgrown_by_rounding(values: Array, alpha: Array, beta: Array, error: float) -> npt.NDArray[np.bool_]:
    """Return which eigenvalues found once have no further copies, because rounding would have revealed them.

    A run from one vector sees one direction of an eigenspace, x_1 = 0 for all others, but the errors of its first step
    have components along them. (Later errors need not: for a diagonal matrix they are relative to entries, which vanish
    once the eigenvalue is found. So two directions can be seen, and nothing is known about a third.)

    Parameters
    ----------
    values : array (k,)
        Eigenvalues.
    alpha, beta : array (m,)
        Lanczos matrix T of the run; the last entry of beta is the norm of the residual.
    error : float
        Standard deviation of the component of a step's error along a unit vector, eps ||A|| / sqrt(p).

    Returns
    -------
    bool array (k,)
    """
    return _outgrown(values, alpha, beta, 0.0, error)


def outgrown_by_start(values: Array, alpha: Array, beta: Array, dimension: int) -> npt.NDArray[np.bool_]:
    """Return which numbers are not eigenvalues of an operator on R^q, because a random start would have found them.

    Its component along any unit vector, x_1, has the standard deviation 1 / sqrt(q). This says nothing of numbers that
    the run has found: once it has converged to an eigenvalue, the recurrence decays to rounding, which grows again.

    Parameters
    ----------
    values : array (k,)
    alpha, beta : array (m,)
        Lanczos matrix T of the run.
    dimension : int
        Dimension q.

    Returns
    -------
    bool array (k,)
    """
    return _outgrown(values, alpha, beta, dimension**-0.5, 0.0)


def _outgrown(values: Array, alpha: Array, beta: Array, start: float, error: float) -> npt.NDArray[np.bool_]:
    grown = np.zeros(values.size, bool)
    before, now = np.zeros(values.size), np.full(values.size, start)
    for j in range(alpha.size):
        if not beta[j] > 0:
            break
        following = (values - alpha[j]) * now - (beta[j - 1] * before if j else -error)
        before, now = now, following / beta[j]
        grown |= np.abs(now) > CERTAIN
        # Those that are decided need not continue to overflow.
        now[grown], before[grown] = 0.0, 0.0
    return grown
