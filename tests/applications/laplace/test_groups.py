"""A prior precision for each group of parameters, against dense algebra of plain autograd."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from hesspec import laplace

NAMES = ("0", "2")
PRIORS = {"0": 0.3, "2": 4.0}


@functools.cache
def problem(kind="regression", dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 4, dtype=torch.float64, generator=generator).to(dtype)
    y = torch.arange(12) % 3 if kind == "classes" else torch.sin(x[:, :2])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3 if kind == "classes" else 2)).to(dtype)
    loss = nn.CrossEntropyLoss() if kind == "classes" else nn.MSELoss()
    return model, loss, x, y


@functools.cache
def posterior(kind="regression", rank=100, seed=0):
    model, loss, x, y = problem(kind)
    return laplace.Laplace(model, loss, [(x, y)], prior_precision=PRIORS, rank=rank, seed=seed)


def rows(model, x):
    theta = {name: value.detach() for name, value in model.named_parameters()}
    found = jacrev(lambda named: functional_call(model, named, (x,)))(theta)
    return torch.cat([part.flatten(2) for part in found.values()], 2)


def dense(kind="regression"):
    """A, and D at PRIORS."""
    model, _, x, _ = problem(kind)
    jacobian = rows(model, x)
    if kind == "classes":
        p = model(x).detach().softmax(1)
        curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    else:
        curvature = torch.eye(2, dtype=torch.float64).expand(len(x), -1, -1)
    a = torch.einsum("ncp,ncd,ndq->pq", jacobian, curvature, jacobian)
    return a, torch.tensor([0.3] * 25 + [4.0] * (len(a) - 25), dtype=torch.float64)


def new_inputs():
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def log_likelihood(kind):
    model, _, x, y = problem(kind)
    if kind == "classes":
        return -float(nn.functional.cross_entropy(model(x).detach(), y, reduction="sum"))
    return float(torch.distributions.Normal(model(x).detach(), 1.0).log_prob(y).sum())


@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_at_full_rank_everything_is_that_of_dense_algebra(kind):
    a, d = dense(kind)
    found, psi = posterior(kind), torch.linalg.inv(a + torch.diag(d))
    jacobian = rows(problem(kind)[0], new_inputs())
    truth = jacobian @ psi @ jacobian.mT
    for exact in (False, True):
        covariance = found.covariance(new_inputs(), exact=exact, tolerance=1e-11)
        assert (covariance.values - truth).abs().max() <= 1e-10
    evidence = (
        log_likelihood(kind)
        - (d * found.theta) @ found.theta / 2
        - torch.logdet(torch.diag(1 / d) @ a + torch.eye(len(a)).double()) / 2
    )
    estimate = found.log_evidence()
    assert estimate.value == pytest.approx(float(evidence), abs=1e-9)
    assert estimate.upper - estimate.lower <= 1e-6
    gammas = 1 - d * psi.diagonal()
    numbers = found.effective_parameters_by_group()
    for name, part in (("0", gammas[:25]), ("2", gammas[25:])):
        assert numbers[name].value == pytest.approx(float(part.sum()), abs=1e-9)
    assert found.effective_parameters().value == pytest.approx(float(gammas.sum()), abs=1e-9)
    assert (found.multiply_precision(psi) - torch.eye(len(a))).abs().max() <= 1e-9
    assert found.error <= 1e-9
    assert found.summary()["prior precision"] == "0 0.3, 2 4"


@pytest.mark.parametrize("rank", [1, 3, 6, 12])
@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_at_any_rank_errors_and_intervals_hold(kind, rank):
    a, d = dense(kind)
    psi = torch.linalg.inv(a + torch.diag(d))
    jacobian = rows(problem(kind)[0], new_inputs())
    truth = jacobian @ psi @ jacobian.mT
    gammas = 1 - d * psi.diagonal()
    missed = 0
    for seed in range(2):
        found = posterior(kind, rank=rank, seed=seed)
        p = len(a)
        root = found._pairs.sampled(torch.eye(p, dtype=torch.float64))
        off = torch.linalg.matrix_norm(root @ root.T - psi, 2)
        assert off <= found.error * (1 + 1e-9)
        covariance = found.covariance(new_inputs())
        assert (torch.linalg.matrix_norm(covariance.values - truth, 2) <= covariance.error * (1 + 1e-9) + 1e-12).all()
        evidence = log_likelihood(kind) - (d * found.theta) @ found.theta / 2
        evidence = float(evidence - torch.logdet(torch.diag(1 / d) @ a + torch.eye(p).double()) / 2)
        estimate = found.log_evidence()
        missed += not estimate.lower - 1e-9 <= evidence <= estimate.upper + 1e-9
        for name, part in (("0", gammas[:25]), ("2", gammas[25:])):
            number = found.effective_parameters_by_group()[name]
            missed += not number.lower - 1e-9 <= float(part.sum()) <= number.upper + 1e-9
    # Only the traces of the rest are estimated, and the bounds that they are in are not tight.
    assert missed == 0


@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_equal_precisions_are_one_precision(kind):
    found = posterior(kind, rank=6)
    for prior in (0.1, 1.0, 10.0):
        both = found.log_evidence(dict.fromkeys(NAMES, prior))
        one = found.log_evidence(prior)
        assert both.lower <= one.value <= both.upper
        assert found.log_evidence({"*": prior}).value == pytest.approx(one.value, rel=1e-9)


def test_sampled_moments():
    found = posterior("regression")
    a, d = dense("regression")
    psi, count = torch.linalg.inv(a + torch.diag(d)), 40_000
    drawn = found.sample(count) - found.theta
    error = ((psi.diagonal()[:, None] * psi.diagonal() + psi**2) / count).sqrt()
    assert ((drawn.T @ drawn / count - psi).abs() <= 6 * error).all()


@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_best_precisions_are_a_maximum_and_a_fixed_point_of_mackay(kind):
    found = posterior(kind)
    before = found.operator.matvecs
    common = found.optimise_prior()
    best = found.optimise_prior("layers")
    assert list(best) == list(NAMES)
    assert found.prior_precision == {name: each.value for name, each in best.items()}
    assert found.operator.matvecs == before
    numbers = found.effective_parameters_by_group()
    for name, norm in zip(NAMES, (found.theta[:25], found.theta[25:]), strict=True):
        assert best[name].value == pytest.approx(numbers[name].value / float(norm @ norm), rel=1e-5)
        assert best[name].lower <= best[name].value <= best[name].upper
    top = found.log_evidence()
    assert top.value >= found.log_evidence(common.value).value - 1e-9
    for name in NAMES:
        for factor in (0.9, 1.1):
            moved = {**found.prior_precision, name: found.prior_precision[name] * factor}
            assert found.log_evidence(moved).value < top.value
    found.prior_precision = PRIORS


def test_patterns_are_groups_too():
    found = posterior("classes")
    best = found.optimise_prior(["*.weight", "*.bias"])
    assert list(best) == ["*.weight", "*.bias"]
    assert np.isfinite(found.log_evidence().value)
    found.prior_precision = PRIORS


def test_float32():
    model, loss, x, y = problem("classes", torch.float32)
    found = laplace.Laplace(model, loss, [(x, y)], prior_precision=PRIORS, rank=100)
    truth = posterior("classes")
    assert found.log_evidence().value == pytest.approx(truth.log_evidence().value, rel=1e-4)
    one, other = found.covariance(new_inputs()), truth.covariance(new_inputs())
    assert (one.values - other.values).abs().max() <= 1e-4 * other.values.abs().max()


def test_bad_groups_are_told_in_sentences():
    found = posterior("regression")
    for bad, words in (
        ({"0": 1.0}, "'2.weight' belongs to no group"),
        ({"*": 1.0, "2": 1.0}, "'\\*' and '2' share parameters"),
        ({"0": 1.0, "2": -1.0}, "prior_precision of '2' is -1.0; it must be a positive"),
        ({"0": 1.0, "3": 1.0}, "3"),
        ({}, "no groups"),
    ):
        with pytest.raises(ValueError, match=words):
            found.prior_precision = bad
        with pytest.raises(ValueError, match=words):
            found.log_evidence(bad)
    with pytest.raises(ValueError, match="groups is 'layer'"):
        found.optimise_prior("layer")
    with pytest.raises(ValueError, match="subspaces are compared with one prior precision"):
        laplace.optimal_subspace(found, new_inputs(), 2)
    with pytest.raises(ValueError, match="The prior has no groups"):
        laplace.Laplace.effective_parameters_by_group(found, 1.0)
    model, loss, x, y = problem("regression")
    with pytest.raises(ValueError, match="prior_precision of '2' is 0"):
        laplace.Laplace(model, loss, [(x, y)], prior_precision={"0": 1.0, "2": 0.0})
