"""Eigenvectors of the resolved eigenvalues, and their errors, against dense matrices of known eigenvectors."""

import numpy as np
import pytest
import torch

import hesspec


def spiked(p, dtype, spikes=(9.0, 6.0, -5.0, 3.0)):
    """A random rotation of a bulk in [-0.5, 0.5] with spikes; matrix and eigenvectors of the spikes (p, k)."""
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(p, p, dtype=torch.float64, generator=generator))[0]
    values = torch.cat([torch.tensor(spikes, dtype=torch.float64), torch.linspace(-0.5, 0.5, p - len(spikes))])
    return ((q * values) @ q.T).to(dtype), q[:, : len(spikes)]


@pytest.mark.parametrize("basis", ["full", "half", "half on disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_vectors_are_within_their_bounds(dtype, basis):
    matrix, truth = spiked(400, dtype)
    pairs = hesspec.eigenpairs(matrix, count=4, steps=40, basis=basis)
    rounding = 10 * torch.finfo(dtype).eps * 9
    assert pairs.vectors.shape == (400, 4)
    assert pairs.vectors.dtype == dtype
    assert (np.abs(pairs.values - [9, 6, -5, 3]) <= pairs.residuals + rounding).all()
    vectors = pairs.vectors.double()
    sines = (vectors - truth * (vectors * truth).sum(0)).norm(dim=0).numpy()
    assert (sines <= pairs.vector_errors + rounding).all()
    assert pairs.vector_errors.max() < {"full": 1e-3}.get(basis, 1e-2)


def test_a_restarted_basis_gives_them_too():
    matrix, truth = spiked(400, torch.float64)
    pairs = hesspec.eigenpairs(matrix, count=3, steps=80, basis="restarted", memory=20 * 400 * 8)
    assert (np.abs(pairs.values - [9, 6, -5]) <= pairs.residuals + 1e-13).all()
    assert ((pairs.vectors * truth[:, :3]).sum(0).abs() > 1 - pairs.vector_errors.max() ** 2 - 1e-12).all()


def test_fewer_resolved_than_wanted_gives_fewer():
    matrix, _ = spiked(400, torch.float64)
    pairs = hesspec.eigenpairs(matrix, count=300, steps=20)
    assert pairs.values.size == len(pairs.spectrum.eigenvalues) < 20
    assert pairs.vectors.shape == (400, pairs.values.size)


def test_the_spectrum_is_that_of_the_same_run():
    matrix, _ = spiked(400, torch.float64)
    pairs, alone = hesspec.eigenpairs(matrix, count=4, steps=24, seed=3), hesspec.spectrum(matrix, steps=24, seed=3)
    assert (pairs.spectrum.eigenvalues == alone.eigenvalues).all()
    assert (pairs.spectrum.bulk_nodes == alone.bulk_nodes).all()


@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_a_bad_count_is_refused(count):
    with pytest.raises(ValueError, match=f"count is {count}; it has to be a positive whole number"):
        hesspec.eigenpairs(torch.eye(5), count=count)
