"""Values that a model or its loss detaches stay constant in differences, as in backward passes."""

import pytest
import torch
import torch.nn.functional as F
from reference import gauss_newton_of, hessian_of, whole
from torch import nn

import hesspec


def detached(x):
    return x * torch.tanh(x).detach()


def without_gradients(x):
    with torch.no_grad():
        scale = x.square().sum(1, keepdim=True).sqrt()
    return x / scale


def data(x):
    return x * torch.tanh(x).data


def as_number(x):
    return x / float(x.detach().abs().max())


def straight_through(x):
    return x + (torch.round(4 * x) / 4 - x).detach()


class Squared(torch.autograd.Function):
    """x^2, with derivatives of all orders; nothing that its forward pass detaches is a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        with torch.no_grad():
            half = x * 0.5
        return torch.from_numpy(x.detach().numpy() * 2) * half

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return 2 * x * slope


# As is usual, and before anybody could watch it.
squared = Squared.apply


def function_and_detached(x):
    return squared(x) * torch.tanh(x).detach()


def detached_around_a_function(x):
    y = squared(x)
    with torch.no_grad():
        scale = squared(x).sum(1, keepdim=True)
    return y / scale + squared(x.detach()) * x


PARTS = [
    detached,
    without_gradients,
    data,
    as_number,
    straight_through,
    function_and_detached,
    detached_around_a_function,
]


class Model(nn.Module):
    def __init__(self, part):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.part, self.second = nn.Linear(4, 3), part, nn.Linear(3, 3)

    def forward(self, x):
        return self.second(self.part(torch.tanh(self.first(x))))


def focal(outputs, targets):
    with torch.no_grad():
        weights = (1 - outputs.softmax(1).gather(1, targets[:, None])[:, 0]).square()
    return (weights * F.cross_entropy(outputs, targets, reduction="none")).mean()


def points():
    torch.manual_seed(1)
    return torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), focal])
@pytest.mark.parametrize("way", ["auto", "differences"])
@pytest.mark.few(8)
def test_what_is_detached_is_constant(part, loss, way):
    model, (x, y) = Model(part).double(), points()
    hessian, g = (make(model, loss, [(x, y)], mode=way) for make in (hesspec.Hessian, hesspec.GaussNewton))
    found, part_of_it = whole(hessian), whole(g)
    assert (hessian.attributes["mode"] == "differences") == (way == "differences")
    rtol = 1e-5 if way == "differences" else 1e-10
    expected = hessian_of(model, lambda: loss(model(x), y))
    assert (found - expected).norm() <= rtol * expected.norm()
    expected = gauss_newton_of(model, lambda: model(x), lambda f: loss(f, y))
    assert (part_of_it - expected).norm() <= rtol * expected.norm()
