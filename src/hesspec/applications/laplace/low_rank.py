r"""Low-rank posterior covariance from resolved eigenpairs, with bounds on its error.

With A = c G, c the factor that turns the loss into a negative log-likelihood, and eigenpairs (a_i, v_i), i <= k,

.. math:: \Psi = (A + t I)^{-1}, \qquad
          \Psi_k = \tfrac1t \bigl(I - V \operatorname{diag}\tfrac{a_i}{a_i + t} V^\top\bigr) \succeq \Psi .

Let R = A V - V D be the residuals. With P = V V^T, A' = (I - P) A (I - P) + V D V^T has the columns of V as exact
eigenvectors and agrees with A in their complement, where the eigenvalues are at most a_r. With E = A - A', E V = R,

.. math:: \|\Psi_k - \Psi\|_2 \le \frac{a_r}{t (a_r + t)} + \frac{2 r}{t} + \frac{s^2}{t^2}, \qquad
          r = \|R (D + t)^{-1}\|_2, \quad s = \|R (D + t)^{-1/2}\|_2 ,

by Psi' - Psi = Psi E Psi', applied twice. The first term is the exact error if the pairs are exact. R is known from the
recurrence of the run (`hesspec.measure.recurrence`), without products. Another Lanczos run, in the complement, bounds
a_r (`hesspec.krylov.largest`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.special
import torch
from torch import Tensor

from hesspec.backend.algebra import SymmetricOperator
from hesspec.backend.shown import Shown
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.lanczos import Lanczos
from hesspec.krylov.lanczos_state import rounding_unit
from hesspec.krylov.largest import largest_eigenvalue_bound
from hesspec.krylov.preconditioning import SpectralPreconditioner
from hesspec.krylov.projected import ProjectedOperator
from hesspec.krylov.quadrature import first_block
from hesspec.krylov.ritz import outermost
from hesspec.krylov.scaling import Scaled
from hesspec.krylov.storage import Storage
from hesspec.krylov.vectors import Space, norm, random_vector
from hesspec.measure.recurrence import resolved_pairs
from hesspec.spectra.spectrum import Spectrum

__all__ = ["LowRank", "low_rank"]

# Largest number of Lanczos steps of each run in the complement. It ends when the bound is at most this much above the
# largest Ritz value, which the theorem of Kuczynski and Wozniakowski gives after 16 steps if p is 10 million.
CHECK_STEPS = 16
TIGHT = 4 / 3
# Up to this multiple of the rounding of a product, products with the complement are rounding.
NOISE = 4.0
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
        Residual norms ||G v - value v||, without rounding.
    rounding : float
        Bound on the Frobenius norm of the part of G V - V D that is rounding.
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
    rounding: float
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

    @property
    def residual_norm(self) -> float:
        """Bound on ||G V - V D||_2."""
        return float(self.residuals.norm()) + self.rounding

    @property
    def residual_sum(self) -> float:
        """Bound on the sum of the singular values of G V - V D."""
        return float(self.residuals.sum()) + math.sqrt(len(self.residuals)) * self.rounding

    def residual_error(self, scale: float, prior: float) -> float:
        """Contribution of the residuals to the bound."""
        if not len(self.values):
            return 0.0
        shifted, residuals, rounding = scale * self.values + prior, scale * self.residuals, scale * self.rounding
        least = float(shifted.min())
        r = float((residuals / shifted).norm()) + rounding / least
        s = float((residuals / shifted.sqrt()).norm()) + rounding / math.sqrt(least)
        return 2 * r / prior + (s / prior) ** 2


def low_rank(operator: SymmetricOperator, *, rank: int, steps: int, seed: int) -> LowRank:
    """Compute at most `rank` eigenpairs of a positive semi-definite operator, and bound its other eigenvalues.

    One Krylov run of `steps` steps finds the resolved pairs. As a probe sees only one copy of a multiple eigenvalue, a
    run in the complement follows, of at most 16 steps, and mostly 9 or 10; copies that it finds are added, with a
    product for each, and it is repeated. If the complement is of the size of rounding, products with 16 random vectors
    bound it.
    """
    pairs = resolved_pairs(operator, count=rank, steps=steps, seed=seed)
    spectrum, p, device = pairs.spectrum, operator.shape[0], operator.device
    kept, vectors = pairs.values > spectrum.rounding, pairs.vectors
    if not kept.all():
        vectors = vectors.T[torch.as_tensor(kept)].T
    zero = torch.zeros(p, dtype=vectors.dtype, device=device)
    found = LowRank(
        torch.as_tensor(pairs.values[kept], dtype=torch.float64, device=device),
        vectors,
        torch.as_tensor(pairs.residuals[kept], dtype=torch.float64, device=device),
        pairs.rounding,
        0.0,
        spectrum,
        spectrum.matvecs + pairs.products,
        zero,
        zero,
    )
    # Vectors after the run's start vector, which the pairs depend on.
    generator = torch.Generator().manual_seed(seed)
    random_vector(p, generator, dtype=torch.float32, device=torch.device("cpu"))
    while (have := len(found.values)) < p:
        found, missed = _checked(operator, found, room=rank - have, generator=generator)
        if not missed.shape[1]:
            break
        found = _extended(operator, found, missed)
    return found


def _checked(
    operator: SymmetricOperator, found: LowRank, *, room: int, generator: torch.Generator
) -> tuple[LowRank, Tensor]:
    """Bound the eigenvalues in the complement of the pairs, and return eigenvectors (p, c) that should be added."""
    spectrum, p, k = found.spectrum, operator.shape[0], len(found.values)
    basis, scaled = _basis(found.vectors), Scaled(operator)
    # Products may be as small as rounding: the scale is that of the whole operator.
    scaled.exponent = math.frexp(spectrum.norm)[1]
    unit = math.ldexp(1.0, scaled.exponent)
    smallest = float(found.values.min()) / unit if k else 0.0
    probe = random_vector(p, generator, dtype=operator.dtype, device=torch.device(operator.device))
    inside = probe.clone()
    basis.orthogonalise(inside)
    length = norm(inside)
    lanczos = Lanczos(inside, generator, deflated=basis, norm=spectrum.norm / unit, storage=Storage())
    while True:
        image = scaled @ lanczos.vector
        error = float(getattr(operator, "product_error", 0.0)) * norm(image)
        if not len(lanczos):
            product = image.clone()
            basis.orthogonalise(product)
            product *= length * unit
            if norm(product) <= NOISE * rounding_unit(operator.dtype) * spectrum.norm * length:
                more = ProjectedOperator(operator, basis)
                shape = p, CHECK_STEPS - 1
                normal = torch.randn(shape, dtype=operator.dtype, generator=generator, device="cpu").to(operator.device)
                rest = gaussian_bound(torch.cat([product[:, None], more @ normal], dim=1))
                matvecs, chosen = found.matvecs + CHECK_STEPS, np.empty(0, np.intp)
                break
        lanczos.step(image, error, scaled.underflow)
        ritz, (alpha, beta) = first_block(lanczos), lanczos.tridiagonal()
        count = ritz.values.size
        rounding = max(lanczos.backward_error(count), spectrum.rounding / unit)
        bound = largest_eigenvalue_bound(alpha[:count], beta[:count], p - k, risk=RISK, rounding=rounding)
        rest, largest = bound * unit, float(ritz.values.max())
        missing = room > 0 and largest > max(smallest, rounding)
        last = len(lanczos) == CHECK_STEPS or lanczos.finished or len(lanczos.starts) > 1
        if last or (bound <= TIGHT * largest and not missing):
            chosen = outermost(ritz, rounding)
            chosen = chosen[ritz.values[chosen] > max(smallest, rounding)][: max(room, 0)]
            matvecs = found.matvecs + len(lanczos)
            break
    vectors = torch.empty(p, len(chosen), dtype=operator.dtype, device=operator.device)
    if len(chosen):
        turn = np.zeros((len(lanczos.basis), len(chosen)))
        turn[: ritz.values.size] = ritz.vectors[:, chosen]
        copies = lanczos.basis.subspace(torch.from_numpy(turn))
        for i in range(len(chosen)):
            vectors[:, i] = copies[i]
    return replace(found, rest=rest, matvecs=matvecs, probe=probe, product=product), vectors


def _extended(operator: SymmetricOperator, found: LowRank, missed: Tensor) -> LowRank:
    """Add eigenvectors (p, c) in the complement of the pairs, with one product for each."""
    basis = _basis(found.vectors)
    for column in missed.T:
        vector = column.contiguous()
        basis.orthogonalise(vector)
        column.copy_(vector)
    missed = torch.linalg.qr(missed)[0]
    products = operator @ missed
    values, turn = torch.linalg.eigh((missed.T @ products).double())
    turn = turn.to(missed.dtype)
    missed, products = missed @ turn, products @ turn
    floor = rounding_unit(missed.dtype) * found.spectrum.norm
    residuals = (products - missed * values.to(missed.dtype)).double().norm(dim=0) + floor
    values = torch.cat([found.values, values])
    order = values.argsort(descending=True)
    zero = torch.zeros_like(found.probe)
    return replace(
        found,
        values=values[order],
        vectors=torch.cat([found.vectors.T, missed.T])[order].T,
        residuals=torch.cat([found.residuals, residuals])[order],
        rest=0.0,
        matvecs=found.matvecs + missed.shape[1],
        probe=zero,
        product=zero,
    )


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
