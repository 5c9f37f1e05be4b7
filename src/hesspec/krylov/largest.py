r"""Upper bound on the largest eigenvalue from the Lanczos polynomials of a random start vector.

After q steps from the unit vector v, the orthonormal polynomials p_0, ..., p_q of the spectral measure of v are known:
p_j(A) v is the Lanczos vector j. An eigenvector u of eigenvalue x, with w = (u.v)^2, has

.. math:: w \sum_{j=0}^q p_j(x)^2 = \sum_j (u \cdot p_j(A) v)^2 \le \|u\|^2 = 1 ,

since the Lanczos vectors are orthonormal: w is at most the Christoffel function of the measure at x. If v is uniform on
the sphere of R^n, w has the distribution Beta(1/2, (n - 1)/2) for every u that does not depend on v, and is below its
quantile at `risk` with that probability only. Beyond the largest Ritz value the sum increases without limit: the
largest eigenvalue is at most the point where it reaches the inverse of the quantile (our derivation).

The theorem of Kuczynski and Wozniakowski (1992) bounds the same before the run, for the worst of all spectra. With the
polynomials of the run itself, 9 to 10 steps say what the theorem says of 16 if the spectrum has a tail towards its end
(powers of ranks, exponentials, isolated eigenvalues), and 12 to 13 if its end is as dense as that of a uniform one.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special

from hesspec.krylov.ritz import Array

__all__ = ["largest_eigenvalue_bound"]

# The sum is not continued beyond this, which is above the inverse quantile of any dimension: it would overflow.
ENOUGH = 1e100


def largest_eigenvalue_bound(alpha: Array, beta: Array, dimension: int, *, risk: float, rounding: float) -> float:
    """Bound the largest eigenvalue of a symmetric operator on R^n from above.

    Parameters
    ----------
    alpha, beta : array (q,)
        Diagonal and off-diagonal of T of one block from a uniformly distributed start vector; the last entry of `beta`
        is the norm of the residual.
    dimension : int
        Dimension n of the space.
    risk : float
        Probability that the largest eigenvalue exceeds the bound, in exact arithmetic.
    rounding : float
        Backward error of the run, absolute. It is added to the bound, and a smaller residual is not trusted.

    Returns
    -------
    float
        At least the largest Ritz value; equal to it, up to rounding, if the Krylov space is invariant.
    """
    alpha, beta = np.asarray(alpha, np.float64), np.asarray(beta, np.float64)
    scale = float(max(np.abs(alpha).max(), np.abs(beta).max()))
    if scale == 0 or len(alpha) >= dimension:
        return _largest(alpha, beta) + rounding
    a, b = alpha / scale, beta / scale
    b[-1] = max(b[-1], rounding / scale, np.finfo(float).eps)
    needed = math.log(1 / float(scipy.special.betaincinv(0.5, (dimension - 1) / 2, risk)))

    def excess(point: float) -> float:
        before, now, total = 0.0, 1.0, 1.0
        for j, entry in enumerate(a):
            before, now = now, ((point - entry) * now - (b[j - 1] * before if j else 0.0)) / b[j]
            total += now * now
            if total > ENOUGH:
                break
        return math.log(total) - needed

    low = _largest(a, b)
    if excess(low) >= 0:
        return low * scale + rounding
    step = 1.0
    while excess(low + step) < 0:
        step *= 2
    root = float(scipy.optimize.brentq(excess, low, low + step, xtol=1e-14, rtol=1e-12))
    return root * (1 + 1e-11) * scale + rounding if root > 0 else root * scale + rounding


def _largest(alpha: Array, beta: Array) -> float:
    """Largest eigenvalue of T."""
    return float(scipy.linalg.eigvalsh_tridiagonal(alpha, beta[:-1]).max())
