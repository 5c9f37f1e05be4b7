"""The Hessian by central differences, of models that no process group shares; tests/distributed has those that are."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hesspec


def ctc(outputs, targets):
    return F.ctc_loss(outputs.log_softmax(2), targets, (12, 12), (3, 3))


def recognition():
    torch.manual_seed(0)
    inputs, targets = torch.randn(12, 2, 4), torch.randint(1, 5, (2, 3))
    return nn.Linear(4, 5), ctc, [(inputs, targets)], {"terms": lambda _: 2}


def classification():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return model, nn.CrossEntropyLoss(), [(torch.randn(n, 4), torch.arange(n) % 3) for n in (5, 3)], {}


def problem(build, dtype):
    model, loss, data, options = build()
    return model.to(dtype).eval(), loss, [(x.to(dtype), y) for x, y in data], options


def dense(operator):
    return (operator @ torch.eye(operator.shape[0], dtype=operator.dtype)).double()


@pytest.mark.filterwarnings("ignore:Products are computed by central differences")
@pytest.mark.parametrize("build", [classification, recognition])
@pytest.mark.parametrize("params", [None, "*weight"])
def test_products_are_those_of_the_block_of_gradient_differences(build, params):
    model, loss, data, options = problem(build, torch.float64)
    operator = hesspec.CentralDifferenceHessian(model, loss, data, params, **options)
    # The mean over samples, differentiated by hand at a displacement that suits float64.
    named = dict(model.named_parameters())
    sizes = [named[name].numel() for name in operator.names]

    def gradient(flat):
        parts = [part.view_as(named[n]) for part, n in zip(flat.split(sizes), operator.names, strict=True)]
        leaves = [part.detach().requires_grad_() for part in parts]
        called = [torch.func.functional_call(model, dict(zip(operator.names, leaves, strict=True)), x) for x, _ in data]
        count = sum(len(y) for _, y in data)
        total = sum(loss(out, y) * len(y) / count for out, (_, y) in zip(called, data, strict=True))
        return torch.cat([part.reshape(-1) for part in torch.autograd.grad(total, leaves)])

    at, step = torch.cat([named[name].detach().reshape(-1) for name in operator.names]), 1e-5
    identity = torch.eye(len(at), dtype=torch.float64)
    expected = torch.stack([(gradient(at + step * e) - gradient(at - step * e)) / (2 * step) for e in identity])
    # Truncation and rounding of either are near 1e-10.
    torch.testing.assert_close(dense(operator), expected, rtol=0, atol=1e-8)
    assert operator.attributes["mode"] == "differences"
    # As of a sharded model: figures and reports name the matrix, and not how it was computed.
    assert operator.attributes["matrix"] == "Hessian"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounds_of_its_spectrum_hold(dtype):
    model, loss, data, _ = problem(classification, dtype)
    found = hesspec.spectrum(hesspec.CentralDifferenceHessian(model, loss, data), steps=20)
    exact = torch.linalg.eigvalsh(dense(hesspec.Hessian(model.double(), loss, [(x.double(), y) for x, y in data])))
    distances = np.abs(found.eigenvalues[:, None] - exact.numpy()).min(axis=1)
    assert found.eigenvalues.size
    assert (distances <= found.error_bounds).all()


def test_how_products_are_computed_is_not_an_option():
    model, loss, data, _ = classification()
    with pytest.raises(TypeError, match="mode"):
        hesspec.CentralDifferenceHessian(model.eval(), loss, data, mode="traced")
