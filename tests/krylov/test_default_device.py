"""A device that is the default of tensors changes nothing of operators on another one."""

import pytest
import torch

import hesspec

MATRIX = torch.diag(torch.cat([torch.linspace(-0.1, 0.1, 60), torch.tensor([5.0, 9.0])]))


@pytest.fixture
def elsewhere():
    """Tensors without values by default: any that is made without its device ends in an error."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize(
    "options",
    [{}, {"probes": 2}, {"basis": "half"}, {"basis": "restarted", "memory": 20_000}, {"steps": "auto"}, {"trace": 0.3}],
)
def test_spectra(options, request):
    settings = {"steps": 24, "seed": 0, **options}
    expected = hesspec.spectrum(MATRIX, **settings)
    request.getfixturevalue("elsewhere")
    found = hesspec.spectrum(MATRIX, **settings)
    assert (found.nodes == expected.nodes).all()
    assert (found.weights == expected.weights).all()


def test_solutions_pairs_and_diagonals(elsewhere):
    rhs = torch.ones(62, device="cpu")
    solution = hesspec.solve(MATRIX, rhs, damping=1.0).solution
    assert torch.allclose(MATRIX @ solution + solution, rhs, atol=1e-4)
    assert hesspec.eigenpairs(MATRIX, count=2, seed=0).vectors.device.type == "cpu"
    assert hesspec.diagonal(MATRIX, probes=3, seed=0).values.device.type == "cpu"
    assert (2 * hesspec.Preconditioned(MATRIX, torch.ones(62, device="cpu")) @ rhs).device.type == "cpu"
