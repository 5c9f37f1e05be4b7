"""Posterior covariances, predictions and samples of small networks, against dense algebra of plain autograd."""

import functools
import math
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import hesspec
from hesspec import laplace
from hesspec.applications.laplace.low_rank import low_rank

CASES = {
    "classes": (3, nn.CrossEntropyLoss()),
    "sum of classes": (3, nn.CrossEntropyLoss(reduction="sum")),
    "two classes": (1, nn.BCEWithLogitsLoss()),
    "regression": (2, nn.MSELoss()),
    "sum of squares": (2, nn.MSELoss(reduction="sum")),
}
NOISE = 0.7


def problem(name, *, inputs=4, hidden=5, samples=12):
    outputs, loss = CASES[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, inputs, dtype=torch.float64, generator=generator)
    y = torch.randn(samples, outputs, dtype=torch.float64, generator=generator)
    if isinstance(loss, nn.CrossEntropyLoss):
        y = torch.arange(samples) % outputs
    elif isinstance(loss, nn.BCEWithLogitsLoss):
        y = (y > 0).double()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)).double()
    return model, loss, [(x[:7], y[:7]), (x[7:], y[7:])]


def rows(model, x, params=None):
    """Stacked Jacobian (m, C, p) of the outputs."""
    theta = {name: value.detach() for name, value in model.named_parameters() if params is None or name in params}
    found = jacrev(lambda named: functional_call(model, named, (x,)))(theta)
    return torch.cat([part.flatten(2) for part in found.values()], 2)


def precision(name, *, prior, params=None):
    """Psi^-1 from J^T (d^2 -log p / d f^2) J of all samples."""
    model, loss, data = problem(name)
    x = torch.cat([inputs for inputs, _ in data])
    jacobian, outputs = rows(model, x, params), model(x).detach()
    if isinstance(loss, nn.CrossEntropyLoss):
        p = outputs.softmax(1)
        curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    elif isinstance(loss, nn.BCEWithLogitsLoss):
        p = outputs.sigmoid()
        curvature = (p * (1 - p))[:, :, None]
    else:
        curvature = torch.eye(outputs.shape[1], dtype=torch.float64).expand(len(x), -1, -1) / NOISE**2
    a = torch.einsum("ncp,ncd,ndq->pq", jacobian, curvature, jacobian)
    return a + prior * torch.eye(len(a), dtype=torch.float64)


@functools.cache
def posterior(name, *, prior=0.5, rank=100, params=None, steps=64):
    model, loss, data = problem(name)
    noise = NOISE if isinstance(loss, nn.MSELoss) else 1.0
    return laplace.Laplace(
        model, loss, data, params and list(params), prior_precision=prior, noise=noise, rank=rank, steps=steps
    )


def new_inputs(count=6):
    return torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def dense_covariance(name, *, prior=0.5, params=None):
    jacobian = rows(problem(name)[0], new_inputs(), params)
    psi = torch.linalg.inv(precision(name, prior=prior, params=params))
    return jacobian @ psi @ jacobian.mT


@pytest.mark.parametrize("params", [None, ("2.weight", "2.bias")], ids=["all", "last layer"])
@pytest.mark.parametrize("name", CASES)
def test_covariance_at_full_rank_is_the_dense_one(name, params):
    truth = dense_covariance(name, params=params)
    found = posterior(name, params=params).covariance(new_inputs())
    assert (found.values - truth).abs().max() <= 1e-10
    assert (found.mean - problem(name)[0](new_inputs())).abs().max() <= 1e-12
    assert (found.error <= 1e-10).all()


@pytest.mark.parametrize("prior", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("rank", [1, 2, 5, 9, 14])
@pytest.mark.parametrize("name", ["classes", "regression"])
@pytest.mark.few(10)
def test_error_of_low_rank_is_within_its_bound(name, rank, prior):
    found = posterior(name, prior=prior, rank=rank)
    psi = torch.linalg.inv(precision(name, prior=prior))
    low = found.pairs.applied(torch.eye(len(psi), dtype=torch.float64), found.marginal.likelihood.scale, prior)
    truth = torch.linalg.matrix_norm(low - psi, 2)
    assert truth <= found.error * (1 + 1e-9)
    a = torch.linalg.eigvalsh(torch.linalg.inv(psi)).flip(0)[rank] - prior
    # The bound of the complement is exact here, as its Krylov space is invariant.
    assert found.error <= max(1.5 * a / (prior * (a + prior)), 1e-9 / prior)
    covariance = found.covariance(new_inputs())
    off = torch.linalg.matrix_norm(covariance.values - dense_covariance(name, prior=prior), 2)
    assert (off <= covariance.error * (1 + 1e-9) + 1e-12).all()


def test_bound_covers_large_random_spectra_and_copies():
    # p = 400, every eigenvalue three times: a probe sees one copy of each.
    values = torch.repeat_interleave(torch.logspace(0, -3, 133, dtype=torch.float64), 3)
    values = torch.cat([values, torch.zeros(1, dtype=torch.float64)])
    turn = torch.linalg.qr(torch.randn(400, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    matrix = turn @ torch.diag(values) @ turn.T
    for seed in range(5):
        for rank in (3, 10):
            pairs = low_rank(matrix, rank=rank, steps=40, seed=seed)
            assert pairs.vectors.shape[1] <= rank
            eye = torch.eye(400, dtype=torch.float64)
            left = matrix - pairs.vectors @ (pairs.vectors.T @ matrix)
            left = left - (left @ pairs.vectors) @ pairs.vectors.T
            assert torch.linalg.matrix_norm(left, 2) <= pairs.rest
            for prior in (1e-3, 1.0):
                psi = torch.linalg.inv(matrix + prior * eye)
                off = torch.linalg.matrix_norm(pairs.applied(eye, 1.0, prior) - psi, 2)
                assert off <= (pairs.rest_error(1.0, prior) + pairs.residual_error(1.0, prior)) * (1 + 1e-9)


@pytest.mark.parametrize("name", ["classes", "regression", "two classes"])
def test_exact_covariance_is_the_dense_one_at_any_rank(name):
    found = posterior(name, rank=2).covariance(new_inputs(), exact=True, tolerance=1e-10)
    truth = dense_covariance(name)
    assert (found.values - truth).abs().max() <= 1e-10
    assert found.iterations > 0
    # Cut off after two iterations: the bound of the residual is the error's.
    with pytest.warns(UserWarning, match="reached a relative residual of .* in 2 iterations"):
        cut = posterior(name, rank=2).covariance(new_inputs(), exact=True, tolerance=1e-12, max_iterations=2)
    off = torch.linalg.matrix_norm(cut.values - truth, 2)
    assert (off <= cut.error + 1e-12).all()
    assert off.max() > 1e-10
    assert (torch.linalg.eigvalsh(truth - cut.values) >= -1e-12).all()


def test_probit_of_one_sample_at_zero():
    model = nn.Linear(1, 3, bias=False).double()
    nn.init.zeros_(model.weight)
    x = torch.ones(1, 1, dtype=torch.float64)
    found = laplace.Laplace(model, nn.CrossEntropyLoss(), [(x, torch.tensor([0]))], verify=False)
    covariance = found.covariance(x).values[0]
    assert (covariance.diagonal() - 5 / 6).abs().max() <= 1e-12
    variance = found.predict(x).variance[0, 0]
    assert float(1 / torch.sqrt(1 + math.pi / 8 * variance)) == pytest.approx(0.868008060602676, abs=1e-12)
    for method in ("probit", "monte carlo"):
        assert (found.predict(x, method=method, samples=20_000).mean[0] - 1 / 3).abs().max() <= 0.02


@pytest.mark.parametrize("rank", [2, 100])
def test_samples_have_the_moments_of_the_posterior(rank):
    found = posterior("regression", rank=rank)
    p, count = found.theta.numel(), 40_000
    psi = found.pairs.applied(torch.eye(p, dtype=torch.float64), found.marginal.likelihood.scale, 0.5)
    drawn = found.sample(count) - found.theta
    # Means and second moments within six standard errors, Var[x y] = Psi_xx Psi_yy + Psi_xy^2.
    assert (drawn.mean(0).abs() <= 6 * (psi.diagonal() / count).sqrt()).all()
    error = ((psi.diagonal()[:, None] * psi.diagonal() + psi**2) / count).sqrt()
    assert ((drawn.T @ drawn / count - psi).abs() <= 6 * error).all()
    root = found.pairs.root(torch.eye(p, dtype=torch.float64), found.marginal.likelihood.scale, 0.5)
    assert (root @ root - psi).abs().max() <= 1e-12 / 0.5
    x = new_inputs()
    outputs = found.functional_samples(x, count)
    covariance = found.covariance(x)
    error = (covariance.values.diagonal(dim1=1, dim2=2) / count).sqrt()
    assert ((outputs.mean(0) - covariance.mean).abs() <= 6 * error).all()
    joint = torch.einsum("smc,snd->mcnd", outputs - covariance.mean, outputs - covariance.mean) / count
    jacobian = rows(problem("regression")[0], x)
    truth = torch.einsum("mcp,pq,ndq->mcnd", jacobian, psi, jacobian)
    diagonal = torch.einsum("mcmc->mc", truth)
    assert ((joint - truth).abs() <= 6 * ((diagonal[:, :, None, None] * diagonal + truth**2) / count).sqrt()).all()


def test_predictions_agree_with_their_formulas():
    x = new_inputs()
    regression, covariance = posterior("regression"), dense_covariance("regression")
    for method in ("probit", "monte carlo"):
        found = regression.predict(x, method=method)
        assert (found.variance - covariance.diagonal(dim1=1, dim2=2) - NOISE**2).abs().max() <= 1e-10
    classes = posterior("classes", prior=5.0)
    truth, logits = dense_covariance("classes", prior=5.0), problem("classes")[0](x).detach()
    probit = torch.softmax(logits / torch.sqrt(1 + math.pi / 8 * truth.diagonal(dim1=1, dim2=2)), 1)
    assert (classes.predict(x).mean - probit).abs().max() <= 1e-10
    drawn = torch.distributions.MultivariateNormal(logits, truth).sample((50_000,)).softmax(-1)
    count = 20_000
    found = classes.predict(x, method="monte carlo", samples=count)
    error = drawn.std(0) * (1 / count + 1 / 50_000) ** 0.5
    assert ((found.mean - drawn.mean(0)).abs() <= 6 * error).all()
    # A narrow posterior: the network is linear within it, and its samples are those of its outputs.
    narrow = posterior("classes", prior=1e6)
    one = narrow.predict(x, method="network samples", samples=2000)
    assert (one.mean - logits.softmax(1)).abs().max() <= 1e-3
    assert (one.variance / narrow.predict(x).variance).log().abs().max() <= 6 * (2 / 2000) ** 0.5
    two = posterior("two classes").predict(x).mean
    assert two.shape == (6, 1)
    assert ((two > 0) & (two < 1)).all()


def test_prior_may_change_without_a_product():
    found = posterior("classes")
    before = found.operator.matvecs
    best = found.optimise_prior()
    assert found.prior_precision == best.value
    assert (found.covariance(new_inputs()).values - dense_covariance("classes", prior=best.value)).abs().max() <= 1e-10
    assert found.log_evidence() == found.log_evidence(best.value)
    assert found.log_evidence().value >= found.log_evidence(2 * best.value).value
    assert found.operator.matvecs == before
    found.prior_precision = 0.5


@pytest.mark.parametrize("exact", [False, True])
def test_float32(exact):
    model, loss, data = problem("classes")
    data = [(x.float(), y) for x, y in data]
    found = laplace.Laplace(model.float(), loss, data, prior_precision=0.5)
    covariance = found.covariance(new_inputs(), exact=exact, tolerance=1e-4)
    assert covariance.values.dtype == torch.float32
    truth = dense_covariance("classes")
    off = torch.linalg.matrix_norm(covariance.values.double() - truth, 2)
    scale = torch.linalg.matrix_norm(truth, 2) * covariance.condition_without
    assert (off <= covariance.error.double() + 10 * torch.finfo(torch.float32).eps * scale).all()


def test_bad_input_is_told_in_sentences():
    model, loss, data = problem("classes")
    for prior in (0.0, -1.0, float("nan"), "x"):
        with pytest.raises(ValueError, match="prior_precision is .* positive"):
            laplace.Laplace(model, loss, data, prior_precision=prior)
    with pytest.raises(ValueError, match="noise is 2, but CrossEntropyLoss"):
        laplace.Laplace(model, loss, data, noise=2.0)
    with pytest.raises(ValueError, match="rank is 0"):
        laplace.Laplace(model, loss, data, rank=0)
    with pytest.raises(ValueError, match="not a known negative log-likelihood"):
        laplace.Laplace(model, nn.MultiLabelSoftMarginLoss(), [(x, nn.functional.one_hot(y, 3)) for x, y in data])
    for option in ({"weight": torch.ones(3, dtype=torch.float64)}, {"label_smoothing": 0.1}):
        with pytest.raises(ValueError, match="with (weight|label_smoothing) is not a negative log-likelihood"):
            laplace.Laplace(model, nn.CrossEntropyLoss(**option), data)
    found = posterior("classes")
    for bad in (torch.zeros(3, 5, dtype=torch.float64), torch.zeros((), dtype=torch.float64), "text", []):
        with pytest.raises(ValueError, match="The model does not accept inputs|inputs is"):
            found.covariance(bad)
    with pytest.raises(ValueError, match="method='mean' is unknown"):
        found.predict(new_inputs(), method="mean")
    for count in (0, 1.5):
        with pytest.raises(ValueError, match="number of samples is"):
            found.sample(count)
    closure = hesspec.closure(lambda model, batch: loss(model(batch[0]), batch[1]))
    with warnings.catch_warnings():
        # That the Gauss-Newton matrix is of a captured loss is told first.
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="outputs are unknown"):
            laplace.Laplace(model, closure, data)


def test_each_output_may_have_its_own_noise():
    model, _, data = problem("regression")
    noise = torch.tensor([0.3, 2.0], dtype=torch.float64)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    jacobian = rows(model, x)
    a = torch.einsum("ncp,c,ncq->pq", jacobian, noise**-2, jacobian)
    prior = 0.5
    precision = a + prior * torch.eye(len(a), dtype=torch.float64)
    for reduction in ("mean", "sum"):
        found = laplace.Laplace(
            model, nn.MSELoss(reduction=reduction), data, prior_precision=prior, noise=noise, rank=100
        )
        likelihood = torch.distributions.Normal(model(x).detach(), noise).log_prob(y).sum()
        theta = found.theta
        truth = likelihood - prior / 2 * theta @ theta - torch.logdet(precision / prior) / 2
        assert found.log_evidence().value == pytest.approx(float(truth), abs=1e-10 * abs(float(truth)))
        rows_new = rows(model, new_inputs())
        covariance = rows_new @ torch.linalg.inv(precision) @ rows_new.mT
        assert (found.covariance(new_inputs()).values - covariance).abs().max() <= 1e-10
        exact = found.covariance(new_inputs(), exact=True, tolerance=1e-10)
        assert (exact.values - covariance).abs().max() <= 1e-10
        variance = covariance.diagonal(dim1=1, dim2=2) + noise**2
        assert (found.predict(new_inputs()).variance - variance).abs().max() <= 1e-10
        assert found.summary()["noise"] == "0.3, 2"
    # The evidence of a saved spectrum, whose likelihood has the noise.
    norm = float(theta @ theta)
    again = laplace.MarginalLikelihood(found.pairs.spectrum, squared_norm=norm)
    assert again.log_evidence(prior) == found.log_evidence()
    same = laplace.Laplace(model, nn.MSELoss(), data, prior_precision=prior, noise=[0.7, 0.7], rank=100)
    assert same.log_evidence().value == pytest.approx(posterior("regression").log_evidence().value, rel=1e-10)


def test_noise_per_output_that_does_not_fit_is_told():
    model, loss, data = problem("regression")
    for bad in (torch.tensor([1.0, 0.0]), [1.0, float("nan")], torch.ones(1, 2)):
        with pytest.raises(ValueError, match="noise is .* one for each output"):
            laplace.Laplace(model, loss, data, noise=bad)
    with pytest.raises(ValueError, match="noise has 3 numbers, but the outputs have shape"):
        laplace.Laplace(model, loss, data, noise=torch.ones(3))
    model, loss, data = problem("classes")
    with pytest.raises(
        ValueError, match="noise has 3 numbers, one for each output of a regression, but the loss is Cross"
    ):
        laplace.Laplace(model, loss, data, noise=torch.ones(3))
