"""Eigenvectors of the resolved eigenvalues, and their errors, against dense matrices of known eigenvectors."""

import numpy as np
import pytest
import torch
from random_operators import SPECTRA, Diagonal, operator_of

import hesspec


def spiked(p, dtype, spikes=(9.0, 6.0, -5.0, 3.0)):
    """A random rotation of a bulk in [-0.5, 0.5] with spikes; matrix and eigenvectors of the spikes (p, k)."""
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(p, p, dtype=torch.float64, generator=generator))[0]
    values = torch.cat([torch.tensor(spikes, dtype=torch.float64), torch.linspace(-0.5, 0.5, p - len(spikes))])
    return ((q * values) @ q.T).to(dtype), q[:, : len(spikes)]


@pytest.mark.parametrize(("basis", "offload"), [("full", None), ("half", None), ("half", "disk")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_vectors_are_within_their_bounds(dtype, basis, offload):
    matrix, truth = spiked(400, dtype)
    pairs = hesspec.eigenpairs(matrix, count=4, steps=40, basis=basis, offload=offload)
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
    with pytest.raises(ValueError, match=f"count is {count}; it must be a positive integer"):
        hesspec.eigenpairs(torch.eye(5), count=count)


# Angles ---------------------------------------------------------------------------------------------------------------


def sines(pairs, values, vectors):
    """True sines of the angles to the eigenspaces of the nearest eigenvalues."""
    found = []
    for value, vector in zip(pairs.values, pairs.vectors.double().numpy().T, strict=True):
        distance = np.abs(values - value)
        same = distance <= distance.min() + 1e-13 * np.abs(values).max()
        outside = vector - vectors[:, same] @ (vectors[:, same].T @ vector)
        found.append(np.linalg.norm(outside) / np.linalg.norm(vector))
    return np.array(found)


ANGLES = [
    "arcsine",
    "near pair",
    "spiked",
    "network",
    "pairs",
    "Kronecker product",
    "graded",
    "clustered",
    "few values",
]


@pytest.mark.parametrize("basis", ["full", "half", "restarted"])
@pytest.mark.parametrize("kind", ANGLES)
@pytest.mark.few(10)
def test_angles_are_within_their_bounds_or_nothing_is_said_of_them(kind, basis):
    for seed in range(4):
        p = (16, 60, 97, 120)[seed]
        rng, dtype = np.random.default_rng(seed), (torch.float64, torch.float32)[seed % 2]
        operator = operator_of(SPECTRA[kind](p, rng), dense=True, dtype=dtype, scale=1.0, seed=seed)
        memory = 14 * p * dtype.itemsize if basis == "restarted" else None
        for steps in (8, 20, 60):
            pairs = hesspec.eigenpairs(operator.matrix, count=4, steps=steps, seed=seed, basis=basis, memory=memory)
            true = sines(pairs, operator.eigenvalues, operator.eigenvectors)
            # Of the true eigenvectors, LAPACK's in float64.
            assert (true <= pairs.vector_errors + 1e-12).all()


@pytest.mark.parametrize("basis", ["full", "restarted"])
def test_something_is_said_of_simple_eigenvalues_that_have_converged(basis):
    matrix, _ = spiked(400, torch.float64)
    memory = 30 * 400 * 8 if basis == "restarted" else None
    pairs = hesspec.eigenpairs(matrix, count=4, steps=60, basis=basis, memory=memory)
    assert (pairs.vector_errors < 1e-3).all()


def test_nothing_is_said_of_multiple_ones():
    for matrix in (torch.zeros(20, 20), torch.eye(20), torch.diag(torch.cat([torch.ones(10), torch.zeros(10)]))):
        assert (hesspec.eigenpairs(matrix, count=2).vector_errors == 1).all()
    # Two copies of an outlier: rounding has brought up both, or one of them is unseen.
    values = np.r_[5.0, 5.0, np.random.default_rng(0).uniform(-1, 1, 98)]
    for steps in (8, 20, 40):
        pairs = hesspec.eigenpairs(Diagonal(values, torch.float64), count=1, steps=steps)
        assert pairs.values == pytest.approx([5.0])
        assert (pairs.vector_errors == 1).all()


def test_a_space_of_one_dimension_has_one_direction():
    assert hesspec.eigenpairs(torch.full((1, 1), 3.0), count=1).vector_errors == [0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_residuals_have_a_floor_of_rounding(dtype):
    # An exact eigenvector, whose residual is measured as zero: its product is rounded all the same.
    values = np.r_[1.0, np.zeros(50)]
    pairs = hesspec.eigenpairs(Diagonal(values, dtype), count=1, steps=20)
    assert pairs.residuals[0] >= torch.finfo(dtype).eps
    for seed in range(20):
        operator = operator_of(np.linspace(-1, 1, 40), dense=True, dtype=dtype, scale=1.0, seed=seed)
        pairs = hesspec.eigenpairs(operator.matrix, count=40, steps=40, seed=seed)
        distances = np.abs(pairs.values[:, None] - operator.eigenvalues).min(axis=1)
        assert (distances <= pairs.residuals).all()
