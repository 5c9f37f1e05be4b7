"""Networks whose softmax is saturated: losses that are small differences of large logits, curvatures that underflow."""

import pytest
import torch
from torch import nn

import hesspec

MATRICES = ("Hessian", "GaussNewton", "Residual")


def saturated(dtype: torch.dtype, *, right: bool) -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Logits of some hundreds, all of them right or all of them wrong, with a last batch of one sample."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs = torch.randn(5, 4).double()
    with torch.no_grad():
        logits = model(inputs)
        gaps = logits.topk(2).values
        model[2].weight.mul_(300 / float((gaps[:, 0] - gaps[:, 1]).min()))
        model[2].bias.mul_(300 / float((gaps[:, 0] - gaps[:, 1]).min()))
        targets = model(inputs).argmax(1) if right else model(inputs).argmin(1)
    inputs = inputs.to(dtype)
    return model.to(dtype), [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("mode", ["traced", "double backward", "double backward in place"])
def test_products_in_float32_are_right_to_the_smallest_number(matrix, right, mode):
    model, data = saturated(torch.float32, right=right)
    found = getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), data, mode=mode) @ torch.eye(51)
    wide, exact_data = saturated(torch.float64, right=right)
    exact = (
        getattr(hesspec, matrix)(wide, nn.CrossEntropyLoss(), exact_data, mode="double backward")
        @ torch.eye(51).double()
    )
    tiny = torch.finfo(torch.float32).tiny / torch.finfo(torch.float32).eps
    assert float((found.double() - exact).norm()) <= 1e-5 * float(exact.norm()) + tiny


@pytest.mark.parametrize("matrix", MATRICES)
def test_products_in_float64_are_right(matrix):
    model, data = saturated(torch.float64, right=True)
    products = [
        getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), data, mode=mode) @ torch.eye(51).double()
        for mode in ("traced", "double backward")
    ]
    # Far below the rounding of the logits, and far above the smallest number.
    assert 1e-200 < float(products[0].norm()) < 1e-100
    assert float((products[0] - products[1]).norm()) <= 1e-9 * float(products[1].norm())
