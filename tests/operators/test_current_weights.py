"""Operators that follow a model through training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hesspec

MATRICES = [hesspec.Hessian, hesspec.GaussNewton, hesspec.Residual]


def problem(dtype: torch.dtype) -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4)).to(dtype)
    inputs = torch.randn(12, 1, 6, 6, generator=generator, dtype=dtype)
    return model.eval(), [(inputs[:6], torch.arange(6) % 4), (inputs[6:], torch.arange(6) % 4)]


def trained(model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Take a step in training mode, which changes weights and running statistics."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    nn.functional.cross_entropy(model(data[0][0]), data[0][1]).backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize("mode", ["traced", "double backward", "double backward in place"])
@pytest.mark.parametrize("kind", MATRICES)
def test_products_are_those_of_a_new_operator_and_the_old_one_is_unchanged(kind: type, mode: str) -> None:
    torch.manual_seed(0)
    model, data = problem(torch.float64)
    graphs, loss = hesspec.GraphCache(), nn.CrossEntropyLoss()
    first = kind(model, loss, data, mode=mode, graphs=graphs)
    vector = torch.randn(first.shape[0], dtype=torch.float64)
    before = first @ vector
    trained(model, data)

    second = first.at_current_weights()
    new = kind(model, loss, data, mode=mode, graphs=graphs)

    assert torch.equal(second @ vector, new @ vector)
    assert second.risk == new.risk
    assert second.attributes["mode"] == mode
    assert second.identity() == new.identity()
    assert second.matvecs == 1
    assert torch.equal(first @ vector, before)
    assert not torch.equal(second @ vector, before)


def test_the_spectrum_through_training_is_that_of_new_operators() -> None:
    torch.manual_seed(0)
    model, data = problem(torch.float32)
    operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), data)
    for _ in range(2):
        trained(model, data)
        operator = operator.at_current_weights()
        new = hesspec.Hessian(model, nn.CrossEntropyLoss(), data)
        found, expected = (hesspec.spectrum(each, steps=8, progress=False) for each in (operator, new))
        # Both are single precision products of the same matrix, which may be computed in different modes.
        assert found.norm == pytest.approx(expected.norm, rel=1e-5)


def test_differences_follow_too() -> None:
    torch.manual_seed(0)
    model, data = problem(torch.float64)
    operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), data, mode="differences")
    vector = torch.randn(operator.shape[0], dtype=torch.float64)
    _ = operator @ vector
    trained(model, data)
    exact = hesspec.Hessian(model, nn.CrossEntropyLoss(), data, mode="double backward") @ vector

    found = operator.at_current_weights() @ vector

    assert (found - exact).norm() <= 1e-7 * exact.norm()


def test_other_changes_of_the_model_are_named() -> None:
    model, data = problem(torch.float64)
    operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), data)
    model.train()
    with pytest.raises(ValueError, match="changed in more than the values .*training"):
        operator.at_current_weights()
    model.eval()
    model[4] = nn.Linear(48, 4).double()
    with pytest.raises(ValueError, match=r"'4\.(weight|bias)' is a different tensor"):
        operator.at_current_weights()
