"""Gradient noise against per-sample gradients, its exact variance, directions, and losses and batches of all kinds."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import hesspec

gradient_noise = hesspec.noise.gradient_noise
SAMPLES, SIZE = 60, 12


def problem(dtype=torch.float64, reduction="mean"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).to(dtype)
    inputs, targets = torch.randn(SAMPLES, 4, dtype=dtype), torch.randint(3, (SAMPLES,))
    return model, nn.CrossEntropyLoss(reduction=reduction), inputs, targets


def pairs_of(model, loss_fn, data, count=4, **how):
    return hesspec.eigenpairs(hesspec.Hessian(model, loss_fn, data, **how), count=count, steps=24, progress=False)


def flat_gradient(model, loss):
    return torch.cat([each.reshape(-1) for each in torch.autograd.grad(loss, list(model.parameters()))])


def by_hand(model, loss_fn, inputs, targets, directions, found, seed):
    """Projections of minibatches that are drawn as documented."""
    draws = np.random.default_rng(seed)
    gradient = flat_gradient(model, loss_fn(model(inputs), targets))
    rows = []
    for _ in range(len(found.projections)):
        chosen = draws.choice(len(inputs), found.batch_size, replace=False, shuffle=False)
        own = flat_gradient(model, loss_fn(model(inputs[chosen]), targets[chosen]))
        rows.append((directions.T @ (own - gradient)).double().numpy())
    return np.array(rows), (directions.T @ gradient).double().numpy()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_projections_are_those_of_the_minibatches(dtype):
    model, loss_fn, inputs, targets = problem(dtype)
    data = [(inputs, targets)]
    pairs = pairs_of(model, loss_fn, data)
    found = gradient_noise(model, loss_fn, data, pairs, batch_size=SIZE, count=20, bulk=0, seed=5)
    rows, gradient = by_hand(model, loss_fn, inputs, targets, pairs.vectors, found, 5)
    tolerance = 50 * torch.finfo(dtype).eps
    np.testing.assert_allclose(found.projections, rows, atol=tolerance)
    np.testing.assert_allclose(found.gradient, gradient, atol=tolerance)
    np.testing.assert_array_equal(found.eigenvalues, pairs.values)
    assert found.along_eigenvectors.shape == (20, 4)
    assert found.in_bulk.shape == (20, 0)
    assert (found.batch_size, found.samples, found.parameters) == (SIZE, SAMPLES, 27)


def test_variance_is_that_of_draws_without_replacement():
    model, loss_fn, inputs, targets = problem()
    data = [(inputs, targets)]
    pairs = pairs_of(model, loss_fn, data)
    count = 500
    found = gradient_noise(model, loss_fn, data, pairs, batch_size=SIZE, count=count, bulk=0)
    single = torch.stack(
        [flat_gradient(model, loss_fn(model(x[None]), y[None])) for x, y in zip(inputs, targets, strict=True)]
    )
    spread = (single @ pairs.vectors).var(dim=0, correction=1).numpy()
    expected = spread / SIZE * (1 - SIZE / SAMPLES)
    # A relative standard error of sqrt(2/count) for normal noise; the kurtosis of means of 12 samples is near 3.
    np.testing.assert_allclose(found.variances, expected, rtol=4.5 * math.sqrt(2.5 / count))
    means = found.projections.mean(axis=0)
    assert (np.abs(means) < 4.5 * np.sqrt(expected / count)).all()


def test_minibatches_are_independent():
    model, loss_fn, inputs, targets = problem()
    found = gradient_noise(model, loss_fn, [(inputs, targets)], batch_size=SIZE, count=500, bulk=5)
    values = found.in_bulk / found.in_bulk.std(axis=0)
    assert abs((values[1:] * values[:-1]).mean()) < 4.5 / math.sqrt(5 * 499) * 1.5
    found = hesspec.noise.tail_index(values)
    assert abs(found.alpha - 2) < 4 * found.standard_error


def test_a_minibatch_of_all_samples_has_no_noise():
    model, loss_fn, inputs, targets = problem()
    found = gradient_noise(model, loss_fn, [(inputs, targets)], batch_size=SAMPLES, count=2, bulk=3)
    assert np.abs(found.projections).max() < 1e-15


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_batches_of_the_data_do_not_matter(reduction):
    model, loss_fn, inputs, targets = problem(reduction=reduction)
    whole, cut = [(inputs, targets)], list(zip(inputs.split(25), targets.split(25), strict=True))
    how = {"batch_size": SIZE, "count": 10, "bulk": 4}
    one, several = (gradient_noise(model, loss_fn, data, **how) for data in (whole, cut))
    np.testing.assert_allclose(several.projections, one.projections, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(several.gradient, one.gradient, rtol=1e-10, atol=1e-13)


def test_sums_are_estimates_of_the_whole_sum():
    means, sums = (
        gradient_noise(model, loss_fn, [(inputs, targets)], batch_size=SIZE, count=10, bulk=4)
        for model, loss_fn, inputs, targets in (problem(), problem(reduction="sum"))
    )
    np.testing.assert_allclose(sums.projections, SAMPLES * means.projections, rtol=1e-10, atol=1e-12)


def test_means_over_weighted_terms():
    # Ignored targets and class weights: the mean of a minibatch is over its own terms, even if its samples are of
    # several batches of the data.
    model, _, inputs, targets = problem()
    targets[::4] = -100
    weight = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    loss_fn = nn.CrossEntropyLoss(weight=weight)
    directions = gradient_noise(model, loss_fn, [(inputs, targets)], batch_size=SIZE, count=1, bulk=3)
    cut = list(zip(inputs.split(20), targets.split(20), strict=True))
    pairs = pairs_of(model, loss_fn, cut)
    found = gradient_noise(model, loss_fn, cut, pairs, batch_size=SIZE, count=10, bulk=0, seed=1)
    rows, gradient = by_hand(model, loss_fn, inputs, targets, pairs.vectors, found, 1)
    np.testing.assert_allclose(found.projections, rows, atol=1e-13)
    np.testing.assert_allclose(found.gradient, gradient, atol=1e-13)
    assert directions.eigenvalues.size == 3


def test_directions_of_the_bulk_are_orthonormal_to_all():
    model, loss_fn, inputs, targets = problem()
    data = [(inputs, targets)]
    pairs = pairs_of(model, loss_fn, data)
    found = gradient_noise(model, loss_fn, data, pairs, batch_size=1, count=60, bulk=23)
    # All 27 directions together are a basis: lengths of noise are those of the whole noise.
    whole, _ = by_hand(model, loss_fn, inputs, targets, torch.eye(27, dtype=torch.float64), found, 0)
    np.testing.assert_allclose((found.projections**2).sum(axis=1), (whole**2).sum(axis=1), rtol=1e-6)
    assert np.isnan(found.eigenvalues[4:]).all()
    assert found.is_eigenvector.tolist() == [1] * 4 + [0] * 23
    assert set(found.tail_indices()) == {"eigenvectors", "bulk"}


def test_selected_parameters_and_seeds():
    model, loss_fn, inputs, targets = problem()
    data, chosen = [(inputs, targets)], ["2.*"]
    pairs = pairs_of(model, loss_fn, data, count=2, params=chosen)
    how = {"batch_size": 5, "count": 6, "bulk": 2, "params": chosen}
    first, again, other = (gradient_noise(model, loss_fn, data, pairs, seed=seed, **how) for seed in (0, 0, -7))
    np.testing.assert_array_equal(first.projections, again.projections)
    assert (first.projections != other.projections).any()
    assert first.parameters == 12
    with pytest.raises(ValueError, match="have 12 entries, but 27 parameters are selected"):
        gradient_noise(model, loss_fn, data, pairs, batch_size=5, count=6)


def test_the_model_is_left_alone():
    model, loss_fn, inputs, targets = problem()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = [each.detach().clone() for each in model.parameters()]
    state = torch.get_rng_state()
    gradient_noise(model, loss_fn, [(inputs, targets)], batch_size=5, count=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert bool((model[0].weight.grad == 1).all())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be an integer of at least 1"),
        ({"batch_size": 61}, "batch_size is 61, but there are 60 samples"),
        ({"count": 1.5}, r"count is 1\.5"),
        ({"bulk": -1}, "bulk is -1"),
        ({"bulk": 0}, "There are no directions"),
        ({"bulk": 28}, "0 eigenvectors and bulk is 28, but only 27 parameters"),
        ({"directions": torch.eye(27)}, "directions is a Tensor; pass the result of hesspec.eigenpairs"),
        ({"seed": 1.0}, r"seed is 1\.0"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(changes, message):
    model, loss_fn, inputs, targets = problem()
    with pytest.raises(ValueError, match=message):
        gradient_noise(model, loss_fn, [(inputs, targets)], **{"batch_size": 5, "count": 4, **changes})


def test_losses_that_couple_samples_are_refused():
    model, _, inputs, targets = problem()
    with pytest.raises(ValueError, match="cannot be split into samples"):
        gradient_noise(
            model, lambda outputs, y: outputs.std() + 0 * y.sum(), [(inputs, targets)], batch_size=5, count=4
        )


def test_minibatches_without_terms_are_refused():
    model, loss_fn, inputs, targets = problem()
    targets[1:] = -100
    with pytest.raises(ValueError, match="has no loss terms: all of its targets are ignored"):
        gradient_noise(model, loss_fn, [(inputs, targets)], batch_size=1, count=50)


def test_gradients_that_are_not_finite():
    model, loss_fn, inputs, targets = problem()
    inputs[3] = math.nan
    with pytest.raises(hesspec.NonFiniteError):
        gradient_noise(model, loss_fn, [(inputs, targets)], batch_size=5, count=4)
