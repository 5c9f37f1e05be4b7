"""The bound from flatness: known numbers, invariance under scaling, and bad input."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from saved_results import check_refused, check_saved
from torch import nn

import hesspec

noise = hesspec.noise
THETA, CURVATURE = np.array([1.0, 0.5, -0.2, 0.1]), np.array([100.0, 4.0, 0.5, 0.0])


def bound(theta=THETA, curvature=CURVATURE, variance=0.25, initial=None, **changes):
    given = {"samples": 1000, "empirical_risk": 0.02, **changes}
    start = np.zeros(len(theta)) if initial is None else initial
    return noise.flatness_bound(theta, start, curvature, prior_variance=variance, **given)


def binary_kl(first, second):
    return first * np.log(first / second) + (1 - first) * np.log((1 - first) / (1 - second))


def test_numbers_of_the_page():
    found = bound()
    assert found.effective_curvature == pytest.approx(1.609438, abs=5e-7)
    assert found.distance == pytest.approx(2.6, rel=1e-14)
    assert found.kl == pytest.approx(3.729438, abs=5e-7)
    assert found.bound == pytest.approx(0.047957, abs=5e-7)
    complexity = (found.kl + np.log(2 * np.sqrt(1000) / 0.05)) / 1000
    assert binary_kl(0.02, found.bound) == pytest.approx(complexity, rel=1e-10)
    # Pinsker's inequality is weaker.
    assert 0.02 + np.sqrt(complexity / 2) == pytest.approx(0.093730, abs=5e-7)
    assert found.sharp_directions == 1
    assert found.kl <= found.effective_curvature + found.distance


def test_the_divergence_is_that_of_the_two_gaussians():
    variance = np.array([0.25, 0.5, 1.0, 2.0])
    posterior = torch.as_tensor(noise.posterior_variance(CURVATURE, prior_variance=variance))
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(
        normal(torch.as_tensor(THETA), posterior.sqrt()),
        normal(torch.zeros(4, dtype=torch.float64), torch.as_tensor(variance).sqrt()),
    )
    assert bound(variance=variance).kl == pytest.approx(float(exact.sum()), rel=1e-13)


def test_scaling_parameters_and_prior_together_changes_nothing():
    scale = np.array([7, 7, 1 / 7, 1 / 7])
    plain, scaled = bound(variance=np.full(4, 0.25)), bound(THETA * scale, CURVATURE / scale**2, 0.25 * scale**2)
    for name in ("kl", "bound", "effective_curvature", "distance"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-13)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity])
def test_rescaled_layers_of_a_network_have_the_same_bound_and_another_sharpness(activation):
    torch.manual_seed(0)
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randint(3, (30,))
    found, sharpness = [], []
    for factor in (1.0, 5.0):
        torch.manual_seed(1)
        layers = nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False)
        model = nn.Sequential(layers[0], activation(), layers[1]).double()
        variance = torch.tensor([0.3 * factor**2] * 20 + [0.3 / factor**2] * 15, dtype=torch.float64)
        with torch.no_grad():
            layers[0].weight.mul_(factor)
            layers[1].weight.div_(factor)
        hessian = hesspec.Hessian(model, nn.CrossEntropyLoss(), [(x, y)])
        dense = hessian @ torch.eye(35, dtype=torch.float64)
        theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        found.append(bound(theta, 100 * dense.diagonal(), variance, torch.zeros(35)))
        sharpness.append(float(torch.linalg.eigvalsh(dense)[-1]))
    assert found[0].bound == pytest.approx(found[1].bound, rel=1e-10)
    assert found[0].effective_curvature > 0
    assert abs(sharpness[1] / sharpness[0] - 1) > 0.5


def test_a_spectrum_gives_the_bound_of_its_eigenvalues():
    eigenvalues = np.concatenate([np.linspace(-0.5, 0.5, 60), [40.0, 90.0]])
    theta = np.full(62, 0.1)
    exact = bound(theta, eigenvalues, 0.25)
    spectrum = hesspec.spectrum(torch.diag(torch.as_tensor(eigenvalues)), steps=62)
    found = bound(theta, spectrum, 0.25)
    for name in ("kl", "bound", "effective_curvature", "distance"):
        assert getattr(found, name) == pytest.approx(getattr(exact, name), rel=1e-9)
    assert found.sharp_directions == pytest.approx(2)
    # An isotropic prior does not see which way the eigenvectors lie, but the diagonal does.
    estimated = hesspec.diagonal(torch.diag(torch.as_tensor(eigenvalues)), probes=1)
    assert bound(theta, estimated, 0.25).kl == pytest.approx(exact.kl, rel=1e-13)


@pytest.mark.parametrize(("empirical", "kl"), [(0.0, 0.0), (0.5, 1e6), (1.0, 3.0), (0.999, 20.0)])
def test_extreme_risks_have_a_bound(empirical, kl):
    theta = np.array([np.sqrt(2 * kl)])
    found = bound(theta, np.zeros(1), 1.0, empirical_risk=empirical)
    assert empirical <= found.bound <= 1
    if empirical == 0:
        complexity = (found.kl + np.log(2 * np.sqrt(1000) / 0.05)) / 1000
        assert found.bound == pytest.approx(1 - np.exp(-complexity), rel=1e-12)


def test_a_result_is_saved_shown_and_drawn(tmp_path):
    found = bound()
    check_saved(found, tmp_path)
    assert "3.72944 nats" in str(found)
    assert found.plot().axes[0].get_xlabel() == "nats"
    check_refused(found, "Its bound is 0.01", bound=0.01)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"empirical_risk": 1.5}, "empirical_risk is 1.5"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"variance": 0.0}, "prior_variance must be positive"),
        ({"variance": np.ones(3)}, "prior_variance has the shape"),
        ({"curvature": np.ones(3)}, "curvature has 3 entries, and there are 4"),
        ({"curvature": np.array([np.nan] * 4)}, "curvature contains NaN"),
        ({"initial": np.zeros(5)}, "have 4 and 5 entries"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(change, words):
    with pytest.raises(ValueError, match=words):
        bound(**change)


def test_a_spectrum_of_another_network_is_refused():
    spectrum = hesspec.spectrum(torch.diag(torch.arange(5.0)), steps=5)
    with pytest.raises(ValueError, match="of 5 parameters, and there are 4"):
        bound(curvature=spectrum)
    with pytest.raises(ValueError, match="prior_variance must be one number"):
        bound(np.zeros(5), spectrum, np.ones(5))


def test_results_can_be_read_without_torch():
    code = (
        "import sys, hesspec; hesspec.noise.FlatnessBound, hesspec.PrincipalAngles; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - this very Python
    assert set(noise.__all__) <= set(dir(noise))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = noise.nothing
