"""What reverse mode takes for constants are constants of traced products too."""

import pytest
import torch
import torch.nn.functional as F
from cases import MATRICES, Case, batches, dense, labels, seeded
from sweeps import swept
from torch import fx, nn
from torch.func import functionalize, grad, jvp

import hesspec
from hesspec.operators.engine.graph.detached import Detached
from hesspec.operators.engine.graph.quiet import quiet_tracer
from hesspec.operators.engine.graph.recording import record
from hesspec.operators.engine.graph.soundness import UnsoundTraceError


def no_grad(x):
    with torch.no_grad():
        y = torch.sin(x) * x
    return (x * x * y).sum()


@torch.no_grad()
def decorated(x):
    return torch.softmax(x, 0)


def decorator(x):
    return (x * x * decorated(x)).sum()


def set_grad_enabled(x):
    torch.set_grad_enabled(False)
    y = torch.exp(x)
    torch.set_grad_enabled(True)
    return (x * x * y).sum()


def enabled_again(x):
    with torch.no_grad():
        y = torch.sin(x)
        with torch.enable_grad():
            z = x * x * y
    return (z * x).sum()


def data(x):
    return (x * x * x.data).sum()


def what_is_returned_itself(x):
    # contiguous() and to() return x itself, through which gradients flow.
    with torch.no_grad():
        y = x.contiguous().to(x.dtype)
    return (x * x * y).sum()


def view(x):
    with torch.no_grad():
        y = x.view(1, 3)[0]
    return (x * x * y).sum()


def attribute(x):
    y = x[:, None] * x
    with torch.no_grad():
        z = y.T
    return (z * y * x).sum()


def list_of_tensors(x):
    with torch.no_grad():
        y = torch.stack([x, x * x])
    return (x * x * y).sum()


def keyword(x):
    with torch.no_grad():
        y = torch.add(input=x, other=x)
    return (x * x * y).sum()


def written_under_no_grad(x):
    y = x * 1
    with torch.no_grad():
        y.mul_(2)
    return (x * x * y).sum()


def view_written_under_no_grad(x):
    y = x * 1
    with torch.no_grad():
        y[1:] *= 2
    return (x * x * y).sum()


def data_written(x):
    y = x * 1
    y.data.mul_(2)
    return (x * x * y).sum()


def constant_filled(x):
    mask = torch.zeros_like(x)
    with torch.no_grad():
        mask[1:] = x[1:]
        mask.add_(x)
    return (x * x * mask * mask).sum()


def cross_entropy(x):
    with torch.no_grad():
        weight = F.cross_entropy(x[None], torch.tensor([1]))
    return weight * (x * x * x).sum()


FUNCTIONS = [
    no_grad,
    decorator,
    set_grad_enabled,
    enabled_again,
    data,
    what_is_returned_itself,
    view,
    attribute,
    list_of_tensors,
    keyword,
    written_under_no_grad,
    view_written_under_no_grad,
    data_written,
    constant_filled,
    cross_entropy,
]


def traced_derivatives(function, x):
    """Gradient by forward mode and Hessian by forward over reverse mode, as traces have them."""

    def run(x, v):
        with torch.enable_grad(), Detached():
            return jvp(function, (x,), (v,))[1], jvp(grad(function), (x,), (v,))[1]

    with quiet_tracer():
        recorded = record(functionalize(run, remove="mutations"), [x, x + 1])
    graph = fx.GraphModule(recorded.owning_module, recorded)
    columns = [graph(x, unit) for unit in torch.eye(len(x), dtype=x.dtype)]
    return torch.stack([first for first, _ in columns]), torch.stack([second for _, second in columns])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_derivatives_are_those_of_a_backward_pass(function):
    x = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    hessian = torch.stack([torch.autograd.grad(part, leaf, retain_graph=True)[0] for part in gradient])
    found_gradient, found_hessian = traced_derivatives(function, x)
    torch.testing.assert_close(found_gradient, gradient.detach(), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found_hessian, hessian, rtol=1e-14, atol=1e-14)


def detached_in_place(x):
    y = x * 1
    y.detach_()
    return (x * x * y).sum()


def assigned_data(x):
    y = x * 1
    y.data = x + 1
    return (x * x * y).sum()


@pytest.mark.parametrize("function", [detached_in_place, assigned_data])
def test_what_cannot_be_followed_is_refused(function):
    with pytest.raises(UnsoundTraceError, match="which forward mode does not follow"):
        traced_derivatives(function, torch.ones(3))


class Backbone(nn.Module):
    """Features under `no_grad`, of parameters that require gradients, and others that are trained."""

    def __init__(self):
        super().__init__()
        self.features, self.side, self.head = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        with torch.no_grad():
            fixed = torch.tanh(self.features(x))
        return self.head(fixed * torch.tanh(self.side(x)) + torch.tanh(self.features(x)))


def weighted(outputs, targets):
    """Samples that are fitted well count for less, by a weight that is no function of the parameters."""
    with torch.no_grad():
        weights = 1 - outputs.softmax(1).gather(1, targets[:, None])[:, 0]
    return (weights * F.cross_entropy(outputs, targets, reduction="none")).mean()


@pytest.mark.parametrize("within", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian"))
def test_products_of_a_model_and_a_loss_that_switch_gradients_off(matrix, within, mode):
    case = Case(seeded(Backbone), weighted, batches((5,), labels(3), (4,))).to(torch.float64)
    with within():
        operator = getattr(hesspec, matrix)(case.model, case.loss, case.data)
        found = operator @ torch.eye(operator.shape[0], dtype=torch.float64)
    expected = dense(case, operator.names).matrices
    assert operator.attributes["mode"] == mode
    assert (found - expected[matrix]).abs().max() < 1e-13 * max(truth.abs().max() for truth in expected.values())
