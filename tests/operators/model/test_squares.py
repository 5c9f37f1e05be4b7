"""Squares of norms and absolute values: the values and derivatives of PyTorch, and second derivatives at zero, too."""

import pytest
import torch
from torch import nn
from torch.func import grad, jvp

import hesspec
from hesspec.operators.engine.graph.quiet import quiet_tracer
from hesspec.operators.model.substitutes import Substitutes

POINT = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def multiplied_by_itself(x):
    return x * x


# Each is the sum of the squares of its argument.
WHOLE = {
    "power": lambda x: x.norm() ** 2,
    "float power": lambda x: torch.norm(x, 2) ** 2.0,
    "method": lambda x: x.norm(p="fro").pow(2),
    "function": lambda x: torch.pow(torch.linalg.norm(x), 2),
    "square": lambda x: torch.linalg.matrix_norm(x).square(),
    "vector": lambda x: torch.square(torch.linalg.vector_norm(x)),
    "product": lambda x: torch.norm(x) * torch.norm(x),
    "one tensor": lambda x: multiplied_by_itself(x.norm()),
    "rows": lambda x: (x.norm(dim=1) ** 2).sum(),
    "last rows": lambda x: (torch.linalg.norm(x, 2, dim=-1) ** 2).sum(),
    "columns": lambda x: (torch.linalg.vector_norm(x, dim=(0,), keepdim=True) ** 2).sum(),
    "both": lambda x: torch.norm(x, dim=(0, 1)) ** 2,
    "absolute": lambda x: (x.abs() ** 2).sum(),
    "absolute, function": lambda x: torch.absolute(x).square().sum(),
    "complex": lambda x: (torch.complex(x, x).abs() ** 2).sum() / 2,
    "distances": lambda x: (torch.cdist(x, torch.zeros(1, 4, dtype=x.dtype)) ** 2).sum(),
    "complex norm": lambda x: torch.linalg.vector_norm(torch.complex(x, x)) ** 2 / 2,
}


@pytest.mark.parametrize("square", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("point", [POINT, torch.zeros_like(POINT), POINT * (POINT > 0)], ids=["far", "zero", "some"])
def test_second_derivatives_of_squares_are_right_at_zero(square, point):
    def substituted(x):
        with Substitutes():
            return square(x)

    assert torch.allclose(substituted(point), (point * point).sum(), rtol=1e-14)
    assert torch.allclose(grad(substituted)(point), 2 * point, rtol=1e-14)
    leaf = point.clone().requires_grad_()
    (slope,) = torch.autograd.grad(substituted(leaf), leaf, create_graph=True)
    for v in torch.eye(12, dtype=torch.float64).view(12, 3, 4):
        # The first use of torch.func warns about its implementation.
        with quiet_tracer():
            ahead = jvp(grad(substituted), (point,), (v,))[1]
        assert torch.allclose(ahead, 2 * v, rtol=1e-14)
        assert torch.allclose(torch.autograd.grad(slope, leaf, v, retain_graph=True)[0], 2 * v, rtol=1e-14)


def changed_norm(x):
    norm = x.norm(dim=0)
    norm.add_(1)
    return norm**2


def changed_argument(x):
    y = x * 1
    norm = y.norm(dim=0)
    y.mul_(2)
    return norm**2


OTHERS = {
    "spectral norm": lambda x: torch.linalg.norm(x, 2) ** 2,
    "spectral norm of dimensions": lambda x: torch.linalg.norm(x, 2, dim=(0, 1)) ** 2,
    "nuclear norm": lambda x: torch.norm(x, "nuc") ** 2,
    "1-norm": lambda x: x.norm(1) ** 2,
    "largest entry": lambda x: torch.linalg.vector_norm(x, float("inf")) ** 2,
    "cubes": lambda x: x.norm() ** 3 + x.abs().pow(3).sum(),
    "products of two norms": lambda x: x.norm(dim=1) * x[:, 1:].norm(dim=1),
    "products over other dimensions": lambda x: x[:3, :3].norm(dim=0) * x[:3, :3].norm(dim=1),
    "dtype": lambda x: torch.linalg.vector_norm(x, dtype=torch.float64) ** 2,
    "exponents": lambda x: torch.pow(x.norm(), torch.tensor(2.0)) + 2 ** x.norm(),
    "products of distances": lambda x: torch.cdist(x, x[:1] + 1) * torch.cdist(x, x[:1] + 2),
    "no tensor": lambda x: x.norm() * 2 + torch.mul(2, x.norm()),
}


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_others_are_left_to_pytorch(function):
    with Substitutes():
        found = function(POINT)
        slope = grad(lambda x: function(x).sum())(POINT)
    assert torch.allclose(found, function(POINT), rtol=1e-14)
    assert torch.allclose(slope, grad(lambda x: function(x).sum())(POINT), rtol=1e-13)


@pytest.mark.parametrize("function", [changed_norm, changed_argument])
def test_tensors_that_were_changed_in_place_are_no_longer_what_they_were(function):
    with Substitutes():
        found = function(POINT)
    assert torch.allclose(found, function(POINT), rtol=1e-14)


def norm_without_gradient(x):
    with torch.no_grad():
        norm = x.norm()
    return norm**2


def square_without_gradient(x):
    norm = x.norm()
    with torch.no_grad():
        return norm**2


def detached_norm(x):
    return x.norm().detach() ** 2


def norm_detached_in_place(x):
    norm = x.norm()
    norm.detach_()
    return norm**2


CONSTANT = [norm_without_gradient, square_without_gradient, detached_norm, norm_detached_in_place]


@pytest.mark.parametrize("constant", CONSTANT)
@pytest.mark.parametrize("mode", ["auto", "traced", "double backward"])
def test_squares_of_constants_are_constants(constant, mode):
    x = POINT.clone().requires_grad_()
    with Substitutes():
        value = constant(x) + x.sum() * 0
    assert not torch.autograd.grad(value, x)[0].any()
    if (mode, constant) == ("traced", norm_detached_in_place):
        # Not traced: forward mode does not follow it.
        return
    torch.manual_seed(0)
    model, data = nn.Linear(4, 3).double(), [(POINT, torch.arange(3))]

    def loss_fn(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) * constant(model.weight)

    factor = float((model.weight * model.weight).detach().sum())
    plain = hesspec.Hessian(model, nn.CrossEntropyLoss(), data, verify=False)
    scaled = hesspec.Hessian(model, loss_fn, data, mode=mode, verify=False)
    v = torch.ones(15, dtype=torch.float64)
    assert torch.allclose(scaled @ v, factor * (plain @ v), rtol=1e-12)


@pytest.mark.parametrize("mode", ["traced", "double backward"])
@pytest.mark.parametrize("square", [lambda w: w.norm() ** 2, lambda w: (w.abs() ** 2).sum()], ids=["norm", "absolute"])
def test_penalties_on_zero_biases_have_curvature_where_units_are_at_their_kinks(mode, square):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    nn.init.zeros_(model[0].bias)
    images = torch.randn(6, 1, 6, 6)
    # Margins of images: units with zero inputs and zero biases.
    images[:, :, :4] = 0
    data = [(images, torch.arange(6) % 3)]
    plain = hesspec.Hessian(model, nn.CrossEntropyLoss(), data, mode=mode)

    def loss_fn(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) + sum(square(weight) for weight in model.parameters())

    penalised = hesspec.Hessian(model, loss_fn, data, mode=mode)
    eye = torch.eye(plain.shape[0])
    # Both are float32 products of norm 2 at least.
    assert torch.allclose(penalised @ eye - plain @ eye, 2 * eye, atol=1e-5)
