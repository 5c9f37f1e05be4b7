"""Models that write into their own parameters in the forward pass: nothing of that is left, or it is told."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import MATRICES, seeded
from reference import gauss_newton_of, hessian_of, whole
from torch import nn

import hesspec
from hesspec.operators.engine import passes

CE = nn.CrossEntropyLoss()


class Writing(nn.Module):
    """Two layers, the weights of the first of which are written into before they are used."""

    def __init__(self, write) -> None:
        super().__init__()
        self.a, self.b, self.called, self._write = nn.Linear(5, 4), nn.Linear(4, 3), False, write

    def forward(self, x):
        self._write(self)
        self.called = True
        return self.b(torch.tanh(self.a(x)))


@torch.no_grad()
def scaled_once(model, factor=1.0):
    """As models do that rescale their weights for inference in the first call."""
    if not model.called:
        model.a.weight.div_(factor)


@torch.no_grad()
def clamped(model, largest=9.0):
    model.a.weight.clamp_(-largest, largest)


def clamped_data(model, largest=9.0):
    model.a.weight.data.clamp_(-largest, largest)


def clamped_storage(model, largest=9.0):
    model.a.weight.data = model.a.weight.data.clamp(-largest, largest)


@torch.no_grad()
def copied(model, factor=1.0):
    model.a.weight.copy_(factor * model.a.weight)


WRITES = [scaled_once, clamped, clamped_data, clamped_storage, copied]
CHANGES = {
    "once": lambda model: scaled_once(model, 2.0),
    "clamped": lambda model: clamped(model, 0.1),
    "clamped, data": lambda model: clamped_data(model, 0.1),
    "clamped, storage": lambda model: clamped_storage(model, 0.1),
    "in each pass": lambda model: copied(model, 0.5),
}


def data():
    torch.manual_seed(1)
    return [(torch.randn(n, 5, dtype=torch.float64), torch.randint(3, (n,))) for n in (6, 4)]


def expected(matrix, model):
    """Of the same layers, without writing."""
    plain = copy.deepcopy(model)
    x, y = (torch.cat(part) for part in zip(*data(), strict=True))

    def outputs():
        return plain.b(torch.tanh(plain.a(x)))

    hessian = hessian_of(plain, lambda: F.cross_entropy(outputs(), y))
    newton = gauss_newton_of(plain, outputs, lambda f: F.cross_entropy(f, y))
    return {"Hessian": hessian, "GaussNewton": newton, "Residual": hessian - newton}[matrix]


def unchanged(model, before):
    assert not model.called
    for name, value in model.state_dict(keep_vars=True).items():
        assert torch.equal(value, before[name])
        assert value.grad is None


@pytest.mark.parametrize("way", ["auto", *passes.WAYS[1:]])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.few(12)
def test_what_is_written_without_changing_anything_has_no_effect(write, matrix, way):
    model = seeded(lambda: Writing(write)).double()
    before = copy.deepcopy(model.state_dict())
    operator = getattr(hesspec, matrix)(model, CE, data(), mode=way)
    found = [whole(operator), whole(operator)]
    assert torch.equal(*found)
    exact = expected(matrix, model)
    assert float((found[0] - exact).norm() / exact.norm()) < (1e-6 if way == "differences" else 1e-12)
    unchanged(model, before)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_told_and_undone(change, frozen):
    model = seeded(lambda: Writing(CHANGES[change])).double()
    model.a.requires_grad_(not frozen)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"changes parameters in place: a\.weight\."):
        whole(hesspec.Hessian(model, CE, data()))
    unchanged(model, before)


@pytest.mark.parametrize("matrix", MATRICES)
def test_what_only_the_first_call_changes_is_measured_after_it(matrix):
    model = seeded(lambda: Writing(CHANGES["once"])).double()
    model(data()[0][0])
    found = whole(getattr(hesspec, matrix)(model, CE, data()))
    torch.testing.assert_close(found, expected(matrix, model), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", passes.WAYS)
def test_rows_of_an_embedding_that_are_renormalised_are_left_alone(way):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4, max_norm=1.0), nn.Flatten(), nn.Linear(8, 3)).double()
    before = copy.deepcopy(model.state_dict())
    pairs = [(torch.randint(6, (7, 2)), torch.randint(3, (7,)))]
    operator = hesspec.Hessian(model, CE, pairs, ["2.*"], mode=way)
    found = whole(operator)
    table = before["0.weight"]
    rows = table * (1 / (table.norm(dim=1, keepdim=True) + 1e-7)).clamp(max=1)
    exact = hessian_of(model[2], lambda: F.cross_entropy(model[2](rows[pairs[0][0]].flatten(1)), pairs[0][1]))
    assert float((found - exact).norm() / exact.norm()) < (1e-6 if way == "differences" else 1e-12)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_graph_that_is_alive_meanwhile_still_has_its_backward_pass():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    inputs, targets = torch.randn(9, 4), torch.arange(9) % 3
    loss = nn.CrossEntropyLoss()
    expected = torch.autograd.grad(loss(model(inputs), targets), list(model.parameters()))
    alive = loss(model(inputs), targets)
    hessian = hesspec.Hessian(model, loss, [(inputs, targets)])
    hessian @ torch.ones(hessian.shape[0])
    alive.backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)
