r"""Low-rank posterior covariance from resolved eigenpairs, with bounds on its error.

With A = c G, c the factor that turns the loss into a negative log-likelihood, and eigenpairs (a_i, v_i), i <= k,

.. math:: \Psi = (A + t I)^{-1}, \qquad
          \Psi_k = \tfrac1t \bigl(I - V \operatorname{diag}\tfrac{a_i}{a_i + t} V^\top\bigr) \succeq \Psi .

Let R = A V - V D be the residuals, orthogonal to V. Then A' = A - R V^T - V R^T has the columns of V as exact
eigenvectors and agrees with A in their complement, where the eigenvalues are at most a_r, and

.. math:: \|\Psi_k - \Psi\|_2 \le \frac{a_r}{t (a_r + t)} + \frac{2 r}{t} + \frac{s^2}{t^2}, \qquad
          r = \|R (D + t)^{-1}\|_F, \quad s = \|R (D + t)^{-1/2}\|_F ,

by applying the resolvent identity twice. The first term is the exact error if the pairs are exact. Another Lanczos run,
in the complement, bounds a_r.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy.special
import torch
from torch import Tensor

from hesspec.backend.algebra import SymmetricOperator
from hesspec.backend.shown import Shown
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.preconditioning import SpectralPreconditioner
from hesspec.krylov.projected import ProjectedOperator
from hesspec.krylov.vectors import Space
from hesspec.measure.spectrum import eigenpairs
from hesspec.spectra.spectrum import Spectrum

__all__ = ["LowRank", "complement_bound", "low_rank"]

# Lanczos steps of each run in the complement.
CHECK_STEPS = 16
# Below this multiple of the rounding of G, the complement is not symmetric enough for Lanczos.
NOISE = 100.0
# Probability that the largest eigenvalue of the complement exceeds its bound.
RISK = 1e-3


@dataclass(frozen=True, repr=False)
class LowRank(Shown):
    """Eigenpairs of G, and a bound on its other eigenvalues.

    Attributes
    ----------
    values : float64 Tensor (k,)
        Eigenvalues, descending.
    vectors : Tensor (p, k)
        Eigenvectors as orthonormal columns.
    residuals : float64 Tensor (k,)
        Residual norms ||G v - value v||.
    rest : float
        Upper bound on the eigenvalues of G in the complement of the vectors, with a probability of 99.9%.
    spectrum : Spectrum
        Spectrum of G from the first run.
    matvecs : int
        Total number of products.
    probe, product : Tensor (p,)
        Standard normal vector, and its product with the part of G outside the eigenvectors; zeros if there is none.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    rest: float
    spectrum: Spectrum
    matvecs: int
    probe: Tensor
    product: Tensor

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        count = self.values.numel()
        ends = f", {float(self.values[0]):.4g} to {float(self.values[-1]):.4g}" if count else ""
        return {
            "parameters": f"{self.spectrum.dimension:,}",
            "eigenpairs": f"{count}{ends}",
            "other eigenvalues": f"at most {self.rest:.3g}",
            "matvecs": str(self.matvecs),
        }

    def applied(self, columns: Tensor, scale: float, prior: float) -> Tensor:
        """Product of Psi_k with columns (p, n)."""
        a = scale * self.values
        return (columns - self._weighted(columns, a / (a + prior))) / prior

    def root(self, columns: Tensor, scale: float, prior: float) -> Tensor:
        """Product of the symmetric square root of Psi_k with columns (p, n)."""
        return self.inverse(scale, prior).root(columns)

    def inverse(self, scale: float, prior: float) -> SpectralPreconditioner:
        """Psi_k^{-1}, with which condition numbers are (a_{k+1} + t)/t instead of (a_1 + t)/t."""
        return SpectralPreconditioner(self.vectors, scale * self.values + prior, prior)

    def _weighted(self, columns: Tensor, weights: Tensor) -> Tensor:
        return self.vectors @ (weights.to(columns.dtype)[:, None] * (self.vectors.T @ columns))

    def rest_error(self, scale: float, prior: float) -> float:
        """Bound on ||Psi_k - Psi|| if the pairs are exact: the error in the complement."""
        a = scale * self.rest
        return (1.0 if math.isinf(a) else a / (a + prior)) / prior

    def residual_error(self, scale: float, prior: float) -> float:
        """Contribution of the residuals to the bound."""
        shifted, residuals = scale * self.values + prior, scale * self.residuals
        r = float((residuals / shifted).norm())
        s = float((residuals / shifted.sqrt()).norm())
        return 2 * r / prior + (s / prior) ** 2


def low_rank(operator: SymmetricOperator, *, rank: int, steps: int, seed: int) -> LowRank:
    """Compute at most `rank` eigenpairs of a positive semi-definite operator, and bound its other eigenvalues.

    One Krylov run of `steps` steps finds the resolved pairs, with one more product for each. As a probe sees only one
    copy of a multiple eigenvalue, a run of 16 steps in the complement follows; copies that it finds are added, and it
    is repeated. If the complement is of the size of rounding, products with 16 random vectors bound it.
    """
    pairs = eigenpairs(operator, count=rank, steps=steps, seed=seed)
    spectrum, p = pairs.spectrum, operator.shape[0]
    kept = pairs.values > spectrum.rounding
    values = torch.as_tensor(pairs.values[kept], dtype=torch.float64, device=operator.device)
    residuals = torch.as_tensor(pairs.residuals[kept], dtype=torch.float64, device=operator.device)
    vectors, matvecs, rounds, rest = pairs.vectors[:, torch.as_tensor(kept)], spectrum.matvecs + len(kept), 0, 0.0
    probe = product = torch.zeros(p, dtype=vectors.dtype, device=operator.device)
    while vectors.shape[1] < p:
        rounds += 1
        room = rank - vectors.shape[1]
        complement = ProjectedOperator(operator, _basis(vectors))
        normal = torch.randn(p, CHECK_STEPS, dtype=vectors.dtype, generator=torch.Generator().manual_seed(seed))
        normal = normal.to(operator.device)
        first = complement @ normal[:, :1]
        probe, product = normal[:, 0], first[:, 0]
        matvecs += 1
        if float(first.norm()) <= NOISE * spectrum.rounding * float(normal[:, :1].norm()):
            rest = gaussian_bound(torch.cat([first, complement @ normal[:, 1:]], dim=1))
            matvecs += CHECK_STEPS - 1
            break
        found = eigenpairs(complement, count=max(room, 1), steps=CHECK_STEPS, seed=seed + rounds)
        matvecs += found.spectrum.matvecs + len(found.values)
        rest = complement_bound(found.spectrum)
        smallest = float(values.min()) if len(values) else 0.0
        missed = found.values > max(smallest, spectrum.rounding)
        if room < 1 or not missed.any():
            break
        vectors = torch.linalg.qr(torch.cat([vectors, found.vectors[:, torch.as_tensor(missed)]], dim=1))[0]
        products = operator @ vectors
        matvecs += vectors.shape[1]
        values, turn = torch.linalg.eigh((vectors.T @ products).double())
        values, turn = values.flip(0), turn.flip(1).to(vectors.dtype)
        vectors, products = vectors @ turn, products @ turn
        floor = float(pairs.residuals.min(initial=spectrum.rounding))
        residuals = (products - vectors * values.to(vectors.dtype)).double().norm(dim=0) + floor
        rest, probe, product = 0.0, torch.zeros_like(probe), torch.zeros_like(product)
    return LowRank(values, vectors, residuals, rest, spectrum, matvecs, probe, product)


def _basis(vectors: Tensor) -> KrylovBasis:
    """Orthonormal columns (p, k) as a basis."""
    basis = KrylovBasis(Space(len(vectors)), dtype=vectors.dtype, device=vectors.device)
    for vector in vectors.T:
        basis.append(vector)
    return basis


def gaussian_bound(products: Tensor) -> float:
    """Bound the norm of a symmetric operator, at 99.9%, from its products (p, q) with standard normal vectors.

    The squared norm of the products is at least the squared eigenvalue times a chi-squared variable with q degrees of
    freedom, the squared components of the vectors along its eigenvector.
    """
    quantile = 2 * float(scipy.special.gammaincinv(products.shape[1] / 2, RISK))
    return float(products.double().norm()) / math.sqrt(quantile)


def complement_bound(spectrum: Spectrum) -> float:
    """Bound the largest eigenvalue of a positive semi-definite operator, with a probability of 99.9%.

    After q Lanczos steps from a random vector of R^p, the largest Ritz value is below (1 - e) times the largest
    eigenvalue with a probability of at most 1.648 sqrt(p) exp(-sqrt(e) (2 q - 1)), whatever the spectrum and its
    multiplicities (Kuczynski and Wozniakowski 1992). The bound is infinite if q is too small.
    """
    norm = spectrum.norm + spectrum.rounding
    if spectrum.exact:
        return norm
    share = (math.log(1.648 * math.sqrt(spectrum.dimension) / RISK) / (2 * spectrum.steps - 1)) ** 2
    return norm / (1 - share) if share < 1 else math.inf
