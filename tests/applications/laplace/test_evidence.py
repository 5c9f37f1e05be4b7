"""Evidence and effective parameters against closed forms, and their intervals against known spectra."""

import exact_networks
import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import hesspec
from hesspec import laplace
from hesspec.applications.laplace.sums import quadrature_gap


class Diagonal:
    """A diagonal operator."""

    def __init__(self, entries, dtype=torch.float64):
        self.entries = torch.as_tensor(np.asarray(entries), dtype=dtype)
        self.shape, self.dtype, self.device = (len(entries),) * 2, dtype, torch.device("cpu")

    def __matmul__(self, vectors):
        return self.entries * vectors if vectors.dim() == 1 else self.entries[:, None] * vectors


def regression(x, y, *, prior=1.0, noise=1.0, reduction="mean", batches=1):
    """A linear model at the maximum of its posterior: model, loss, data, log Z by the Gaussian marginal likelihood."""
    model = nn.Linear(x.shape[1], y.shape[1], bias=False).double()
    precision = x.T @ x / noise**2 + prior * torch.eye(x.shape[1], dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(precision, x.T @ y / noise**2).T)
    covariance = noise**2 * np.eye(len(x)) + (x @ x.T / prior).numpy()
    truth = sum(scipy.stats.multivariate_normal(np.zeros(len(x)), covariance).logpdf(column) for column in y.T.numpy())
    pairs = [*zip(torch.tensor_split(x, batches), torch.tensor_split(y, batches), strict=True)]
    return model, nn.MSELoss(reduction=reduction), pairs, truth


def random_regression(outputs=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(11, 4, dtype=torch.float64, generator=generator)
    return x, torch.randn(11, outputs, dtype=torch.float64, generator=generator)


def marginal(model, loss, data, *, noise=1.0, **options):
    norm = sum(float(value.detach().square().sum()) for value in model.parameters())
    spectrum = hesspec.spectrum(hesspec.GaussNewton(model, loss, data, **options))
    return laplace.MarginalLikelihood(spectrum, squared_norm=norm, noise=noise)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(("prior", "noise"), [(1.0, 1.0), (0.3, 2.0), (40.0, 0.1)])
def test_evidence_of_a_linear_model_is_the_gaussian_marginal_likelihood(prior, noise, outputs, batches, reduction):
    model, loss, data, truth = regression(
        *random_regression(outputs), prior=prior, noise=noise, reduction=reduction, batches=batches
    )
    found = marginal(model, loss, data, noise=noise).log_evidence(prior)
    assert abs(found.value - truth) <= 1e-10 * max(1.0, abs(truth))
    assert found.lower <= found.value <= found.upper
    assert found.upper - found.lower <= 1e-10 * max(1.0, abs(truth))


def test_four_inputs_with_a_diagonal_jacobian():
    x = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64))
    model, loss, data, _ = regression(x, torch.ones(4, 1, dtype=torch.float64))
    assert marginal(model, loss, data).effective_parameters(1.0).value == pytest.approx(2.4, abs=1e-12)


def test_one_sample_with_three_classes_at_zero():
    model = nn.Linear(1, 3, bias=False).double()
    nn.init.zeros_(model.weight)
    data = [(torch.ones(1, 1, dtype=torch.float64), torch.tensor([0]))]
    # Differences have no displacement to take where all parameters and outputs are zero.
    found = marginal(model, nn.CrossEntropyLoss(), data, verify=False)
    # Eigenvalues 0, 1/3, 1/3.
    assert found.effective_parameters(1.0).value == pytest.approx(0.5, abs=1e-12)
    assert found.log_evidence(1.0).value == pytest.approx(-np.log(3) - np.log(4 / 3), abs=1e-12)


def test_the_number_of_samples_counts_and_not_that_of_batches():
    x = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(7) % 3
    model = nn.Linear(2, 3).double()
    found = [
        marginal(model, nn.CrossEntropyLoss(reduction=reduction), [*zip(x.split(size), y.split(size), strict=True)])
        for size in (7, 3)
        for reduction in ("mean", "sum")
    ]
    truth = -float(nn.functional.cross_entropy(model(x).detach(), y, reduction="sum"))
    for each in found:
        assert each.likelihood.log_likelihood == pytest.approx(truth, rel=1e-12)
        assert each.log_evidence(2.0).value == pytest.approx(found[0].log_evidence(2.0).value, rel=1e-12)


def test_best_prior_is_the_maximum_and_a_fixed_point():
    model, loss, data, _ = regression(*random_regression(2))
    found = marginal(model, loss, data)
    best = found.optimise_prior()
    gamma = found.effective_parameters(best.value).value
    assert best.value == pytest.approx(gamma / found.squared_norm, rel=1e-9)
    around = [found.log_evidence(best.value * factor).value for factor in (0.9, 0.999, 1.0, 1.001, 1.1)]
    assert max(around) == around[2]
    assert best.lower <= best.value <= best.upper <= best.lower * (1 + 1e-6)


def diagonal_marginal(eigenvalues, *, seed, steps=24, probes=1, dtype=torch.float64, terms=1500.0):
    found = hesspec.spectrum(Diagonal(eigenvalues, dtype), steps=steps, probes=probes, seed=seed)
    attributes = {"loss": "CrossEntropyLoss", "reduction": "mean", "risk": 0.2, "terms": terms}
    spectrum = hesspec.Spectrum(**{**vars(found), "attributes": attributes})
    return laplace.MarginalLikelihood(spectrum, squared_norm=100.0)


def truths(eigenvalues, prior, terms=1500.0):
    values = terms * np.maximum(eigenvalues, 0)
    return (values / (values + prior)).sum(), -0.2 * terms - prior * 50 - np.log1p(values / prior).sum() / 2


@pytest.mark.parametrize("probes", [1, 2])
@pytest.mark.parametrize("name", exact_networks.NAMES)
def test_intervals_cover_the_truth_of_trained_networks(name, probes):
    eigenvalues = exact_networks.load(name).eigenvalues["GaussNewton"]
    runs, priors, missed, widths = 24, np.logspace(-3, 4, 8), np.zeros((2, 8)), []
    for seed in range(runs):
        found = diagonal_marginal(eigenvalues, seed=seed, probes=probes)
        for i, prior in enumerate(priors):
            estimates = found.effective_parameters(prior), found.log_evidence(prior)
            for j, (estimate, truth) in enumerate(zip(estimates, truths(eigenvalues, prior), strict=True)):
                assert estimate.lower <= estimate.value <= estimate.upper
                missed[j, i] += not estimate.lower <= truth <= estimate.upper
            widths.append((estimates[0].upper - estimates[0].lower) / len(eigenvalues))
    # More misses than this have a probability below 1e-4 for any one of the 32 cases, if 5% is the rate.
    assert missed.max() <= scipy.stats.binom.ppf(1 - 1e-4, runs, 0.05)
    assert max(widths) < 1


def test_quadrature_brackets_the_measure_of_the_probe():
    eigenvalues = np.concatenate([np.zeros(50), np.logspace(-6, 0, 150)])
    for seed in range(4):
        spectrum = hesspec.spectrum(Diagonal(eigenvalues), steps=10, seed=seed)
        # With as many steps as there are different eigenvalues, the measure of the same probe itself.
        full = hesspec.spectrum(Diagonal(eigenvalues), steps=200, seed=seed)
        for prior in (1e-3, 1e-1, 10.0):
            for function in (lambda x, t=prior: np.log1p(x / t), lambda x, t=prior: x / (x + t)):
                gauss = spectrum.ritz_weights @ function(np.maximum(spectrum.ritz_values, 0))
                truth = full.ritz_weights @ function(np.maximum(full.ritz_values, 0))
                gap = quadrature_gap(spectrum, lambda x, f=function: f(np.maximum(x, 0)))
                slack = function(np.array([1e-12])).item() * 2 + 1e-13
                assert gauss - gap - slack <= truth <= gauss + slack


def test_float32_agrees_with_float64():
    eigenvalues = exact_networks.load("digits-mlp").eigenvalues["GaussNewton"]
    found = diagonal_marginal(eigenvalues, seed=3, dtype=torch.float32)
    rounding = found.spectrum.rounding * found.likelihood.scale
    for prior in np.logspace(-1, 3, 5):
        gamma, evidence = truths(eigenvalues, prior)
        slack = len(eigenvalues) * rounding / (rounding + prior)
        estimate = found.effective_parameters(prior)
        assert estimate.lower - slack <= gamma <= estimate.upper + slack
        estimate = found.log_evidence(prior)
        assert estimate.lower - slack <= evidence <= estimate.upper + slack


def test_copies_that_a_probe_does_not_see_are_in_the_interval():
    # Every eigenvalue three times, as for a linear model with three outputs.
    eigenvalues = np.repeat(np.geomspace(1e-3, 1, 40), 3)
    found = diagonal_marginal(eigenvalues, seed=0, steps=24, terms=100.0)
    estimate = found.effective_parameters(1.0)
    assert estimate.lower <= truths(eigenvalues, 1.0, 100.0)[0] <= estimate.upper


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), "one"])
def test_priors_and_noise_must_be_positive(bad):
    found = diagonal_marginal(np.ones(5), seed=0)
    for method in (found.log_evidence, found.effective_parameters, lambda prior: found.table([prior])):
        with pytest.raises(ValueError, match="positive|could not convert"):
            method(bad)
    model, loss, data, _ = regression(*random_regression())
    with pytest.raises(ValueError, match="noise is .* positive"):
        marginal(model, loss, data, noise=bad)


def test_what_is_not_a_likelihood_is_refused():
    model, _, data, _ = regression(*random_regression())
    with pytest.raises(ValueError, match="HuberLoss is not a known negative log-likelihood"):
        marginal(model, nn.HuberLoss(), data)
    with pytest.raises(ValueError, match="spectrum of Hessian"):
        laplace.MarginalLikelihood(hesspec.spectrum(hesspec.Hessian(model, nn.MSELoss(), data)), squared_norm=1.0)
    with pytest.raises(ValueError, match="does not state the loss"):
        laplace.MarginalLikelihood(hesspec.spectrum(Diagonal(np.ones(3))), squared_norm=1.0)
    classes = [(data[0][0], torch.arange(11) % 2)]
    model = nn.Linear(4, 2).double()
    with pytest.raises(ValueError, match="noise is 2, but CrossEntropyLoss"):
        marginal(model, nn.CrossEntropyLoss(), classes, noise=2.0)
    with pytest.raises(ValueError, match="with class weights it is not a log-likelihood"):
        marginal(model, nn.CrossEntropyLoss(weight=torch.tensor([0.3, 1.0])), classes)


def test_evidence_without_a_maximum_is_refused():
    with pytest.raises(ValueError, match="all eigenvalues are zero"):
        diagonal_marginal(np.zeros(5), seed=0).optimise_prior()
    found = diagonal_marginal(np.ones(5), seed=0)
    found.squared_norm = 0.0
    with pytest.raises(ValueError, match="the parameters are zero"):
        found.optimise_prior()
    with pytest.raises(ValueError, match="squared_norm is -1"):
        laplace.MarginalLikelihood(found.spectrum, squared_norm=-1)
