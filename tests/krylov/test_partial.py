"""Partial reorthogonalisation: orthogonality, T and bounds, on diagonal operators."""

import numpy as np
import pytest
import torch

import hesspec
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.lanczos import Lanczos
from hesspec.krylov.storage import Storage
from hesspec.krylov.vectors import Space

CPU = torch.device("cpu")
PRECISIONS = [torch.float32, torch.float64]


class Diagonal:
    """A diagonal operator."""

    def __init__(self, values):
        self.values, self.shape, self.dtype, self.device = values, (len(values),) * 2, values.dtype, CPU

    def __matmul__(self, vectors):
        """Product with a vector or with columns."""
        return self.values * vectors if vectors.dim() == 1 else self.values[:, None] * vectors


def run(values, steps, half=False):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(values), generator=generator).to(values.dtype)
    lanczos = Lanczos(start, generator, storage=Storage(half), partial=True)
    while len(lanczos) < steps:
        lanczos.step(values * lanczos.vector)
    return lanczos


# Few outliers over a bulk that is far below them, as of the Gauss-Newton matrix of a large network: once the outliers
# are exhausted, residuals are small beside the components that rounding leaves along them.
def _bulks(p):
    k = torch.arange(1, p - 29)
    outliers = torch.linspace(1, 0.1, 30)
    return {
        "slow tail": torch.cat([outliers, 1e-3 / k**0.5]),
        "tail": torch.cat([outliers, 1e-6 / k]),
        "one value": torch.cat([outliers, torch.full((p - 30,), 1e-4)]),
        "low rank": torch.cat([outliers, torch.zeros(p - 30)]),
        "two scales": torch.cat([outliers, 1e-3 * outliers, 1e-6 / k[30:] ** 0.5]),
    }


BULKS = _bulks(2**18)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BULKS)
@pytest.mark.few(4)
def test_partial_reorthogonalisation_survives_the_end_of_the_outliers(name, dtype):
    values = BULKS[name].to(dtype)
    found = hesspec.spectrum(Diagonal(values), steps=64)
    assert found.norm == pytest.approx(1, rel=1e-6)
    assert found.eigenvalues.size >= 30
    exact = values.double().sort(descending=True).values.numpy()[: found.eigenvalues.size]
    order = np.argsort(-found.eigenvalues)
    assert (np.abs(found.eigenvalues[order] - exact) <= found.error_bounds[order]).all()
    # Rounding is that of a semi-orthogonal basis at most: 64 steps of the square root of eps.
    assert found.rounding <= 64 * torch.finfo(dtype).eps ** 0.5


@pytest.mark.parametrize("half", [False, True], ids=["full", "half"])
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", ["outliers", "tail", "two sides"])
def test_two_vectors_in_one_pass_leave_t_and_orthogonality_to_their_bounds(name, dtype, half):
    p, steps = 8192, 60
    k = torch.arange(1, p - 9, dtype=torch.float64)
    values = {
        "outliers": torch.cat([torch.linspace(60, 20, 10), torch.linspace(-1, 1, p - 10)]),
        "tail": torch.cat([torch.linspace(60, 20, 10), 10 / k]),
        "two sides": torch.cat([torch.linspace(60, -40, 10), (-1) ** k / k**0.5]),
    }[name].to(dtype)
    lanczos = run(values, steps, half)
    q = torch.stack([lanczos.basis[i] for i in range(steps)]).double()
    products = (q @ q.T - torch.eye(steps, dtype=torch.float64)).abs()
    eps = torch.finfo(dtype).eps
    # Beyond what the omega recurrence allows there is the rounding of stored vectors, which both have.
    kept = 2 * lanczos._state.orthogonality.kept
    assert float(products.max()) <= eps**0.5 + kept
    assert float(products.max()) <= lanczos._state.orthogonality.largest + kept
    if half or dtype == torch.float64:
        # T is that of vectors before they were rounded; and in float64 the truth below is no more exact than T.
        return
    # T is that of the orthonormal vectors of which the first 1, 2, ... span the same spaces.
    orthonormal = torch.linalg.qr(q.T)[0]
    orthonormal *= (orthonormal * q.T).sum(0).sign()
    projected = orthonormal.T @ (values.double()[:, None] * orthonormal)
    alpha, beta = (torch.from_numpy(part) for part in lanczos.tridiagonal())
    error = projected - torch.diag(alpha) - torch.diag(beta[:-1], 1) - torch.diag(beta[:-1], -1)
    assert float(torch.linalg.matrix_norm(error, 2)) <= lanczos.backward_error(steps)


def test_passes_are_shared_by_two_vectors():
    values = torch.cat([torch.linspace(60, 20, 10), torch.linspace(-1, 1, 8182)])
    lanczos = run(values, 60)
    # The first eight steps, then a pass each time the last two vectors have to be orthogonalised: 21.3 in all. As
    # passes in two consecutive steps they were 27.3.
    assert lanczos.passes < 24


@pytest.mark.parametrize("half", [False, True], ids=["full", "half"])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_orthogonalising_two_vectors_is_orthogonalising_each(dtype, half):
    generator = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(1000, 37, generator=generator, dtype=torch.float64))[0].T.to(dtype)
    basis = KrylovBasis(Space(1000), dtype=dtype, device=CPU, storage=Storage(half))
    for row in rows:
        basis.append(row)
    # One of them has to be orthogonalised twice, the other once.
    pair = [rows[3] + 1e-3 * torch.randn(1000, generator=generator).to(dtype), torch.randn(1000, generator=generator)]
    pair = [vector.to(dtype) for vector in pair]
    apart = [vector.clone() for vector in pair]
    chosen = basis.around(np.array([0, 33]))
    lengths = tuple(float(vector.norm()) for vector in pair)
    removed = basis.orthogonalise_two(*pair, chosen, lengths)
    for vector, expected, found, length in zip(pair, apart, removed, lengths, strict=True):
        torch.testing.assert_close(found, basis.orthogonalise(expected, chosen, length), rtol=0, atol=0)
        torch.testing.assert_close(vector, expected, rtol=0, atol=0)
