"""Expected change of the loss in one step: exact on quadratics, and against the mean over all minibatches."""

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from saved_results import check_refused, check_saved
from torch import nn

import hesspec

noise = hesspec.noise
N, RATE = 9, 0.05


def data(classes=None, sizes=(4, 4, 1)):
    torch.manual_seed(0)
    x = torch.randn(N, 3, dtype=torch.float64)
    y = torch.randint(classes, (N,)) if classes else torch.randn(N, 2, dtype=torch.float64)
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def linear():
    torch.manual_seed(1)
    return nn.Linear(3, 2, dtype=torch.float64)


def step_changes(model, loss_fn, batches, size, divisor=None):
    """Changes of the loss of all data in one step with each possible minibatch."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    parameters = list(model.parameters())
    start = [p.detach().clone() for p in parameters]
    before = float(loss_fn(model(x), y).detach())
    changes = []
    for chosen in itertools.combinations(range(N), size):
        gradient = torch.autograd.grad(loss_fn(model(x[list(chosen)]), y[list(chosen)]), parameters)
        scale = [torch.ones_like(p) for p in parameters] if divisor is None else divisor
        with torch.no_grad():
            for p, g, d in zip(parameters, gradient, scale, strict=True):
                p.sub_(RATE * g / d)
            changes.append(float(loss_fn(model(x), y)) - before)
            for p, s in zip(parameters, start, strict=True):
                p.copy_(s)
    return np.array(changes)


@cache
def measured(size=3, batches=400):
    return noise.expected_loss_change(
        linear(), nn.MSELoss(), data(), learning_rate=RATE, batch_size=size, batches=batches
    )


def second_moment_terms(size):
    """The noise term by its definition, with the dense matrices."""
    model, loss = linear(), nn.MSELoss()
    hessian = hesspec.Hessian(model, loss, data()) @ torch.eye(8, dtype=torch.float64)
    moment = hesspec.SecondMoment(model, loss, data(), batch_size=size) @ torch.eye(8, dtype=torch.float64)
    return RATE**2 / 2 * float((hessian * moment).sum())


@pytest.mark.parametrize("size", [1, 3, 9])
def test_the_change_of_a_quadratic_loss_is_exact(size):
    exact = step_changes(linear(), nn.MSELoss(), data(), size)
    found = measured(size)
    # The trace with the dense second moment is the exact second-order term.
    assert found.first_order + second_moment_terms(size) == pytest.approx(exact.mean(), rel=1e-12)
    assert abs(found.value - exact.mean()) <= 3 * found.noise_standard_error + 1e-15
    assert found.noise_standard_error < 0.1 * abs(found.noise_term) + 1e-15
    if size == N:
        assert found.noise_term == pytest.approx(0, abs=1e-18)
        assert found.value == pytest.approx(exact[0], rel=1e-12)


def test_the_change_of_a_network_is_right_to_third_order():
    torch.manual_seed(2)
    model, loss = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double(), nn.CrossEntropyLoss()
    exact = step_changes(model, loss, data(3), 3).mean()
    found = noise.expected_loss_change(model, loss, data(3), learning_rate=RATE, batch_size=3, batches=64)
    assert found.first_order < 0 < found.noise_term
    assert abs(found.value - exact) <= 3 * found.noise_standard_error + 0.02 * abs(exact)
    assert found.attributes["products"] == 65


def test_a_preconditioner_divides_the_step():
    divisor = torch.linspace(0.5, 2, 8, dtype=torch.float64)
    model = linear()
    parts = [d.reshape(p.shape) for d, p in zip(divisor.split([6, 2]), model.parameters(), strict=True)]
    exact = step_changes(model, nn.MSELoss(), data(), 2, parts).mean()
    found = noise.expected_loss_change(
        model, nn.MSELoss(), data(), learning_rate=RATE, batch_size=2, batches=400, preconditioner=divisor
    )
    assert found.preconditioner == "Tensor"
    assert abs(found.value - exact) <= 3 * found.noise_standard_error


def test_the_best_learning_rate_minimises_the_expected_loss():
    found = measured()
    rates = found.best_learning_rate * np.array([0.9, 1.0, 1.1])
    changes = found.at(rates)
    assert changes[1] < min(changes[0], changes[2])
    assert found.at(np.array([RATE]))[0] == pytest.approx(found.value)
    assert replace(found, gradient_term=-1.0).best_learning_rate == np.inf


def test_a_result_is_saved_shown_and_drawn(tmp_path):
    found = measured()
    check_saved(found, tmp_path)
    assert "400 of 3 of 9 samples" in str(found)
    assert found.plot().axes[0].get_xlabel() == "learning rate"
    assert replace(found, gradient_term=-1.0).plot().axes
    check_refused(found, "which is positive", first_order=1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
        ({"batch_size": 10}, "batch_size is 10; it must be an integer from 1 to 9"),
        ({"batches": 1}, "batches is 1; it must be an integer of at least 2"),
        ({"loss_fn": nn.MSELoss(reduction="sum")}, "is a sum over samples"),
        ({"preconditioner": -torch.ones(8)}, "must be positive and finite"),
        ({"loss_fn": nn.CrossEntropyLoss(ignore_index=0), "data": data(2)}, "a mean over . terms"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(change, words):
    given = {"loss_fn": nn.MSELoss(), "data": data(), "learning_rate": RATE, "batch_size": 2, **change}
    with pytest.raises(ValueError, match=words):
        noise.expected_loss_change(linear(), **given)
