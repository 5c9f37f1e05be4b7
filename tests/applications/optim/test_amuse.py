"""AMUSE against its sequences written out, schedule-free SGD, known numbers, and the authors' code."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import hesspec
from hesspec.applications.optim.orthogonalisation import FIFTH, FIRST, THIRD

optim = hesspec.optim


def polynomial(values, steps=5):
    """What five steps make of singular values, in float64."""
    for _ in range(steps):
        values = FIRST * values + THIRD * values**3 + FIFTH * values**5
    return values


def scalar(value=1.0, **settings):
    """A parameter of one entry in float64, and its optimiser."""
    weight = nn.Parameter(torch.full((1, 1), value, dtype=torch.float64))
    return weight, optim.AMUSE([{"params": [weight], "use_muon": True}], **{"lr": 0.1, "warmup_steps": 5} | settings)


def step(weight, optimizer):
    """One step on the loss w^2/2."""
    weight.grad = weight.detach().clone()
    optimizer.step()


# Orthogonalisation ----------------------------------------------------------------------------------------------------


def test_known_values_of_the_polynomial():
    sizes = np.array([1, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001])
    known = [0.696436, 0.682011, 0.765439, 0.712120, 0.758120, 0.698917, 0.470544]
    np.testing.assert_allclose(polynomial(sizes), known, atol=1e-6)
    assert polynomial(np.array(1.0), 1) == pytest.approx(0.701)
    for least, low, high in ((0.005, 0.6818, 1.1544), (0.01, 0.6818, 1.1344)):
        found = polynomial(np.linspace(least, 1, 1_000_000))
        assert (found.min(), found.max()) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5), (1, 7), (2, 3, 8, 4)])
def test_orthogonalisation_acts_on_singular_values(shape):
    matrix = torch.randn(shape, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = polynomial(s / torch.linalg.matrix_norm(matrix)[..., None])
    torch.testing.assert_close(optim.orthogonalise(matrix), u * s[..., None, :] @ v, rtol=0, atol=1e-14)


def test_orthogonalisation_of_any_scale():
    matrix = torch.randn(5, 8)
    expected = optim.orthogonalise(matrix)
    # Powers of two change no digit; squares of the smallest and largest entries are beyond the range of float32.
    for scale in (2.0**-120, 2.0**-60, 2.0**120):
        assert torch.equal(optim.orthogonalise(matrix * scale), expected)
    assert torch.equal(optim.orthogonalise(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_orthogonalisation_in_bfloat16_is_that_of_torch():
    weight = nn.Parameter(torch.randn(12, 30))
    weight.grad = torch.randn(12, 30)
    before = weight.detach().clone()
    torch.optim.Muon([weight], lr=1.0, weight_decay=0.0).step()
    update = before - weight.detach()
    exact = optim.orthogonalise(weight.grad)
    rounded = optim.orthogonalise(weight.grad, dtype=torch.bfloat16)
    # Products in bfloat16 have 8 bits, and each step multiplies errors by the slope, up to 3.4: a few percent.
    for found in (update, rounded):
        assert 1e-3 < float((found - exact).norm() / exact.norm()) < 0.1
    assert rounded.dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"matrix": torch.ones(3)}, r"shape \(3,\)"),
        ({"matrix": torch.ones(3, 3, dtype=torch.int64)}, "torch.int64"),
        ({"matrix": torch.ones(3, 3), "steps": 0}, "steps is 0"),
    ],
)
def test_what_cannot_be_orthogonalised(given, message):
    with pytest.raises(ValueError, match=message):
        optim.orthogonalise(**given)


# Sequences ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("power", "known"),
    [
        (2.0, [0.6, 0.6, 0.685539, 0.880102, 0.954252, 0.975356]),
        (0.0, [0.6, 0.6, 0.632334, 0.779986, 0.896891, 0.941258]),
    ],
)
def test_known_weights_of_the_average(power, known):
    weight, optimizer = scalar(warmup_steps=10, beta=0.6, rho=0.8, averaging_power=power)
    found = {}
    for t in range(1, 101):
        found[t] = optimizer.param_groups[0]["interpolation"]
        step(weight, optimizer)
    np.testing.assert_allclose([found[t] for t in (1, 10, 11, 20, 50, 100)], known, atol=1e-6)
    if power == 0:
        later = np.arange(11, 101)
        np.testing.assert_allclose([found[t] for t in later], 1 - 0.4 * (9 / (later - 1)) ** 0.8, rtol=1e-14)


def coefficients(t, warmup, beta, rho, power):
    """eta_t / lr, c_t and b_t from their definitions."""
    rates = np.minimum(1, np.arange(1, t + 1) / warmup)
    c = rates[-1] ** power / (rates**power).sum()
    if t <= warmup:
        return rates[-1], c, beta
    first = 1 / (rates[:warmup] ** power).sum()
    return rates[-1], c, 1 - (c * (1 - first) / (first * (1 - c))) ** rho * (1 - beta)


def test_the_authors_code_averages_something_else():
    """x_20 on w^2/2: .862481 by the sequences, .858794 where x is recovered from y with the weight of a later step."""
    weight, optimizer = scalar(beta=0.6, rho=0.8)
    for _ in range(20):
        step(weight, optimizer)
    optimizer.eval()
    assert weight.item() == pytest.approx(0.862481, abs=1e-6)

    def sign(value):
        return math.copysign(float(polynomial(np.array(1.0))), value)

    for recovered, known in ((False, 0.862481), (True, 0.858794)):
        x = z = y = 1.0
        mean = 0.0
        for t in range(1, 21):
            rate, c, b = coefficients(t, 5, 0.6, 0.8, 2.0)
            if recovered:
                x = (y - (1 - b) * z) / b
            else:
                y = (1 - b) * z + b * x
            mean += 0.05 * (y - mean)
            z -= 0.1 * rate * 0.2 * sign(y + 0.95 * (mean - y))
            x = (1 - c) * x + c * z
            if recovered:
                y = (1 - b) * z + b * x
        assert x == pytest.approx(known, abs=1e-6)


@pytest.mark.parametrize("auxiliary", ["adamw", "sgd"])
@pytest.mark.parametrize("power", [2.0, 0.0])
def test_a_network_follows_the_sequences(auxiliary, power):
    """Convolution, matrix, vector and output layer with weight decay, in float64, against the equations."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 2))
    model.double()
    inputs, targets = torch.randn(20, 1, 3, 3, dtype=torch.float64), torch.randint(2, (20,))
    warmup, beta, rho, lr, decay, mu = 4, 0.7, 0.5, 0.05, 0.1, 0.8
    muon, rest = optim.muon_groups(model)
    rest |= {"lr": 0.02, "weight_decay": 0.3}
    settings = {"momentum": mu, "beta": beta, "rho": rho, "averaging_power": power, "auxiliary": auxiliary}
    names = {name for name, _ in muon["params"]}
    optimizer = optim.AMUSE([muon, rest], lr=lr, warmup_steps=warmup, weight_decay=decay, **settings)
    assert names == {"0.weight", "3.weight"}
    z = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, y = dict(z), dict(z)
    mean = {name: torch.zeros_like(value) for name, value in z.items()}
    square = dict(mean)
    loss_fn = nn.CrossEntropyLoss()
    for t in range(1, 13):
        rate, c, b = coefficients(t, warmup, beta, rho, power)
        y = {name: (1 - b) * z[name] + b * x[name] for name in z}
        leaves = {name: value.clone().requires_grad_() for name, value in y.items()}
        loss = loss_fn(torch.func.functional_call(model, leaves, (inputs,)), targets)
        for name, g in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            if name in names:
                mean[name] = mu * mean[name] + (1 - mu) * g
                matrix = ((1 - mu) * g + mu * mean[name]).flatten(1)
                u, s, v = torch.linalg.svd(matrix, full_matrices=False)
                rows, columns = matrix.shape
                scale = 0.2 * max(rows, columns) ** 0.5 if auxiliary == "adamw" else max(1, rows / columns) ** 0.5
                direction = (scale * u * polynomial(s / s.norm()) @ v).view_as(g)
                z[name] = z[name] - lr * rate * (direction + decay * z[name])
            else:
                square[name] = 0.999 * square[name] + 0.001 * g**2
                root = (square[name] / (1 - 0.999**t)).sqrt() + 1e-10
                direction = g / root if auxiliary == "adamw" else g
                z[name] = z[name] - 0.02 * rate * (direction + 0.3 * z[name])
            x[name] = (1 - c) * x[name] + c * z[name]
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
        for sequence, expected in (("x", x), ("z", z)):
            with optimizer.at(sequence):
                for name, p in model.named_parameters():
                    # Rounding, which the division by small gradients' roots and by small norms amplifies.
                    torch.testing.assert_close(p.detach(), expected[name], rtol=0, atol=1e-11)


def test_rho_zero_is_schedule_free():
    """With plain steps it is schedule-free SGD: x is the mean of z, y between them, over 100 steps."""
    curvature = torch.tensor([1.0, 4.0, 10.0], dtype=torch.float64)
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    group = {"params": [weight], "use_muon": False}
    optimizer = optim.AMUSE([group], lr=0.15, warmup_steps=1, beta=0.9, rho=0.0, auxiliary="sgd")
    path = [weight.detach().clone()]
    x = path[0]
    for _ in range(100):
        y = 0.1 * path[-1] + 0.9 * x
        torch.testing.assert_close(weight.detach(), y, rtol=1e-13, atol=1e-13)
        path.append(path[-1] - 0.15 * curvature * y)
        x = torch.stack(path[1:]).mean(0)
        weight.grad = curvature * weight.detach()
        optimizer.step()
    optimizer.eval()
    torch.testing.assert_close(weight.detach(), x, rtol=1e-13, atol=1e-13)


# As an optimiser ------------------------------------------------------------------------------------------------------


def problem(seed=0, **settings):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 3))
    data = torch.randn(30, 5), torch.randint(3, (30,))
    settings = {"lr": 0.05, "warmup_steps": 4, "beta": 0.6, "rho": 0.8} | settings
    return model, data, optim.AMUSE(optim.muon_groups(model), **settings)


def train(model, data, optimizer, steps):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(data[0]), data[1])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def values(model):
    return [p.detach().clone() for p in model.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("stop", [2, 9])
def test_a_resumed_run_is_the_same_to_the_bit(stop, mode, tmp_path):
    model, data, optimizer = problem()
    train(model, data, optimizer, stop)
    getattr(optimizer, mode)()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "run.pt")
    optimizer.train()
    train(model, data, optimizer, 10)
    other, _, resumed = problem(seed=1, lr=0.5)
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.train_mode == (mode == "train")
    resumed.train()
    train(other, data, resumed, 10)
    assert same(values(model), values(other))


def test_modes_are_exact_and_steps_need_the_right_one():
    model, data, optimizer = problem()
    train(model, data, optimizer, 9)
    y = values(model)
    with optimizer.at("x"):
        x = values(model)
    with optimizer.at("z"):
        z = values(model)
    assert same(values(model), y)
    b = optimizer.param_groups[0]["interpolation"]
    for now, one, other in zip(y, x, z, strict=True):
        torch.testing.assert_close(now, (1 - b) * other + b * one)
    optimizer.eval()
    assert same(values(model), x)
    with pytest.raises(RuntimeError, match="evaluation mode; call train"):
        optimizer.step()
    with optimizer.at("y"):
        assert same(values(model), y)
    assert same(values(model), x)
    optimizer.eval()
    optimizer.train()
    assert same(values(model), y)
    with pytest.raises(ValueError, match="sequence is 'w'"), optimizer.at("w"):
        pass


def test_parameters_come_back_after_an_error():
    model, data, optimizer = problem()
    train(model, data, optimizer, 5)
    y = values(model)
    with pytest.raises(ZeroDivisionError), optimizer.at("x"):
        raise ZeroDivisionError
    assert same(values(model), y)


def test_without_interpolation_gradients_are_evaluated_at_z():
    model, data, optimizer = problem(beta=0.0, rho=0.0)
    train(model, data, optimizer, 9)
    y = values(model)
    with optimizer.at("z"):
        assert same(values(model), y)


def test_a_closure_gives_the_loss_and_the_same_steps():
    model, data, optimizer = problem()
    losses = train(model, data, optimizer, 6)
    other, _, by_closure = problem()

    def closure():
        by_closure.zero_grad()
        loss = nn.functional.cross_entropy(other(data[0]), data[1])
        loss.backward()
        return loss

    assert [float(by_closure.step(closure).detach()) for _ in range(6)] == losses
    assert same(values(model), values(other))
    assert losses[-1] < losses[0]


def test_a_scheduler_multiplies_the_warm_up():
    weight, optimizer = scalar(warmup_steps=3, beta=0.5, rho=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: [1.0, 0.5, 0.5, 1.0, 3.0, 0.0, 1.0][t])
    rates = np.array([1 / 3, 0.5 * 2 / 3, 0.5, 1.0, 3.0, 0.0, 1.0])
    weights = rates**2
    z = x = 1.0
    for t in range(7):
        assert optimizer.param_groups[0]["interpolation"] >= 0.5
        with optimizer.at("z"):
            before = weight.item()
        step(weight, optimizer)
        scheduler.step() if t < 6 else None
        with optimizer.at("z"):
            z = weight.item()
        # On one entry a step of Muon has the length 0.2 phi(1).
        assert before - z == pytest.approx(0.1 * rates[t] * 0.2 * float(polynomial(np.array(1.0))), rel=1e-12)
        x += weights[t] / weights[: t + 1].sum() * (z - x)
        with optimizer.at("x"):
            assert weight.item() == pytest.approx(x, rel=1e-14)


def test_a_learning_rate_of_zero_at_first():
    weight, optimizer = scalar(warmup_steps=2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.0 if t < 4 else 1.0)
    for _ in range(8):
        step(weight, optimizer)
        scheduler.step()
    assert 0.5 < weight.item() < 1


def test_a_parameter_that_gets_no_gradient_stays():
    model, data, optimizer = problem()
    model.unused = nn.Parameter(torch.ones(3, 3))
    optimizer.add_param_group({"params": [("unused", model.unused)], "use_muon": True})
    train(model, data, optimizer, 6)
    optimizer.eval()
    assert torch.equal(model.unused, torch.ones(3, 3))
    assert model.unused not in optimizer.state


def test_a_copy_is_a_separate_optimiser():
    model, data, optimizer = problem()
    train(model, data, optimizer, 6)
    other, twin = copy.deepcopy((model, optimizer))
    train(model, data, optimizer, 3)
    train(other, data, twin, 3)
    assert same(values(model), values(other))


def test_gradients_are_left_as_they_are():
    model, data, optimizer = problem()
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    before = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert same([p.grad for p in model.parameters()], before)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0; it must be a finite"),
        ({"lr": math.nan}, "lr is nan"),
        ({"warmup_steps": 0}, "warmup_steps is 0; it must be a positive integer"),
        ({"warmup_steps": 2.5}, "warmup_steps is 2.5"),
        ({"beta": 1.2}, "beta is 1.2; it must be between"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be at least 0 and below 1"),
        ({"beta2": -0.1}, "beta2 is -0.1"),
        ({"rho": -1.0}, "rho is -1.0"),
        ({"weight_decay": math.inf}, "weight_decay is inf"),
        ({"auxiliary": "adam"}, "auxiliary is 'adam'; it must be 'adamw' or 'sgd'"),
        ({"ns_steps": 0}, "ns_steps is 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        problem(**settings)


def test_groups_that_cannot_be_trained():
    vector, numbers = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    settings = {"lr": 0.1, "warmup_steps": 3}
    with pytest.raises(ValueError, match=r"use_muon=True or False .*; hesspec.optim.muon_groups\(model\)"):
        optim.AMUSE([vector], **settings)
    with pytest.raises(ValueError, match=r"shape \(3,\) is in a group for Muon"):
        optim.AMUSE([{"params": [vector], "use_muon": True}], **settings)
    with pytest.raises(ValueError, match="complex64"):
        optim.AMUSE([{"params": [numbers], "use_muon": True}], **settings)
    optimizer = optim.AMUSE([{"params": [vector], "use_muon": False}], **settings)
    with pytest.raises(ValueError, match="use_muon=True or False"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert len(optimizer.param_groups) == 1
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = optim.AMUSE([{"params": embedding.parameters(), "use_muon": False}], **settings)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        optimizer.step()


# Groups ---------------------------------------------------------------------------------------------------------------


class Language(nn.Module):
    """Embedding, a hidden matrix, normalisation, and an output layer that may share the embedding's weight."""

    def __init__(self, tied):
        super().__init__()
        self.tokens = nn.Embedding(10, 4)
        self.hidden = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 10, bias=False)
        if tied:
            self.head.weight = self.tokens.weight


def names_of(groups):
    return [[name for name, _ in group["params"]] for group in groups]


def test_groups_of_a_model():
    rest = ["tokens.weight", "hidden.bias", "norm.weight", "norm.bias"]
    assert names_of(optim.muon_groups(Language(tied=True))) == [["hidden.weight"], rest]
    assert names_of(optim.muon_groups(Language(tied=False))) == [["hidden.weight"], [*rest, "head.weight"]]
    both = ["hidden.weight", "head.weight"]
    assert names_of(optim.muon_groups(Language(tied=False), auxiliary=[])) == [both, rest]
    chosen = optim.muon_groups(Language(tied=False), auxiliary="hidden.*")
    assert names_of(chosen)[0] == ["head.weight"]
    bare = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False))
    assert names_of(optim.muon_groups(bare, auxiliary=[])) == [["0.weight", "1.weight"]]
    model = Language(tied=False)
    model.hidden.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="No parameter is left for Muon"):
        optim.muon_groups(model)
    with pytest.raises(ValueError, match="'nowhere'"):
        optim.muon_groups(Language(tied=False), auxiliary="nowhere")
