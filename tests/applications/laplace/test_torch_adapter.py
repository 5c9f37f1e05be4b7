"""The class for laplace-torch against its full posterior: equal at full rank, within the stated error at others."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

with warnings.catch_warnings():
    # laplace-torch depends on a library that uses torch.jit.script, which warns as it is imported.
    warnings.simplefilter("ignore")
    peer = pytest.importorskip("laplace")
    from hesspec.applications.laplace import KrylovLaplace

# The same of the libraries that it imports at its first fit.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

NOISE = 0.6
# The peer's Gauss-Newton matrix of a classifier has errors of 1e-8, also in float64.
TOLERANCE = 1e-6


def problem(likelihood, dtype=torch.float64, shuffle=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(18, 4, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.arange(18) % 3 if likelihood == "classification" else torch.sin(x[:, :3])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    return model, DataLoader(TensorDataset(x, y), batch_size=9, shuffle=shuffle)


def fitted(structure, likelihood, dtype=torch.float64, model=None, shuffle=False, **options):
    ready, loader = problem(likelihood, dtype, shuffle)
    noise = {"sigma_noise": NOISE} if likelihood == "regression" else {}
    found = peer.Laplace(model or ready, likelihood, "all", structure, **noise, **options)
    found.fit(loader)
    return found


def inputs(dtype=torch.float64):
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def off(one, other):
    return float((one - other).abs().max() / other.abs().max())


@pytest.fixture(scope="module", params=["classification", "regression"])
def pair(request):
    return fitted("hesspec", request.param), fitted("full", request.param)


PRIORS = [0.3, torch.tensor(5.0), torch.tensor([0.2, 1.0, 3.0, 0.5]), torch.linspace(0.5, 2, 43)]


@pytest.mark.parametrize("prior", PRIORS, ids=["number", "scalar", "per layer", "per parameter"])
def test_agrees_with_the_full_posterior(pair, prior):
    ours, full = pair
    assert isinstance(ours, KrylovLaplace)
    ours.prior_precision = full.prior_precision = prior
    assert ours.loss == pytest.approx(float(full.loss), rel=1e-12)
    assert (ours.n_data, ours.n_outputs) == (full.n_data, full.n_outputs)
    assert float(ours.log_marginal_likelihood()) == pytest.approx(float(full.log_marginal_likelihood()), rel=TOLERANCE)
    assert float(ours.log_det_posterior_precision) == pytest.approx(
        float(full.log_det_posterior_precision), rel=TOLERANCE
    )
    jacobians, _ = full.backend.jacobians(inputs())
    assert off(ours.functional_variance(jacobians), full.functional_variance(jacobians)) <= TOLERANCE
    assert off(ours.functional_covariance(jacobians), full.functional_covariance(jacobians)) <= TOLERANCE
    if full.likelihood == "classification":
        for link in ("probit", "bridge"):
            assert off(ours(inputs(), link_approx=link), full(inputs(), link_approx=link)) <= TOLERANCE
    else:
        for one, other in zip(ours(inputs()), full(inputs()), strict=True):
            assert off(one, other) <= TOLERANCE
    value = ours.mean + 0.1
    assert float(ours.log_prob(value)) == pytest.approx(float(full.log_prob(value)), rel=TOLERANCE)


def test_samples_have_the_moments_of_the_full_posterior(pair):
    ours, full = pair
    ours.prior_precision = full.prior_precision = torch.tensor([0.2, 1.0, 3.0, 0.5])
    count, psi = 40_000, full.posterior_covariance
    drawn = ours.sample(count, generator=torch.Generator().manual_seed(0)) - ours.mean
    # Within six standard errors, Var[x y] = Psi_xx Psi_yy + Psi_xy^2.
    assert (drawn.mean(0).abs() <= 6 * (psi.diagonal() / count).sqrt()).all()
    error = ((psi.diagonal()[:, None] * psi.diagonal() + psi**2) / count).sqrt()
    assert ((drawn.T @ drawn / count - psi).abs() <= 6 * error).all()


def test_prior_is_optimised_like_that_of_the_full_posterior(pair):
    for structure in ("scalar", "layerwise"):
        found = []
        for each in pair:
            each.prior_precision = 1.0
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("warnings.warn", lambda *_a, **_k: None)
                each.optimize_prior_precision(prior_structure=structure, n_steps=20)
            found.append(each.prior_precision.clone())
        assert off(*found) <= TOLERANCE


def test_float32_agrees_to_1e_5():
    ours, full = (fitted(name, "classification", torch.float32, prior_precision=0.5) for name in ("hesspec", "full"))
    assert float(ours.log_marginal_likelihood()) == pytest.approx(float(full.log_marginal_likelihood()), rel=1e-5)
    x = inputs(torch.float32)
    assert off(ours(x, link_approx="probit"), full(x, link_approx="probit")) <= 1e-5


def test_low_rank_is_within_its_error_and_the_evidence_within_its_interval():
    ours, full = fitted("hesspec", "regression", rank=5), fitted("full", "regression")
    short = fitted("hesspec", "regression", steps=8)
    for prior in (0.5, torch.tensor([0.2, 1.0, 3.0, 0.5])):
        ours.prior_precision = full.prior_precision = short.prior_precision = prior
        (vectors, values), diagonal = ours.posterior_precision
        psi = torch.linalg.inv(vectors * values @ vectors.T + torch.diag(diagonal))
        error = torch.linalg.matrix_norm(psi - full.posterior_covariance, 2)
        assert 0 < error <= ours.error
        # Prior variance is kept where nothing is resolved.
        assert torch.linalg.eigvalsh(psi - full.posterior_covariance).min() >= -1e-9
        if isinstance(prior, float):
            interval = short.log_evidence()
            assert interval.lower <= float(full.log_marginal_likelihood()) <= interval.upper
            assert interval.value == pytest.approx(float(short.log_marginal_likelihood()), rel=1e-10)
        else:
            assert ours.log_marginal_likelihood() >= full.log_marginal_likelihood()


def test_parameters_without_a_gradient_are_constants_and_loaders_may_shuffle():
    found = []
    for structure in ("hesspec", "full"):
        model, _ = problem("classification")
        for value in model[0].parameters():
            value.requires_grad_(False)
        found.append(fitted(structure, "classification", model=model, shuffle=structure == "hesspec"))
    ours, full = found
    assert ours.n_params == 18
    assert float(ours.log_marginal_likelihood()) == pytest.approx(float(full.log_marginal_likelihood()), rel=TOLERANCE)


def test_state_is_saved_and_loaded(tmp_path):
    ours = fitted("hesspec", "classification")
    torch.save(ours.state_dict(), tmp_path / "laplace.pt")
    again = peer.Laplace(problem("classification")[0], "classification", "all", "hesspec")
    again.load_state_dict(torch.load(tmp_path / "laplace.pt", weights_only=False))
    assert float(again.log_marginal_likelihood()) == float(ours.log_marginal_likelihood())
    x = inputs()
    assert (again(x, link_approx="probit") == ours(x, link_approx="probit")).all()


def test_samples_of_the_network_agree_where_it_is_linear():
    ours = fitted("hesspec", "classification", prior_precision=1e6)
    torch.manual_seed(0)
    sampled = ours(inputs(), pred_type="nn", link_approx="mc", n_samples=400)
    probit = ours(inputs(), link_approx="probit")
    # A standard deviation of 1e-3 of the parameters moves probabilities by about as much.
    assert float((sampled - probit).abs().max()) <= 1e-3
    assert math.isclose(float(sampled.sum()), 6.0, rel_tol=1e-6)


def test_bad_input_is_told_in_sentences():
    model, loader = problem("classification")
    with pytest.raises(ValueError, match="'reward_modeling'"):
        peer.Laplace(model, "reward_modeling", "all", "hesspec")
    with pytest.raises(ValueError, match="rank is 0"):
        peer.Laplace(model, "classification", "all", "hesspec", rank=0)
    found = peer.Laplace(model, "classification", "all", "hesspec")
    with pytest.raises(ValueError, match="a spectrum cannot be updated"):
        found.fit(loader, override=False)
    with pytest.raises(ValueError, match="pairs of tensors"):
        found.fit([{"input_ids": torch.ones(2, 4)}])
    with pytest.raises(AttributeError, match="not fitted"):
        found.log_marginal_likelihood()
    found.fit(loader)
    found.prior_precision = torch.full((43,), 2.0)
    with pytest.raises(ValueError, match="one prior precision"):
        found.log_evidence()
