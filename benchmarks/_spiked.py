"""Random matrices of up to 100,000 rows with known outliers, as products with vectors.

No matrix is stored. The Gaussian and the Laguerre ensemble are Dumitriu and Edelman's tridiagonal matrices (2002), and
other bulks are diagonal: a probe of a Gaussian law does not see in which basis a matrix is written. Spikes are added in
directions that are uniform on the sphere, so that their eigenvalues lie where Baik, Ben Arous and Peche's transition
puts them, and within the bulk below the threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import scipy.linalg
import scipy.stats
import torch

Array = np.ndarray

RATIO = 0.5  # dimension over samples, of Marchenko-Pastur's law
COMPUTED = 1_000  # larger Gaussian ensembles are diagonalised once
EDGES = {"Wigner": 2.0, "Marchenko-Pastur": (1 + np.sqrt(RATIO)) ** 2}  # of the limiting laws


class Tridiagonal:
    """Symmetric tridiagonal matrix."""

    def __init__(self, main: Array, off: Array) -> None:
        self.main, self.off = torch.tensor(main), torch.tensor(off)
        self.shape, self.dtype, self.device = (len(main),) * 2, torch.float64, torch.device("cpu")

    def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
        """With a vector or with columns."""
        columns = vectors if vectors.dim() == 2 else vectors[:, None]
        found = self.main[:, None] * columns
        found[:-1] += self.off[:, None] * columns[1:]
        found[1:] += self.off[:, None] * columns[:-1]
        return found.reshape(vectors.shape)


class Spiked:
    """Bulk + U diag(theta) U^T, for orthonormal columns U."""

    def __init__(self, bulk: Tridiagonal, theta: Array, rng: np.random.Generator) -> None:
        self.bulk, self.theta = bulk, torch.tensor(theta)
        self.directions = directions(len(bulk.main), len(theta), rng)
        self.shape, self.dtype, self.device = bulk.shape, bulk.dtype, bulk.device

    def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
        """With a vector or with columns."""
        return self.bulk @ vectors + raised(vectors, self.directions, self.theta)


class Covariance:
    """Sample covariance of a population whose covariance is I + U diag(excess) U^T."""

    def __init__(self, bulk: Tridiagonal, excess: Array, rng: np.random.Generator) -> None:
        self.bulk, self.root = bulk, torch.tensor(np.sqrt(1 + excess) - 1)
        self.directions = directions(len(bulk.main), len(excess), rng)
        self.shape, self.dtype, self.device = bulk.shape, bulk.dtype, bulk.device

    def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
        """With a vector or with columns."""
        inner = self.bulk @ (vectors + raised(vectors, self.directions, self.root))
        return inner + raised(inner, self.directions, self.root)


def directions(p: int, count: int, rng: np.random.Generator) -> torch.Tensor:
    """Orthonormal columns, uniform on the Stiefel manifold."""
    return torch.linalg.qr(torch.tensor(rng.standard_normal((p, count))))[0]


def raised(vectors: torch.Tensor, columns: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """U diag(factors) U^T v."""
    inner = columns.T @ vectors
    return columns @ (factors * inner if vectors.dim() == 1 else factors[:, None] * inner)


def wigner(p: int, rng: np.random.Generator) -> Tridiagonal:
    """Gaussian orthogonal ensemble with edges -2 and 2."""
    off = np.sqrt(rng.chisquare(np.arange(p - 1, 0, -1)))
    return Tridiagonal(rng.normal(0, np.sqrt(2), p) / np.sqrt(p), off / np.sqrt(p))


def marchenko_pastur(p: int, rng: np.random.Generator) -> Tridiagonal:
    """Sample covariance of p dimensions and 2p samples; edges (1 -+ sqrt(1/2))^2."""
    n = round(p / RATIO)
    diagonal = np.sqrt(rng.chisquare(np.arange(n, n - p, -1)))
    off = np.sqrt(rng.chisquare(np.arange(p - 1, 0, -1)))
    return Tridiagonal((diagonal**2 + np.append(0.0, off**2)) / n, diagonal[:-1] * off / n)


@cache
def _unfolded(p: int, seed: int) -> Array:
    matrix = wigner(p, np.random.default_rng([p, seed]))
    found = scipy.linalg.eigvalsh_tridiagonal(matrix.main.numpy(), matrix.off.numpy())
    return np.clip(scipy.stats.semicircular.cdf(np.clip(found / 2, -1, 1)), 0, 1)


def repelling(p: int, rng: np.random.Generator) -> Array:
    """Numbers of (0, 1), ascending, that are as regular as a GOE's eigenvalues."""
    if p > COMPUTED:
        # One draw, shifted at random, as the largest takes a minute.
        return np.sort((_unfolded(p, 0) + rng.random()) % 1.0)
    return np.sort(np.clip(_unfolded.__wrapped__(p, int(rng.integers(2**31))), 0.3 / p, 1 - 0.3 / p))


def independent(p: int, rng: np.random.Generator) -> Array:
    """Numbers of (0, 1) that know nothing of each other."""
    return np.sort(rng.random(p))


def power_law(uniform: Array, index: float) -> Array:
    """Positive, with a density of |lambda|^-(1 + 1/index)."""
    return (1 - np.minimum(uniform, 1 - 1e-12)) ** -index


def two_sided(uniform: Array, index: float, rng: np.random.Generator) -> Array:
    """Power laws of either sign, mixed."""
    return power_law(uniform, index) * rng.choice([-1.0, 1.0], uniform.size)


def diagonal(values: Array) -> Tridiagonal:
    """Matrix of these eigenvalues."""
    return Tridiagonal(values, np.zeros(len(values) - 1))


BULKS: dict[str, Callable[[int, np.random.Generator], Tridiagonal]] = {
    "Wigner": wigner,
    "Marchenko-Pastur": marchenko_pastur,
    "normal": lambda p, rng: diagonal(scipy.stats.norm.ppf(repelling(p, rng))),
    "exponential, two-sided": lambda p, rng: diagonal(scipy.stats.laplace.ppf(repelling(p, rng))),
    "power law 0.3": lambda p, rng: diagonal(power_law(repelling(p, rng), 0.3)),
    "power law 1": lambda p, rng: diagonal(power_law(repelling(p, rng), 1.0)),
    "power law 1, two-sided": lambda p, rng: diagonal(two_sided(repelling(p, rng), 1.0, rng)),
    "power law 0.3, independent": lambda p, rng: diagonal(power_law(independent(p, rng), 0.3)),
    "power law 1, independent": lambda p, rng: diagonal(power_law(independent(p, rng), 1.0)),
    "power law 1, independent, two-sided": lambda p, rng: diagonal(two_sided(independent(p, rng), 1.0, rng)),
}
"""Bulks without spikes."""

POSITIVE = ("Marchenko-Pastur", "power law 0.3", "power law 1")


def edge_of(name: str, bulk: Tridiagonal) -> float:
    """Size of the bulk's eigenvalue that is farthest from zero: of the limiting law if that has an edge."""
    return EDGES.get(name) or float(bulk.main.abs().max())


def spiked(name: str, bulk: Tridiagonal, places: Array, rng: np.random.Generator) -> Spiked | Covariance:
    """Bulk whose spikes are such that their eigenvalues tend to `places`, all of them beyond the edge.

    Wigner: theta + 1/theta = x. Marchenko-Pastur: l + RATIO l/(l - 1) = x (Baik and Silverstein 2006). Other bulks: the
    mean of 1/(x - lambda) is 1/theta (Benaych-Georges and Nadakuditi 2011).
    """
    if name == "Wigner":
        return Spiked(bulk, (places + np.sign(places) * np.sqrt(places**2 - 4)) / 2, rng)
    if name == "Marchenko-Pastur":
        total = 1 - RATIO + places
        return Covariance(bulk, (total + np.sqrt(total**2 - 4 * places)) / 2 - 1, rng)
    values = bulk.main.numpy()
    return Spiked(bulk, np.array([1 / np.mean(1 / (x - values)) for x in places]), rng)
