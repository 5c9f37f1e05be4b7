"""Models that use transforms of `torch.func` in their forward pass."""

import pytest
import torch
from cases import MATRICES
from reference import gauss_newton_of, hessian_of, whole
from sweeps import swept
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import hesspec


def by_backward(u, x):
    return vmap(jacrev(u))(x).sum(-1) - vmap(hessian(u))(x).diagonal(dim1=-1, dim2=-2).sum(-1)


def by_gradient(u, x):
    return vmap(grad(lambda point: u(point).sum()))(x)


def by_forward(u, x):
    return vmap(jacfwd(u))(x).flatten(1)


def along(u, x):
    return jvp(vmap(u), (x,), (torch.ones_like(x),))[1]


# PyTorch compiles some rules of vmap with what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")


class Field(nn.Module):
    def __init__(self, transform):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.transform = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1, bias=False)), transform

    def forward(self, x):
        return self.transform(self.net, x)


@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian"))
@pytest.mark.parametrize("transform", swept([by_backward, by_gradient, by_forward, along], by_gradient, along))
def test_matrices_are_those_of_plain_double_backward(transform, matrix):
    model = Field(transform).double()
    torch.manual_seed(1)
    batches = [torch.randn(n, 2, dtype=torch.float64) for n in (6, 6)]
    x = torch.cat(batches)
    targets = [model(x).detach() * 0 + torch.sin(x.sum(1)).reshape(-1, *[1] * (model(x).dim() - 1)) for x in batches]
    loss, y = nn.MSELoss(), torch.cat(targets)
    hess = hessian_of(model, lambda: loss(model(x), y))
    g = gauss_newton_of(model, lambda: model(x), lambda f: loss(f, y))
    exact = {"Hessian": hess, "GaussNewton": g, "Residual": hess - g}[matrix]
    operator = getattr(hesspec, matrix)(model, loss, list(zip(batches, targets, strict=True)))
    found = whole(operator)
    assert operator.attributes["mode"] != "differences"
    assert (found - exact).norm() <= 1e-9 * hess.norm()
    # Differences keep nothing of such a graph, and need to know what one takes.
    operator = getattr(hesspec, matrix)(model, loss, list(zip(batches, targets, strict=True)), mode="differences")
    assert (whole(operator) - exact).norm() <= 1e-5 * hess.norm()


class Adapted(nn.Module):
    """A step of gradient descent in the forward pass, on samples of its own."""

    def __init__(self, differentiate):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.differentiate = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), differentiate

    def forward(self, x, known, values):
        named = dict(self.net.named_parameters())
        slopes = self.differentiate(
            lambda at: nn.functional.mse_loss(functional_call(self.net, at, known), values), named
        )
        return functional_call(self.net, {name: named[name] - 0.5 * slopes[name] for name in named}, x)


def with_gradients(loss, named):
    with torch.enable_grad():
        slopes = torch.autograd.grad(loss(named), list(named.values()), create_graph=True)
    return dict(zip(named, slopes, strict=True))


def as_it_is(loss, named):
    slopes = torch.autograd.grad(loss(named), list(named.values()), create_graph=True)
    return dict(zip(named, slopes, strict=True))


def by_transform(loss, named):
    return grad(loss)(named)


@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian"))
@pytest.mark.parametrize("differentiate", [with_gradients, as_it_is, by_transform])
def test_a_model_may_differentiate_by_its_parameters(differentiate, matrix):
    model = Adapted(differentiate).double()
    torch.manual_seed(1)
    known, values = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    batches = [(torch.randn(n, 2, dtype=torch.float64), torch.randn(n, 1, dtype=torch.float64)) for n in (6, 6)]
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    loss = nn.MSELoss()
    hess = hessian_of(model, lambda: loss(model(x, known, values), y))
    g = gauss_newton_of(model, lambda: model(x, known, values), lambda f: loss(f, y))
    exact = {"Hessian": hess, "GaussNewton": g, "Residual": hess - g}[matrix]
    operator = getattr(hesspec, matrix)(model, loss, [((a, known, values), b) for a, b in batches])
    assert (whole(operator) - exact).norm() <= 1e-9 * hess.norm()
