"""Random symmetric operators of all kinds, whose eigenvalues are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.csgraph import maximum_bipartite_matching

Draw = Callable[[int, np.random.Generator], np.ndarray]


def power(rng, low, high):
    """Ten to a random power."""
    return 10.0 ** rng.uniform(low, high)


def signs(p, rng):
    return rng.choice([1.0, -1.0], p)


def repeated(p, times, rng):
    """Normal eigenvalues, each as often as that."""
    return np.repeat(rng.standard_normal(-(-p // times)), times)[:p]


def on_top(p, bulk, top):
    """A bulk with these eigenvalues in the place of its last ones."""
    return np.concatenate([bulk, top])[-p:]


def draw_low_rank(p, rng):
    values = np.zeros(p)
    rank = min(p, int(rng.integers(1, 8)))
    values[:rank] = rng.standard_normal(rank) * 10.0 ** -rng.uniform(0, 9, rank)
    return values


def draw_multiple_outlier(p, rng):
    top = np.full(min(p, int(rng.integers(2, 31))), rng.choice([1, -1]) * power(rng, 0.5, 2.5))
    return on_top(p, 0.1 * rng.standard_normal(p), top)


def draw_multiple_outliers(p, rng):
    copies = rng.integers(1, 6, 6)
    return on_top(p, rng.standard_normal(p) ** 3, np.repeat(power(rng, 0.5, 2) * rng.standard_normal(6), copies))


def draw_network(p, rng):
    """Ten outliers, a heavy-tailed bulk and a kernel."""
    values = np.zeros(p)
    outliers = min(p, 10)
    bulk = min(p - outliers, p // 3)
    values[:outliers] = np.geomspace(50, 1, outliers)
    values[outliers : outliers + bulk] = rng.standard_normal(bulk) ** 3
    return values


def draw_near_pair(p, rng):
    """Two eigenvalues at the top that are barely told apart."""
    return on_top(p, 0.1 * rng.standard_normal(p), 5 * np.array([1, 1 + power(rng, -12, -3)]))


def draw_product(p, rng):
    """Of a Kronecker product with the identity, as of the last layer of a network with a squared loss."""
    return repeated(p, int(rng.integers(2, 11)), rng) ** 4


def draw_wilkinson(p, rng):
    """Tridiagonal with one of Wilkinson's: pairs that agree to many digits."""
    diagonal = np.abs(np.arange(p) - (p - 1) / 2)
    return np.linalg.eigvalsh(np.diag(diagonal) + np.diag(np.ones(p - 1), 1) + np.diag(np.ones(p - 1), -1))


def draw_covariance(p, rng):
    """Marchenko and Pastur, with a kernel where there are fewer samples than dimensions."""
    samples = max(1, int(p * power(rng, -0.5, 0.5)))
    found = np.linalg.svd(rng.standard_normal((p, samples)), compute_uv=False) ** 2 / samples
    return np.concatenate([found, np.zeros(p - found.size)])


def draw_mixed(p, rng):
    names = rng.choice([name for name in SPECTRA if name != "mixed"], 3)
    parts = [10.0 ** -rng.integers(0, 8) * SPECTRA[str(name)](p, rng) for name in names]
    return np.choose(rng.integers(0, 3, p), parts)


SPECTRA: dict[str, Draw] = {
    "clustered": lambda p, rng: (
        rng.choice(rng.standard_normal(4), p) + 10.0 ** -rng.integers(2, 17) * rng.standard_normal(p)
    ),
    "few values": lambda p, rng: rng.choice(rng.integers(-3, 4, rng.integers(1, 5)).astype(float), p),
    "zero": lambda p, rng: np.zeros(p),
    "negative": lambda p, rng: -(rng.random(p) ** rng.integers(1, 9)),
    "low rank": draw_low_rank,
    "identity": lambda p, rng: np.full(p, rng.standard_normal()),
    "near identity": lambda p, rng: 1 + 10.0 ** -rng.integers(1, 16) * rng.standard_normal(p),
    "low rank and identity": lambda p, rng: 1 + draw_low_rank(p, rng),
    "graded": lambda p, rng: np.geomspace(1, 10.0 ** -rng.integers(1, 30), p) * signs(p, rng),
    "graded, positive": lambda p, rng: np.geomspace(1, 10.0 ** -rng.integers(1, 30), p),
    "normal": lambda p, rng: rng.standard_normal(p),
    "spiked": lambda p, rng: on_top(p, power(rng, -8, 0) * rng.standard_normal(p), 5 * rng.standard_normal(6)),
    "reflection": signs,
    "projection": lambda p, rng: (rng.random(p) < rng.random()).astype(float),
    "heavy-tailed": lambda p, rng: rng.standard_cauchy(p),
    "two values": lambda p, rng: np.where(np.arange(p) < rng.integers(0, p + 1), 1.0, 10.0 ** -rng.integers(0, 17)),
    "pairs": lambda p, rng: repeated(p, 2, rng),
    "triples": lambda p, rng: repeated(p, 3, rng),
    "symmetric pairs": lambda p, rng: repeated(p, 2, rng) * np.where(np.arange(p) % 2, 1, -1),
    "cycle": lambda p, rng: 2 - 2 * np.cos(2 * np.pi * np.arange(p) / p),
    "Kronecker product": draw_product,
    "multiple outlier": draw_multiple_outlier,
    "multiple outliers": draw_multiple_outliers,
    "near pair": draw_near_pair,
    "network": draw_network,
    "power law": lambda p, rng: (np.arange(p) + 1.0) ** -rng.uniform(0.3, 3),
    "two-sided power law": lambda p, rng: (np.arange(p) + 1.0) ** -rng.uniform(0.3, 3) * signs(p, rng),
    "arcsine": lambda p, rng: np.cos(np.pi * (np.arange(p) + 0.5) / p),
    "covariance": draw_covariance,
    "Wilkinson": draw_wilkinson,
    "mixed": draw_mixed,
}


class Diagonal:
    """diag(values): its eigenvectors do not matter to a probe that is uniform on the sphere."""

    def __init__(self, values: np.ndarray, dtype: torch.dtype) -> None:
        self.values = torch.tensor(values, dtype=dtype)
        self.shape, self.dtype, self.device = (len(values),) * 2, dtype, torch.device("cpu")

    def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
        """With a vector or with columns."""
        return self.values * vectors if vectors.dim() == 1 else self.values[:, None] * vectors


@dataclass(frozen=True)
class Operator:
    """A symmetric matrix as a run is given it, and its eigenpairs, ascending."""

    matrix: torch.Tensor
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    seed: int

    @property
    def p(self) -> int:
        return len(self.matrix)

    @property
    def norm(self) -> float:
        return float(np.abs(self.eigenvalues).max())


def operator_of(values: np.ndarray, *, dense: bool, dtype: torch.dtype, scale: float, seed: int) -> Operator:
    """With these eigenvalues times a scale, up to rounding: rotated, or a diagonal matrix."""
    p, rng = len(values), np.random.default_rng(seed)
    if not dense:
        matrix = torch.diag(torch.from_numpy(values * scale)).to(dtype)
        given = matrix.diagonal().double().numpy()
        order = np.argsort(given, kind="stable")
        return Operator(matrix, given[order], np.eye(p)[:, order], seed)
    basis = np.linalg.qr(rng.standard_normal((p, p)))[0]
    full = (basis * values) @ basis.T
    matrix = torch.from_numpy((full + full.T) / 2 * scale).to(dtype)
    return Operator(matrix, *eigenpairs_of(matrix), seed)


def eigenpairs_of(matrix: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Eigenpairs of the float64 values of a matrix; eigenvalues to 1e-3 eps ||A|| where long doubles allow it.

    LAPACK's own error, up to 18 eps ||A|| even for p < 10, would not do beside bounds of 4 sqrt(m) eps ||A||: so its
    eigenvectors V refine themselves. With E = V^T V - I, V (I - E/2) is orthonormal to second order, and A is nearly
    diagonal in it; what couples eigenvalues that are further apart than 1e-8 ||A|| enters squared, below 1e-22 ||A||,
    and clusters are diagonalised by themselves, about their means.
    """
    a = matrix.double().numpy()
    exponent = int(np.frexp(np.abs(a).max())[1])
    a = np.ldexp(a, -exponent)
    values, vectors = np.linalg.eigh(a)
    if matrix.dtype == torch.float64 and a.any():
        v = vectors.astype(np.longdouble)
        skew = v.T @ v - np.eye(len(a))
        near = v.T @ (a.astype(np.longdouble) @ v)
        near -= (skew @ near + near @ skew) / 2
        order = np.argsort(np.diag(near), kind="stable")
        near = near[np.ix_(order, order)]
        middle = np.diag(near)
        for cluster in np.split(np.arange(len(a)), np.flatnonzero(np.diff(middle) > 1e-8 * np.abs(middle).max()) + 1):
            mean = middle[cluster].mean()
            within = (near[np.ix_(cluster, cluster)] - mean * np.eye(len(cluster))).astype(float)
            values[cluster] = mean + np.linalg.eigvalsh((within + within.T) / 2)
        values, vectors = np.sort(values), vectors[:, order]
    return np.ldexp(values, exponent), vectors


def paired(values: np.ndarray, bounds: np.ndarray, truth: np.ndarray) -> bool:
    """Whether every value has a true eigenvalue of its own within its bound."""
    if not values.size:
        return True
    # Truth is given in float64 and so is the difference: half a unit in the last place of either.
    within = np.abs(truth[None] - values[:, None]) <= bounds[:, None] + np.finfo(float).eps * np.abs(truth[None])
    match = maximum_bipartite_matching(scipy.sparse.csr_matrix(within), perm_type="column")
    return bool((match >= 0).all())
