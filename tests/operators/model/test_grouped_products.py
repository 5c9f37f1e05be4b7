"""Mixtures of experts compute with grouped products, which PyTorch has in single precision only: verified in double."""

import pytest
import torch
import torch.nn.functional as F
from cases import MATRICES, seeded
from reference import gauss_newton_of, hessian_of, whole
from torch import nn

import hesspec
from hesspec.operators.model.plain import _grouped_mm

OFFSETS = torch.tensor([3, 3, 8], dtype=torch.int32)


@pytest.mark.parametrize(
    ("a", "b", "offs"),
    [
        ((8, 4), (3, 4, 8), OFFSETS),
        ((4, 8), (8, 4), OFFSETS),
        ((3, 4, 8), (8, 8), OFFSETS),
        ((3, 4, 8), (3, 8, 4), None),
    ],
)
def test_grouped_products_are_those_of_pytorch(a, b, offs):
    torch.manual_seed(0)
    one, other = torch.randn(a), torch.randn(b)
    expected = F.grouped_mm(one, other.transpose(-2, -1).contiguous().transpose(-2, -1), offs=offs)
    torch.testing.assert_close(_grouped_mm(one, other, offs=offs), expected, rtol=1e-5, atol=1e-5)


class Experts(nn.Module):
    """Each sample has one of three experts."""

    def __init__(self, grouped: bool) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(3, 4, 4) / 2), nn.Linear(4, 3)
        self._grouped = grouped

    def forward(self, x):
        expert = (x[:, :2] > 0).sum(1)
        order = expert.argsort(stable=True)
        ends = torch.bincount(expert, minlength=3).cumsum(0).to(torch.int32)
        if self._grouped:
            hidden = F.grouped_mm(x[order], self.weight, offs=ends)[order.argsort()]
        else:
            hidden = torch.einsum("nk,nkl->nl", x, self.weight[expert])
        return self.head(torch.tanh(hidden))


@pytest.mark.parametrize("matrix", MATRICES)
def test_experts_are_verified_in_double_precision(matrix):
    torch.manual_seed(1)
    x, y, loss = torch.randn(12, 4), torch.randint(3, (12,)), nn.CrossEntropyLoss()
    operator = getattr(hesspec, matrix)(seeded(lambda: Experts(True)), loss, [(x, y)])
    found = whole(operator)
    assert "in float64" in operator.attributes["mode_reason"]
    assert operator.product_error == 0
    model, x = seeded(lambda: Experts(False)).double(), x.double()
    hessian = hessian_of(model, lambda: loss(model(x), y))
    newton = gauss_newton_of(model, lambda: model(x), lambda f: loss(f, y))
    exact = {"Hessian": hessian, "GaussNewton": newton, "Residual": hessian - newton}[matrix]
    assert float((found.double() - exact).norm() / exact.norm()) < 1e-5
