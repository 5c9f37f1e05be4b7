"""Products of Jacobians layer by layer, against the Jacobians themselves, for models of many kinds."""

import copy

import pytest
import torch
from torch import nn

from hesspec import laplace
from hesspec.applications.laplace import jacobian
from hesspec.applications.laplace.jacobian import Network
from hesspec.applications.laplace.layers import SpatialUse
from hesspec.operators.risk.empirical_risk import EmpiricalRisk

COUNT = 9


def convolutions():
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, stride=2, padding=(1, 0), bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(nn.Conv2d(4, 6, 2, dilation=(2, 1), groups=2), nn.GroupNorm(3, 6), nn.Tanh()),
        *(nn.Conv2d(6, 4, 1), nn.Flatten(), nn.LazyLinear(3)),
    )


class Sequence(nn.Module):
    """Layers that are applied at each position of a sequence."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)
        self.along = nn.Conv1d(4, 5, 3, stride=2, padding=1)

    def forward(self, x):
        x = self.norm(torch.tanh(self.first(x.flatten(2).mT)))
        return self.last(x).mean(1) + self.along(x.mT).mean((1, 2))[:, None]


class Tied(nn.Module):
    """One weight in a layer that is called twice, and in another layer."""

    def __init__(self):
        super().__init__()
        self.inner, self.same, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.same.weight = self.inner.weight
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        x = x.flatten(1)[:, :8]
        for layer in (self.inner, self.inner, self.same):
            x = torch.tanh(self.norm(layer(x)))
        return self.last(x)


class Elsewhere(nn.Module):
    """A weight of a layer that is also used in another way."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.tanh(self.layer(x.flatten(1)[:, :8]))
        return self.last(x @ self.layer.weight)


class Attention(nn.Module):
    """An embedding of integers, and attention."""

    def __init__(self):
        super().__init__()
        self.embedding, self.last = nn.Embedding(5, 8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.embedding((x.flatten(1)[:, :6].abs() * 3).long().clamp(max=4))
        return self.last(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Positions(nn.Module):
    """Positions are the first dimension, and as many as samples."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = x.flatten(2)[:, :, :COUNT].permute(2, 0, 1)
        return self.last(torch.tanh(self.first(x)))[0]


class Batchwise(nn.Module):
    """Samples that interact."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.tanh(self.first(x.flatten(1)[:, :4]))
        return self.last(x - x.mean(0) / 2)


class Force(nn.Module):
    """The output is a derivative with respect to the input, which depends on weights in the backward pass too."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        with torch.enable_grad():
            x = x.flatten(1)[:, :3].detach().requires_grad_()
            return torch.autograd.grad(self.last(torch.tanh(self.first(x))).sum(), x, create_graph=True)[0]


class Transformed(nn.Module):
    """The same by a transform that is not seen."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        return torch.func.grad(lambda y: self.last(torch.tanh(self.first(y))).sum())(x.flatten(1)[:, :3])


class Overwriting(nn.Module):
    """The input of a layer is overwritten after it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.sin(x.flatten(1)[:, :4])
        y = torch.tanh(self.first(x))
        with torch.no_grad():
            x.mul_(2)
        return self.last(y + x)


# Model, selection of parameters, and whether the layers are known.
CASES = {
    "convolutions": (convolutions, None, True),
    "some of them": (convolutions, ["0.weight", "3.bias", "4.weight", "8.bias"], True),
    "last layer": (convolutions, ["8.*"], True),
    "sequence": (Sequence, None, True),
    "tied": (Tied, None, True),
    "used elsewhere": (Elsewhere, None, False),
    "attention": (Attention, None, False),
    "after attention": (Attention, ["last.*"], True),
    "positions first": (Positions, None, False),
    "samples interact": (Batchwise, None, False),
    "derivative": (Force, None, False),
    "transform": (Transformed, None, False),
}


def network(case, dtype=torch.float64):
    make, params, known = CASES[case]
    torch.manual_seed(0)
    model, x = make(), torch.randn(COUNT, 3, 7, 6)
    model(x)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model, x = model.to(dtype).eval(), x.to(dtype)
    y = model(x).detach()
    return Network(EmpiricalRisk(model, nn.MSELoss(), [(x, y)], params)), x, known


def found(of, x, vectors):
    parts = list(of.products(x, vectors))
    return [torch.cat(each) for each in zip(*parts, strict=True)]


def truth(of, x, vectors):
    """Products of the rows in float64."""
    outputs, rows = zip(*of.rows(x), strict=True)
    rows = torch.stack(rows).double()
    return torch.stack(outputs), rows @ rows.mT, rows @ vectors.double()


@pytest.mark.parametrize("cheaper", [None, True, False])
@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_the_jacobian(case, cheaper, monkeypatch):
    of, x, known = network(case)
    if cheaper is not None:
        # Both forms of each layer, whichever is chosen.
        monkeypatch.setattr(SpatialUse, "cheaper", lambda self, _: cheaper and self.groups == 1)
    count = sum(leaf.numel() for leaf in of._risk.leaves().values())
    vectors = torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = truth(of, x, vectors)
    taken = []
    own = of.rows
    monkeypatch.setattr(of, "rows", lambda inputs, **options: taken.append(len(inputs)) or own(inputs, **options))
    for mine, true in zip(found(of, x, vectors), expected, strict=True):
        assert (mine - true).abs().max() <= 1e-12 * true.abs().max()
    # For the check of the first input, or for all of them.
    assert taken[-1] == (1 if known else COUNT)


@pytest.mark.parametrize("case", ["convolutions", "sequence", "tied"])
def test_float32_is_as_exact_as_the_jacobian(case):
    of, x, _ = network(case, torch.float32)
    exact, _, _ = network(case)
    count = sum(leaf.numel() for leaf in of._risk.leaves().values())
    vectors = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
    true = truth(exact, x.double(), vectors)
    for mine, other, right in zip(found(of, x, vectors), truth(of, x, vectors), true, strict=True):
        # Both have the rounding of the passes, some tens of units; its size is that of the Jacobian's.
        allowed = 4 * (other - right).norm() + 50 * torch.finfo(torch.float32).eps * right.norm()
        assert (mine - right).norm() <= allowed


def test_an_input_that_is_overwritten_is_the_error_of_pytorch():
    torch.manual_seed(0)
    x = torch.randn(COUNT, 4)
    of = Network(EmpiricalRisk(Overwriting(), nn.MSELoss(), [(x, torch.zeros(COUNT, 2))]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found(of, x, torch.zeros(30, 2))


def test_blocks_of_inputs_are_the_same(monkeypatch):
    of, x, _ = network("convolutions")
    count = sum(leaf.numel() for leaf in of._risk.leaves().values())
    vectors = torch.randn(count, 3, dtype=torch.float64)
    whole = found(of, x, vectors)
    for inputs in (1, 4):
        monkeypatch.setattr(jacobian, "INPUTS", inputs)
        for mine, other in zip(found(of, x, vectors), whole, strict=True):
            assert (mine - other).abs().max() <= 1e-13 * other.abs().max()


def test_long_sums_are_in_float64():
    """A float32 sum of millions of terms was wrong by 0.2%. Sums of 2^16 terms are wrong by 2^8 units, if at random."""
    torch.manual_seed(0)
    model = nn.Linear(700_000, 3)
    x = 1 + torch.rand(5, 700_000)
    of = Network(EmpiricalRisk(model, nn.MSELoss(), [(x, torch.zeros(5, 3))]))
    vectors = torch.ones(3 * 700_000 + 3, 2)
    allowed = 2**8 * torch.finfo(torch.float32).eps
    _, gram, seen = found(of, x, vectors)
    squares = x.double().square().sum(1) + 1
    assert (gram.diagonal(dim1=1, dim2=2) / squares[:, None] - 1).abs().max() <= allowed
    assert (seen / (x.double().sum(1) + 1)[:, None, None] - 1).abs().max() <= allowed


def test_wrong_products_of_layers_are_not_used(monkeypatch):
    """What is verified on the first input: a term that is missing."""
    of, x, _ = network("convolutions")
    count = sum(leaf.numel() for leaf in of._risk.leaves().values())
    vectors = torch.randn(count, 3, dtype=torch.float64)
    expected = truth(of, x, vectors)

    def wrong(*given):
        gram, seen = products_of(*given)
        return gram, seen * 1.001

    products_of = jacobian.products_of
    monkeypatch.setattr(jacobian, "products_of", wrong)
    for mine, true in zip(found(of, x, vectors), expected, strict=True):
        assert (mine - true).abs().max() <= 1e-12 * true.abs().max()


def test_covariances_of_many_inputs_are_those_of_few():
    torch.manual_seed(0)
    model = convolutions().eval()
    x = torch.randn(COUNT, 3, 7, 6, dtype=torch.float64)
    model(x.float())
    model = model.double()
    before = copy.deepcopy(model.state_dict())
    y = torch.arange(COUNT) % 3
    posterior = laplace.Laplace(model, nn.CrossEntropyLoss(), [(x, y)], prior_precision=0.5, rank=5)
    whole = posterior.covariance(x)
    for place in range(COUNT):
        one = posterior.covariance(x[place : place + 1])
        assert (whole.values[place] - one.values[0]).abs().max() <= 1e-12 * one.values.abs().max()
        assert float(whole.error[place]) == pytest.approx(float(one.error[0]), rel=1e-10)
        assert (whole.mean[place] - one.mean[0]).abs().max() <= 1e-12
    assert all((model.state_dict()[name] == value).all() for name, value in before.items())
