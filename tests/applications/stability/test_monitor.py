"""Thresholds against simulated optimisers, and the monitor against dense eigenvalues, in real training loops."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hesspec
from hesspec.applications.stability.monitoring import TopEigenvalue

stability = hesspec.stability

# With eps far beyond the gradients the preconditioner of an adaptive optimiser is constant, as the thresholds assume.
FROZEN = 1e6
SETTINGS = {
    "gradient descent": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "momentum and dampening": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.6, dampening=0.3),
    "dampening alone": lambda p: torch.optim.SGD(p, lr=0.1, dampening=0.3),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
    "weight decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, weight_decay=2.0),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, eps=FROZEN),
    "Adam, other means": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.99), eps=FROZEN),
    "Adam without mean": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.0, 0.99), eps=FROZEN),
    "Adam with weight decay": lambda p: torch.optim.Adam(p, lr=0.1, eps=FROZEN, weight_decay=20 * FROZEN),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, eps=FROZEN, weight_decay=4.0),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, eps=FROZEN, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, eps=FROZEN),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_threshold_divides_decay_from_growth_on_a_quadratic(name):
    scale = FROZEN if name.startswith(("Adam", "RMS", "Ada")) else 1.0
    sizes = []
    for share in (0.96, 1.04):
        weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = SETTINGS[name]([weight])
        # The bias correction of Adam ends before the weight begins to move.
        for _ in range(400):
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
        with torch.no_grad():
            weight.fill_(1e-9)
        limit = stability.threshold(optimizer)
        eigenvalue = share * limit.value * scale - limit.decay
        for _ in range(400):
            optimizer.zero_grad()
            (eigenvalue * weight**2 / 2).sum().backward()
            optimizer.step()
            # Before the gradient comes near eps.
            if abs(weight.item()) > 1e-6:
                break
        sizes.append(abs(weight.item()))
    assert sizes[0] < 1e-11
    assert sizes[1] > 1e-6


def test_adam_has_its_known_threshold():
    parameter = nn.Parameter(torch.zeros(1))
    for beta in (0.9, 0.5):
        limit = stability.threshold(torch.optim.Adam([parameter], lr=0.02, betas=(beta, 0.999)))
        assert limit.value == pytest.approx((2 + 2 * beta) / ((1 - beta) * 0.02), rel=1e-12)
    assert stability.threshold(torch.optim.AdamW([parameter], lr=0.02, weight_decay=0.0)).value == pytest.approx(1900)


def test_settings_of_now_count():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=torch.tensor(0.5))
    assert stability.threshold(optimizer) == (4.0, 0.0, 0.5)
    optimizer.param_groups[0]["lr"] = 0.25
    assert stability.threshold(optimizer).value == 8.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (torch.optim.LBFGS, "No stability threshold is known for an LBFGS"),
        (torch.optim.NAdam, "known for an NAdam"),
        (lambda p: torch.optim.SGD(p, lr=0.0), "learning rate of the optimiser is 0.0"),
        (lambda p: torch.optim.SGD(p, lr=0.1, maximize=True), "maximises"),
        (lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.1}, {"params": p[1:], "lr": 0.2}]), "differ in 'lr'"),
        (lambda p: torch.optim.SGD(p[:1], lr=0.1), "does not train 1 of the 2"),
    ],
)
def test_optimisers_without_a_threshold_are_sentences(make, message):
    model = nn.Linear(2, 1)
    data = [(torch.ones(3, 2), torch.ones(3, 1))]
    with pytest.raises(ValueError, match=message):
        stability.monitor(model, nn.MSELoss(), data, make(list(model.parameters())))


def test_groups_that_differ_can_be_followed_one_at_a_time():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2}])
    data = [(torch.ones(3, 2), torch.ones(3, 1))]
    monitor = stability.monitor(model, nn.MSELoss(), data, optimizer, params=["bias"])
    assert monitor(0).threshold == 10.0
    # The loss is a mean of (b + ...)^2.
    assert monitor.readings[0].sharpness == pytest.approx(2.0)


# In a training loop ---------------------------------------------------------------------------------------------------


def problem(dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    inputs = torch.randn(40, 6, dtype=dtype)
    targets = torch.nn.functional.one_hot(torch.arange(40) % 3, 3).to(dtype)
    return model, nn.MSELoss(), [(inputs[:25], targets[:25]), (inputs[25:], targets[25:])]


def train(model, loss_fn, data, optimizer):
    optimizer.zero_grad()
    inputs, targets = (torch.cat(parts) for parts in zip(*data, strict=True))
    loss_fn(model(inputs), targets).backward()
    optimizer.step()


def dense_top(hessian, diagonal=None, decay=0.0):
    eye = torch.eye(hessian.shape[0], dtype=hessian.dtype)
    matrix = (hessian @ eye + decay * eye).double()
    if diagonal is not None:
        matrix = diagonal.rsqrt()[:, None] * matrix * diagonal.rsqrt()
    return float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])


TRAINED = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.5, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.003),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float64) for name in TRAINED), ("SGD", torch.float32), ("Adam", torch.float32)],
)
@pytest.mark.few(3)
def test_readings_against_dense_eigenvalues(name, dtype):
    model, loss_fn, data = problem(dtype)
    optimizer = TRAINED[name](model.parameters())
    monitor = stability.monitor(model, loss_fn, data, optimizer, every=20, tolerance=0.02)
    adaptive = not isinstance(optimizer, torch.optim.SGD)
    for step in range(1, 41):
        train(model, loss_fn, data, optimizer)
        reading = monitor(step)
        assert (reading is None) == (step % 20 > 0)
        if reading is None:
            continue
        hessian = hesspec.Hessian(model, loss_fn, data, mode="double backward", verify=False)
        truth = dense_top(hessian)
        # A Ritz value is at most the eigenvalue, and near it by its residual.
        slack = 100 * torch.finfo(dtype).eps * truth
        assert truth - reading.sharpness_bound - slack <= reading.sharpness <= truth + slack
        assert reading.sharpness_bound <= 0.021 * reading.sharpness
        limit = stability.threshold(optimizer)
        if adaptive:
            diagonal = hesspec.operators.preconditioner(optimizer, model.named_parameters())
            truth = dense_top(hessian, diagonal, limit.decay)
            assert truth - reading.preconditioned_bound <= reading.preconditioned <= truth * (1 + 1e-4)
            assert reading.ratio == reading.preconditioned / limit.value
        else:
            assert math.isnan(reading.preconditioned)
            # Weight decay in the gradient takes its part of the threshold.
            assert reading.threshold == pytest.approx(2 * 1.5 / 0.5 - 0.01)
            assert reading.ratio == reading.sharpness / reading.threshold
        assert reading.risk == pytest.approx(hessian.risk)
    assert [reading.step for reading in monitor.readings] == [20, 40]


def test_products_are_counted_and_few_once_it_is_warm(monkeypatch):
    model, loss_fn, data = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    made = []
    monkeypatch.setattr(
        hesspec.Hessian,
        "partial_products",
        lambda self, columns: (
            made.append(len(columns)) or hesspec.operators.CurvatureOperator.partial_products(self, columns)
        ),
    )
    monitor = stability.monitor(model, loss_fn, data, optimizer, tolerance=0.05)
    for step in range(12):
        train(model, loss_fn, data, optimizer)
        monitor(step)
    counts = monitor.result().products
    assert counts.sum() == sum(made)
    assert counts[1:].max() <= counts[0]
    assert counts[1:].mean() <= 6


def test_a_monitor_changes_nothing():
    def run(*, monitored):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global generator, which users have
        random.seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))
        model[2].train()
        model[0].eval()
        data = TensorDataset(torch.randn(40, 6), torch.randn(40, 3))
        loader, batches = DataLoader(data, 10, shuffle=True), DataLoader(data, 10)
        loss_fn, optimizer = nn.MSELoss(), torch.optim.Adam(model.parameters(), lr=0.01)
        monitor = stability.monitor(model, loss_fn, batches, optimizer)
        seen = []
        for epoch in range(3):
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss_fn(model(inputs), targets).backward()
                optimizer.step()
                gradients = [parameter.grad.clone() for parameter in model.parameters()]
                if monitored:
                    monitor(epoch)
                seen += [*gradients, *(parameter.grad.clone() for parameter in model.parameters())]
                seen += [parameter.detach().clone() for parameter in model.parameters()]
                seen.append(torch.tensor([random.random(), np.random.rand()]))  # noqa: NPY002, S311
        assert [module.training for module in model] == [False, True, True, True]
        return seen

    for plain, watched in zip(run(monitored=False), run(monitored=True), strict=True):
        assert torch.equal(plain, watched)


def test_modes_come_back_when_a_measurement_fails():
    model, loss_fn, data = problem()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = stability.monitor(model, loss_fn, data, optimizer)
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    state = torch.get_rng_state()
    with pytest.raises(hesspec.NonFiniteError):
        monitor(0)
    assert all(module.training for module in model.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert monitor.readings == ()


def test_an_optimiser_that_has_not_stepped_is_a_sentence():
    model, loss_fn, data = problem()
    monitor = stability.monitor(model, loss_fn, data, torch.optim.Adam(model.parameters()))
    with pytest.raises(ValueError, match="has no state for parameter '0.weight' yet: make a step first"):
        monitor(0)


@pytest.mark.parametrize("size", [50, 400, 30_000])
@pytest.mark.parametrize("seed", range(3))
def test_an_eigenvalue_that_comes_from_elsewhere_is_found(seed, size):
    # The new largest eigenvalue has an eigenvector that is orthogonal to all that was known.
    top = TopEigenvalue(tolerance=0.02, most=30, seed=seed)
    bulk = torch.linspace(-0.1, 0.1, size, dtype=torch.float64)
    for place, largest in ((3, 3.0), (20, 4.0), (40, 3.5)):
        values = bulk.clone()
        values[3], values[place] = 3.0, largest
        for _ in range(5):
            value, bound, products = top(Diagonal(values))
            assert value <= largest * (1 + 1e-12)
            assert float((values - value).abs().min()) <= bound
            assert products <= 30
        assert value == pytest.approx(largest, rel=1e-3)


class Diagonal:
    def __init__(self, values):
        self.values, self.dtype, self.device = values, values.dtype, values.device
        self.shape = (len(values),) * 2

    def __matmul__(self, vector):
        return self.values * vector


def test_a_negative_definite_matrix_has_a_largest_eigenvalue_too():
    value, bound, products = TopEigenvalue(tolerance=0.02, most=30, seed=0)(-torch.eye(5) * 2)
    assert (value, products <= 5) == (pytest.approx(-2.0), True)
    assert bound < 1e-5
    zero, _, _ = TopEigenvalue(tolerance=0.02, most=30, seed=0)(torch.zeros(5, 5))
    assert zero == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every": 0}, "every is 0"), ({"most": 0}, "most is 0"), ({"tolerance": 0.0}, "tolerance is 0.0")],
)
def test_options_out_of_range_are_sentences(options, message):
    model, loss_fn, data = problem()
    with pytest.raises(ValueError, match=message):
        stability.monitor(model, loss_fn, data, torch.optim.SGD(model.parameters(), lr=0.1), **options)


def test_spectra_of_minibatches_are_those_of_each_batch():
    model, loss_fn, data = problem()
    spectra = stability.minibatch_spectra(model, loss_fn, data, steps=200)
    assert len(spectra) == 2
    for spectrum, batch in zip(spectra, data, strict=True):
        hessian = hesspec.Hessian(model, loss_fn, [batch])
        dense = torch.linalg.eigvalsh(hessian @ torch.eye(hessian.shape[0], dtype=torch.float64))
        np.testing.assert_allclose(
            stability.sharpness_dimension(spectrum, 2.0).value,
            stability.sharpness_dimension(dense.numpy(), 2.0).value,
            rtol=1e-6,
        )
    assert len(stability.minibatch_spectra(model, loss_fn, data, runs=1, steps=3)) == 1
    for options, message in (({"runs": 0}, "runs is 0"), ({}, "no minibatches")):
        with pytest.raises(ValueError, match=message):
            stability.minibatch_spectra(model, loss_fn, [], **options)
