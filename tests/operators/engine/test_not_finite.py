"""Where double backward divides zero by zero, and the second derivative exists, differences give it."""

import pytest
import torch
from reference import hessian_of, whole
from torch import nn

import hesspec


class Penalised(nn.Module):
    """A linear model, with a function of its weights added."""

    def __init__(self, function) -> None:
        super().__init__()
        self.w, self._function = nn.Parameter(torch.eye(4, dtype=torch.float64)), function

    def forward(self, x):
        return (x @ self.w).sum(1, keepdim=True) + self._function(self.w)


def data():
    torch.manual_seed(1)
    return [(torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64))]


def power(exponent):
    def function(w):
        return (w - torch.eye(4, dtype=w.dtype)).abs().pow(exponent).sum()

    return function


@pytest.mark.parametrize("matrix", ["Hessian", "Residual"])
def test_functions_of_equal_eigenvalues_have_second_derivatives(matrix):
    """The squared eigenvalues of W W^T add up to its squared entries."""
    model = Penalised(lambda w: torch.linalg.eigvalsh(w @ w.T).square().sum())
    plain = Penalised(lambda w: (w @ w.T).square().sum())
    loss = nn.MSELoss()
    with pytest.warns(UserWarning, match="its product is not finite"):
        operator = getattr(hesspec, matrix)(model, loss, data())
        found = whole(operator)
    assert operator.attributes["mode"] == "differences"
    exact = whole(getattr(hesspec, matrix)(plain, loss, data()))
    assert float((found - exact).norm() / exact.norm()) < 1e-6
    if matrix == "Hessian":
        ((x, y),) = data()
        torch.testing.assert_close(exact, hessian_of(plain, lambda: loss(plain(x), y)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("exponent", [1.25, 1.5])
def test_infinite_second_derivatives_are_told(exponent):
    with (
        pytest.warns(UserWarning, match="its product is not finite"),
        pytest.raises(hesspec.NonFiniteError, match="no second derivative at these parameters"),
    ):
        whole(hesspec.Hessian(Penalised(power(exponent)), nn.MSELoss(), data()))


@pytest.mark.parametrize("way", ["traced", "double backward"])
def test_a_way_that_was_asked_for_is_not_left(way):
    model = Penalised(lambda w: torch.linalg.eigvalsh(w @ w.T).square().sum())
    with pytest.raises(hesspec.NonFiniteError, match="not finite in batch 0, parameter 'w'.*mode='auto'"):
        whole(hesspec.Hessian(model, nn.MSELoss(), data(), mode=way))
