"""Diagonals of operators, and their standard errors, against exact ones."""

import pytest
import torch

import hesspec
from hesspec.errors import NonFiniteError

P = 80


def spiked(dtype=torch.float64):
    """A small symmetric matrix with four large eigenvalues in random directions."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(P, P, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(torch.randn(P, 4, dtype=torch.float64, generator=generator))[0]
    spikes = torch.tensor([60.0, 40.0, -30.0, 20.0], dtype=torch.float64)
    return ((noise + noise.T) / P**0.5 + basis @ torch.diag(spikes) @ basis.T).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("deflated", [False, True])
def test_estimates_are_unbiased_and_their_errors_are_right(dtype, deflated):
    matrix = spiked(dtype)
    known = hesspec.eigenpairs(matrix, count=4, steps=40) if deflated else None
    exact = matrix.diagonal().double()
    rest = matrix.double()
    if known is not None:
        vectors = known.vectors.double()
        rest = rest - vectors @ torch.diag(torch.as_tensor(known.values)) @ vectors.T
    # The derived standard error: the norm of the rest of a row over the root of the number of probes.
    probes, runs = 50, 20
    derived = ((rest.square().sum(1) - rest.diagonal().square()) / probes).sqrt()
    deviations, squares = [], torch.zeros(P, dtype=torch.float64)
    for seed in range(runs):
        found = hesspec.diagonal(matrix, probes, deflate=known, seed=seed)
        deviations.append((found.values - exact) / derived)
        squares += found.standard_errors.square() / runs
        assert found.values.dtype == torch.float64
    # Means of 1,000 squares of nearly normal numbers have 4.5%; all entries have the same probes.
    assert (squares / derived.square() - 1).abs().max() < 0.25
    assert abs(float((squares / derived.square()).mean()) - 1) < 0.1
    scaled = torch.stack(deviations)
    # 1,600 correlated standard normals, and their means over the runs.
    assert 0.9 < float(scaled.std()) < 1.1
    assert scaled.mean(0).abs().max() * runs**0.5 < 4.5


def test_the_resolved_part_is_exact_and_takes_most_of_the_error():
    matrix = spiked()
    known = hesspec.eigenpairs(matrix, count=4, steps=40)
    plain, deflated = (hesspec.diagonal(matrix, 30, deflate=pairs) for pairs in (None, known))
    assert float(plain.resolved.abs().max()) == 0
    exact = (known.vectors.square() * torch.as_tensor(known.values)).sum(1)
    torch.testing.assert_close(deflated.resolved, exact)
    assert deflated.relative_error < 0.3 * plain.relative_error
    assert deflated.trace == pytest.approx(float(matrix.trace()), abs=4 * float(deflated.standard_errors.norm()))
    assert "30" in deflated.summary()["probes"]


def test_wrong_eigenpairs_leave_the_estimate_unbiased():
    matrix, other = spiked(), torch.diag(torch.linspace(1, 2, P).double())
    wrong = hesspec.eigenpairs(other, count=2, steps=P)
    found = hesspec.diagonal(matrix, 400, deflate=wrong)
    assert ((found.values - matrix.diagonal()) / found.standard_errors).abs().max() < 4.5


def test_a_diagonal_matrix_needs_one_probe():
    found = hesspec.diagonal(torch.diag(torch.arange(5.0)), probes=1)
    assert found.values.tolist() == [0, 1, 2, 3, 4]
    assert found.standard_errors.isnan().all()
    assert "unknown" in str(found)


def test_bad_input_is_answered_with_a_sentence():
    matrix = spiked()
    with pytest.raises(ValueError, match="probes is 0"):
        hesspec.diagonal(matrix, 0)
    with pytest.raises(ValueError, match="seed is 0.5"):
        hesspec.diagonal(matrix, 1, seed=0.5)
    pairs = hesspec.eigenpairs(matrix, count=1, steps=20)
    with pytest.raises(ValueError, match="have 80 entries, and the operator is of size 3"):
        hesspec.diagonal(torch.eye(3), 2, deflate=pairs)
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        hesspec.diagonal(torch.full((3, 3), torch.inf), 1)
