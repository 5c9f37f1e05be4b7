"""Gradients that are not those of the loss: the matrix that is meant is taken, or there is a sentence."""

import pytest
import torch
from cases import MATRICES
from reference import gauss_newton_of, hessian_of, whole
from sweeps import swept
from torch import nn

import hesspec
from hesspec.operators.engine import passes

CE = nn.CrossEntropyLoss()
NOT_OF_THE_LOSS = "the gradient is not the derivative of the loss"


class Round(torch.autograd.Function):
    """Straight through."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class Clipped(torch.autograd.Function):
    """Straight through between -1 and 1."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x.abs() <= 1)


class Spike(torch.autograd.Function):
    """A step with the derivative of a sigmoid."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(4 * x)
        return g * 4 * s * (1 - s)


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -g


class Stop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return None


class OneWay(torch.autograd.Function):
    """A step whose backward pass must not be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g / torch.cosh(x) ** 2


def halved(x):
    if x.requires_grad:
        x.register_hook(lambda g: 0.5 * g)
    return x


def rounded(x):
    return Round.apply(4 * x) / 4


def reversed_in_part(x):
    return torch.cat([x[:, :2], Reverse.apply(x[:, 2:])], 1)


def held_in_part(x):
    return x * Stop.apply(torch.tanh(x))


def quantised(x):
    scale, zero = 0.25, 0
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127)


# The same values, whose derivatives are those of the backward passes, by what is constant.
def fixed(value, like):
    """`value`, with the derivatives of `like`."""
    return like + (value - like).detach()


FORMS = {
    "straight through": (rounded, lambda x: fixed((4 * x).round() / 4, x)),
    "clipped": (lambda x: Clipped.apply(2 * x), lambda x: fixed((2 * x).sign(), (2 * x).clamp(-1, 1))),
    "spikes": (Spike.apply, lambda x: fixed((x > 0).to(x.dtype), torch.sigmoid(4 * x))),
    "reversal": (reversed_in_part, lambda x: torch.cat([x[:, :2], fixed(x[:, 2:], -x[:, 2:])], 1)),
    "held constant by a Function": (held_in_part, lambda x: x * torch.tanh(x).detach()),
    "quantisation of PyTorch": (quantised, lambda x: fixed((4 * x).round() / 4, x)),
}


class Model(nn.Module):
    def __init__(self, part):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.part, self.second = nn.Linear(4, 5), part, nn.Linear(5, 3)

    def forward(self, x):
        return self.second(self.part(torch.tanh(self.first(x))))


# The gradient by these is constant between steps.
STEPS = ("straight through", "clipped", "quantisation of PyTorch")


class OfParts(nn.Module):
    """The function is of all weights."""

    def __init__(self, part):
        super().__init__()
        torch.manual_seed(0)
        self.part = part
        self.first = nn.Parameter(0.7 * torch.randn(4, 5))
        self.second = nn.Parameter(0.7 * torch.randn(5, 3))

    def forward(self, x):
        return torch.tanh(x @ self.part(self.first)) @ self.part(self.second)


def points(dtype):
    torch.manual_seed(1)
    return torch.randn(8, 4).to(dtype), torch.arange(8) % 3


def expected(model, matrix, x, y):
    """By plain double backward, of the form with constants."""
    hess = hessian_of(model, lambda: CE(model(x), y))
    if matrix == "Hessian":
        return hess
    g = gauss_newton_of(model, lambda: model(x), lambda f: CE(f, y))
    return g if matrix == "GaussNewton" else hess - g


@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian", "GaussNewton"))
@pytest.mark.parametrize(("make", "name"), [*((Model, name) for name in FORMS), *((OfParts, name) for name in STEPS)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.few(10)
def test_the_matrix_is_that_of_the_same_model_written_with_detach(name, make, matrix, dtype):
    part, with_constants = FORMS[name]
    x, y = points(dtype)
    model = make(part).to(dtype)
    with pytest.warns(UserWarning, match=NOT_OF_THE_LOSS):
        operator = getattr(hesspec, matrix)(model, CE, [(x[:5], y[:5]), (x[5:], y[5:])])
        found = whole(operator)
    exact = expected(make(with_constants).double(), matrix, x.double(), y)
    assert (found - exact).norm() <= (1e-5 if dtype == torch.float32 else 1e-10) * exact.norm()
    assert operator.attributes["mode"] == "double backward"
    assert NOT_OF_THE_LOSS in operator.attributes["mode_reason"]


@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian", "GaussNewton"))
@pytest.mark.parametrize("forced", [False, True])
def test_a_hook_that_changes_gradients_is_refused(matrix, forced, monkeypatch):
    monkeypatch.setattr(passes, "trace_pays", lambda *_, **__: (forced, "forced"))
    x, y = points(torch.float64)
    operator = getattr(hesspec, matrix)(Model(halved).double(), CE, [(x, y)])
    with pytest.raises(ValueError, match="A hook on a tensor changes gradients"):
        whole(operator)


def test_a_hook_that_looks_on_changes_nothing():
    seen = []

    def watched(x):
        if x.requires_grad:
            x.register_hook(lambda g: seen.append(g.norm()))
        return x

    x, y = points(torch.float64)
    model = Model(nn.Identity()).double()
    found = whole(hesspec.Hessian(Model(watched).double(), CE, [(x, y)]))
    exact = hessian_of(model, lambda: CE(model(x), y))
    assert (found - exact).norm() <= 1e-10 * exact.norm()


def test_a_hook_on_a_parameter_that_masks_its_gradient_leaves_the_rest_of_the_matrix():
    x, y = points(torch.float64)
    model = Model(nn.Identity()).double()
    exact = hessian_of(model, lambda: CE(model(x), y))
    mask = (torch.arange(20).view(5, 4) % 3 > 0).double()
    model.first.weight.register_hook(lambda g: g * mask)
    with pytest.warns(UserWarning, match=NOT_OF_THE_LOSS):
        found = whole(hesspec.Hessian(model, CE, [(x, y)]))
    kept = torch.cat([mask.flatten(), torch.ones(len(exact) - 20, dtype=torch.float64)])
    assert (found - kept[:, None] * exact * kept).norm() <= 1e-10 * exact.norm()


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian", "GaussNewton"))
def test_differences_that_are_asked_for_are_refused(name, matrix):
    x, y = points(torch.float64)
    operator = getattr(hesspec, matrix)(Model(FORMS[name][0]).double(), CE, [(x, y)], mode="differences")
    with pytest.raises(
        ValueError, match=f"No product with this matrix can be trusted: not differences: {NOT_OF_THE_LOSS}"
    ):
        whole(operator)


@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton"])
def test_without_any_symmetric_matrix_there_is_a_sentence(matrix):
    x, y = points(torch.float64)
    operator = getattr(hesspec, matrix)(Model(OneWay.apply).double(), CE, [(x, y)])
    with pytest.raises(ValueError, match=r"no matrix of second derivatives: the gradient is not.*u·Mv and v·Mu are"):
        whole(operator)


class Halved(torch.autograd.Function):
    """Loss whose gradient is half of it: that of another function, half of the loss."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g / 2


def test_of_two_symmetric_matrices_one_is_asked_for():
    x, y = points(torch.float64)
    model = Model(nn.Identity()).double()
    hess = hessian_of(model, lambda: CE(model(x), y))
    g = gauss_newton_of(model, lambda: model(x), lambda f: CE(f, y))

    def found(mode):
        return whole(hesspec.Hessian(model, lambda f, t: CE(Halved.apply(f), t), [(x, y)], mode=mode))

    with pytest.raises(ValueError, match="The matrix is ambiguous.*mode='differences'.*mode='double backward'"):
        found("auto")
    assert (found("differences") - hess / 2).norm() <= 1e-6 * hess.norm()
    with pytest.warns(UserWarning, match=NOT_OF_THE_LOSS):
        assert (found("double backward") - (g / 4 + (hess - g) / 2)).norm() <= 1e-10 * hess.norm()


class Inexact(torch.autograd.Function):
    """The hyperbolic tangent of an extension that computes it, and its derivative, with three digits."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - torch.tanh(x.detach()) ** 2) * 1.001


def test_a_gradient_that_is_inexact_has_its_own_derivative():
    x, y = points(torch.float64)
    model = OfParts(torch.tanh).double()
    exact = hessian_of(model, lambda: CE(model(x), y))
    with pytest.warns(UserWarning, match="central differences of gradients"):
        found = whole(hesspec.Hessian(OfParts(Inexact.apply).double(), CE, [(x, y)]))
    # It is that by which gradients change, of which double backward lacks a part.
    assert (found - exact).norm() <= 3e-3 * exact.norm()


class Adjoint(torch.autograd.Function):
    """z = tanh(w x + b), with a gradient that large steps of an adjoint method make inexact, and without a graph."""

    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w, b)
        return torch.tanh(x @ w.T + b)

    @staticmethod
    def backward(ctx, g):
        x, w, b = ctx.saved_tensors
        with torch.no_grad():
            z = torch.tanh(x @ w.T + b)
            inner = g * (1 - z**2) * (1 + 0.3 * torch.sin(3 * z.sum(1, keepdim=True)))
            return inner @ w, inner.T @ x, inner.sum(0)


@pytest.mark.parametrize("matrix", MATRICES)
def test_double_backward_that_has_no_graph_is_not_taken(matrix):
    """It is zero, and zero is symmetric."""

    class Whole(nn.Linear):
        def forward(self, x):
            return 2 * Adjoint.apply(x, self.weight, self.bias)

    x, y = points(torch.float64)
    torch.manual_seed(0)
    operator = getattr(hesspec, matrix)(Whole(x.shape[1], 3).double(), CE, [(x, y)])
    with pytest.raises(ValueError, match=r"(?i)the gradient is not the derivative of the loss.*adjoint method"):
        whole(operator)


def test_double_backward_that_is_not_finite_is_not_taken():
    """At a root of zero, where the gradient of PyTorch is zero and its derivative NaN."""
    x, y = points(torch.float64)
    model = Model(nn.Identity()).double()
    operator = hesspec.Hessian(model, lambda f, _: (f - f.detach()).norm(dim=1).mean(), [(x, y)])
    with (
        pytest.raises(ValueError, match="not differences: differences change by"),
        pytest.warns(UserWarning, match="central differences of gradients"),
    ):
        whole(operator)


class Cast(nn.Module):
    """A part in float32, as normalisations and losses of language models are in a model of any precision."""

    def forward(self, x):
        return x.float() * torch.rsqrt(x.float().pow(2).mean(1, keepdim=True) + 1e-6)


@pytest.mark.parametrize("matrix", MATRICES)
def test_casts_to_float32_are_not_taken_for_surrogates_while_a_graph_is_alive(matrix):
    """Differences of losses in float32 are zero over small displacements, as those of rounded weights are."""
    x, y = points(torch.float64)
    model = Model(nn.Identity()).double()
    cast = nn.Sequential(model, Cast())
    alive = CE(cast(x), y)
    found = whole(getattr(hesspec, matrix)(cast, CE, [(x, y)]))

    def outputs():
        f = model(x)
        return f * torch.rsqrt(f.pow(2).mean(1, keepdim=True) + 1e-6)

    hess = hessian_of(model, lambda: CE(outputs(), y))
    g = gauss_newton_of(model, outputs, lambda f: CE(f, y))
    exact = {"Hessian": hess, "GaussNewton": g, "Residual": hess - g}[matrix]
    assert (found - exact).norm() <= 1e-5 * hess.norm()
    alive.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
