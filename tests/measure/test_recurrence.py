"""Eigenpairs whose residuals follow from the recurrence of the run, against their true residuals."""

import numpy as np
import pytest
import torch

import hesspec
from hesspec.krylov import run as krylov_run
from hesspec.krylov.storage import Storage
from hesspec.measure import runs as module
from hesspec.measure.recurrence import resolved_pairs

P = 300
RANKS = torch.arange(1, P + 1, dtype=torch.float64)
SPECTRA = {
    "powers": 1 / RANKS,
    "steep powers": RANKS**-2,
    "clusters": torch.cat([1 + 1e-6 * RANKS[:5], 0.5 + 1e-4 * RANKS[:5], 0.2 + 1e-2 * RANKS[:5], 0.01 / RANKS[:285]]),
    "copies": torch.cat([torch.ones(4), torch.full((3,), 0.3), 0.05 / RANKS[:293]]).double(),
    "indefinite": torch.cat([1 / RANKS[:150], -2 / RANKS[:150]]),
    "low rank": torch.cat([RANKS[:7], torch.zeros(293)]),
    "identity": torch.ones(P, dtype=torch.float64),
    "large": 1e30 / RANKS,
}


def dense(values, dtype):
    turn = torch.linalg.qr(torch.randn(P, P, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    matrix = ((turn * values) @ turn.T).to(dtype)
    return (matrix + matrix.T) / 2


class Counting:
    """A dense operator that counts products."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.dtype, self.device = matrix, matrix.shape, matrix.dtype, matrix.device
        self.products = 0

    def __matmul__(self, vectors):
        self.products += 1 if vectors.dim() == 1 else vectors.shape[1]
        return self.matrix @ vectors


@pytest.mark.parametrize("partial", [False, True], ids=["full", "partial"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECTRA)
def test_residuals_are_bounded_without_products(name, dtype, partial, monkeypatch):
    if partial:
        monkeypatch.setattr(krylov_run, "PARTIAL_FROM", 1)
    operator = Counting(dense(SPECTRA[name], dtype))
    pairs = resolved_pairs(operator, count=50, steps=40, seed=0)
    assert pairs.products == 0
    assert operator.products == pairs.spectrum.matvecs <= 41
    vectors, values = pairs.vectors.double(), torch.as_tensor(pairs.values)
    assert vectors.shape == (P, len(values))
    assert len(values) > 0
    gram = vectors.T @ vectors - torch.eye(len(values), dtype=torch.float64)
    assert gram.abs().max() <= 20 * torch.finfo(dtype).eps
    true = operator.matrix.double() @ vectors - vectors * values
    # Rounding of this product in float64.
    slack = 100 * torch.finfo(torch.float64).eps * pairs.spectrum.norm
    assert (true.norm(dim=0) <= torch.as_tensor(pairs.residuals) * (1 + 1e-9) + pairs.rounding + slack).all()
    assert true.norm() <= np.linalg.norm(pairs.residuals) * (1 + 1e-9) + pairs.rounding + slack
    # Rank one up to rounding.
    assert torch.linalg.svdvals(true)[1:].square().sum().sqrt() <= pairs.rounding + slack


@pytest.mark.parametrize("keeping", [Storage(half=True), 24], ids=["half", "restarted"])
def test_residuals_are_measured_where_the_basis_is_not_exact(keeping, monkeypatch):
    monkeypatch.setattr(module, "choose_storage", lambda *_: keeping)
    operator = Counting(dense(SPECTRA["powers"], torch.float32))
    pairs = resolved_pairs(operator, count=5, steps=60, seed=0)
    assert pairs.products == len(pairs.values) == 5
    assert operator.products == pairs.spectrum.matvecs + 5
    vectors, values = pairs.vectors.double(), torch.as_tensor(pairs.values)
    true = operator.matrix.double() @ vectors - vectors * values
    assert (true.norm(dim=0) <= torch.as_tensor(pairs.residuals)).all()


def test_eigenvectors_are_exact_where_vectors_are_semi_orthogonal():
    # Above 2^18 parameters, Lanczos vectors are orthogonal to sqrt(eps) only, and T is exact for the orthonormal ones.
    p = 1 << 18
    ranks = torch.arange(1, p - 9, dtype=torch.float32)
    operator = torch.cat([torch.linspace(1, 0.2, 10), 0.1 / ranks])
    pairs = hesspec.eigenpairs(_Diagonal(operator), count=8, steps=40)
    assert pairs.residuals.max() <= 2 * pairs.spectrum.rounding
    gram = pairs.vectors.T.double() @ pairs.vectors.double() - torch.eye(8)
    assert gram.abs().max() <= 1e-6


class _Diagonal:
    def __init__(self, values):
        self.values, self.shape, self.dtype, self.device = values, (len(values),) * 2, values.dtype, values.device

    def __matmul__(self, vectors):
        return self.values * vectors if vectors.dim() == 1 else self.values[:, None] * vectors
