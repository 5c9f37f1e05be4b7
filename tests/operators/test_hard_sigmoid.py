"""Models with hard sigmoids, which PyTorch cannot differentiate twice, have curvature."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import hesspec
from cases import MATRICES, batches, labels

CE = nn.CrossEntropyLoss()


class Written(nn.Module):
    """relu6(x + 3) / 6, written out."""

    def forward(self, x):
        return F.relu6(x + 3) / 6


def network(activation):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), activation, nn.Linear(7, 6), nn.Hardswish(), nn.Linear(6, 4)).double()


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("inplace", [False, True])
def test_products_are_those_of_its_definition(matrix, traced, inplace, monkeypatch):
    monkeypatch.setattr("hesspec.operators.passes.trace_pays", lambda *_, **__: (traced, "as the test asks"))
    data = [(3 * x, y) for x, y in batches((5,), labels(4))]
    found, expected = (
        getattr(hesspec, matrix)(network(activation), CE, data) for activation in (nn.Hardsigmoid(inplace), Written())
    )
    vector = torch.linspace(-1, 1, found.shape[0], dtype=torch.float64)
    torch.testing.assert_close(found @ vector, expected @ vector, rtol=0, atol=1e-14)
    assert (found @ vector).abs().max() > 1e-3
    assert found.attributes["mode"] == ("traced" if traced else "double backward")


def test_mobilenet_v3():
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v3_small(num_classes=3).eval().double()
    written = copy.deepcopy(model)
    for module in list(written.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Hardsigmoid):
                setattr(module, name, Written())
    data = [(torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 2]))]
    found, expected = (hesspec.Hessian(network, CE, data) for network in (model, written))
    vector = torch.randn(found.shape[0], dtype=torch.float64)
    product = expected @ vector
    torch.testing.assert_close(found @ vector, product, rtol=0, atol=1e-13 * float(product.abs().max()))
