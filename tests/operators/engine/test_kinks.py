"""Differences of gradients at parameters where the loss has no second derivative."""

import pytest
import torch
from torch import nn

import hesspec

MATRICES = ("Hessian", "GaussNewton", "Residual")


def rectified(*, samples_at_kinks: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A ReLU network whose biases are zero: units are at their kinks for samples that are zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].bias.zero_()
    inputs, targets = torch.randn(200, 4).double(), torch.arange(200) % 3
    inputs[:samples_at_kinks] = 0
    return model, inputs, targets


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [1, 100])
def test_differences_at_kinks_are_refused(matrix, dtype, samples):
    model, inputs, targets = rectified(samples_at_kinks=samples)
    data = [(inputs.to(dtype), targets)]
    operator = getattr(hesspec, matrix)(model.to(dtype), nn.CrossEntropyLoss(), data, mode="differences")
    with pytest.raises(ValueError, match="differences to both sides are .* units are exactly at their kinks"):
        operator @ torch.ones(operator.shape[0], dtype=dtype)


def test_a_network_away_from_its_kinks_states_no_error_of_them():
    model, inputs, targets = rectified(samples_at_kinks=0)
    operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), [(inputs, targets)], mode="differences")
    assert operator.product_error == 0


class Bent(nn.Module):
    """A linear model with a small term whose first derivatives are continuous where its second ones are not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1).double()
        self.a, self.b = (nn.Parameter(torch.zeros(4, 1).double()) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + 0.02 * torch.relu(x @ self.a) * (x @ self.b)


def test_what_small_kinks_change_is_stated():
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(50, n, dtype=torch.float64, generator=generator) for n in (4, 1))
    torch.manual_seed(0)
    model = Bent()
    operator = hesspec.Hessian(model, nn.MSELoss(), [(inputs, targets)], mode="differences")
    vector = torch.randn(13, dtype=torch.float64, generator=generator)
    # The derivative of ReLU at zero is zero, by PyTorch's convention.
    exact = hesspec.Hessian(model, nn.MSELoss(), [(inputs, targets)], mode="double backward", verify=False) @ vector
    apart = float((operator @ vector - exact).norm() / exact.norm())
    assert 1e-4 < apart <= operator.product_error < 0.4
