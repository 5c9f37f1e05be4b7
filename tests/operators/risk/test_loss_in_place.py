"""Losses that change the model's outputs in place are those that change copies of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hesspec
from hesspec.operators.engine import passes
from hesspec.operators.risk.empirical_risk import EmpiricalRisk


class TwoOutputs(nn.Module):
    """Features and logits, as a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Linear(6, 3)

    def forward(self, x):
        z = self.body(x)
        return {"z": z, "logits": self.head(z)}


class Overlapping(nn.Module):
    """Three numbers, and the first two of them again, in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        out = self.linear(x)
        return out[:, :2], out


def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 4, generator=generator).double(), torch.randint(3, (n,), generator=generator)) for n in (6, 3)
    ]


def dense(matrix, model, loss, **options):
    operator = getattr(hesspec, matrix)(model, loss, batches(), **options)
    return operator @ torch.eye(operator.shape[0], dtype=torch.float64)


def model(kind=TwoOutputs):
    torch.manual_seed(0)
    return kind().double()


def temperature(o, y):
    logits = o["logits"]
    logits /= 2.0
    return F.cross_entropy(logits, y)


def masked(o, y):
    o["logits"][:, 0] = -1e4
    return F.cross_entropy(o["logits"], y.clamp(min=1))


def masked_copy(o, y):
    logits = torch.cat([torch.full_like(o["logits"][:, :1], -1e4), o["logits"][:, 1:]], 1)
    return F.cross_entropy(logits, y.clamp(min=1))


def popped(o, y):
    return F.cross_entropy(o.pop("logits"), y) + o.pop("z").square().mean()


def margin(o, y):
    o["logits"][torch.arange(len(y)), y] -= 0.35
    return F.cross_entropy(8 * o["logits"], y)


def through_a_view(o, y):
    o["logits"].view(-1).mul_(3.0)
    return F.cross_entropy(o["logits"], y) + o["z"].square().mean()


LOSSES = {
    "temperature": (temperature, lambda o, y: F.cross_entropy(o["logits"] / 2, y)),
    "clamp": (
        lambda o, y: F.cross_entropy(o["logits"].clamp_(-0.3, 0.3), y),
        lambda o, y: F.cross_entropy(o["logits"].clamp(-0.3, 0.3), y),
    ),
    "mask": (masked, masked_copy),
    "margin": (margin, lambda o, y: F.cross_entropy(8 * (o["logits"] - 0.35 * F.one_hot(y, 3).double()), y)),
    "pop": (popped, lambda o, y: F.cross_entropy(o["logits"], y) + o["z"].square().mean()),
    "view": (through_a_view, lambda o, y: F.cross_entropy(3 * o["logits"], y) + o["z"].square().mean()),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton", "Residual"])
def test_products_are_those_of_a_loss_of_copies(name, matrix):
    loss, of_copies = LOSSES[name]
    found = dense(matrix, model(), loss)
    exact = dense(matrix, model(), of_copies, mode="double backward")
    assert exact.any()
    assert torch.allclose(found, exact, atol=1e-12)


@pytest.mark.parametrize("mode", passes.WAYS)
def test_in_every_mode(mode):
    loss, of_copies = LOSSES["temperature"]
    exact = dense("GaussNewton", model(), of_copies, mode="double backward")
    assert torch.allclose(dense("GaussNewton", model(), loss, mode=mode), exact, atol=1e-7)


def test_batches_may_be_split():
    """The parts of a batch, whose losses are compared with that of the whole, have outputs that were not changed."""
    loss, _ = LOSSES["temperature"]
    assert EmpiricalRisk(model(), loss, batches()).batches.indivisible == ""


def test_changes_of_shared_memory_are_refused():
    def loss(outputs, y):
        first, every = outputs
        first.mul_(3.0)
        return F.cross_entropy(every, y)

    with pytest.raises(ValueError, match=r"Batch 0: the loss changes outputs .* share memory .* outputs\.clone\(\)"):
        dense("Hessian", model(Overlapping), loss)
