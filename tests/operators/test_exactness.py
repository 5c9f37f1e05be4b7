"""Every matrix on every case, entry by entry, against the dense matrix of plain autograd."""

import contextlib
import functools
import warnings

import pytest
import torch
from cases import CASES, MATRICES, Case, Dense, dense
from reference import gauss_newton_of, whole
from sweeps import swept
from torch import nn

import hesspec
from hesspec.operators.engine import passes


@functools.cache
def reference(name: str) -> Dense:
    case = CASES[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = hesspec.Hessian(case.model, case.loss, case.data, **case.options).names
    return dense(case, names)


def largest_entry(name: str) -> torch.Tensor:
    """Scale of rounding: entries are sums of cancelling terms, and G = -H at most where Hess is small."""
    return max(matrix.abs().max() for matrix in reference(name).matrices.values())


def columns(case: Case, matrix: str) -> tuple[torch.Tensor, object]:
    operator = getattr(hesspec, matrix)(case.model, case.loss, case.data, **case.options)
    expected = pytest.warns(UserWarning, match=case.warning) if case.warning else contextlib.nullcontext()
    with expected:
        result = operator @ torch.eye(operator.shape[0], dtype=operator.dtype)
    return result, operator


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", swept(["traced", "double backward"], "traced"), indirect=True)
def test_float64_entries_agree_to_1e10(name, matrix, mode):
    result, operator = columns(CASES[name]().to(torch.float64), matrix)
    truth = reference(name).matrices[matrix]
    assert operator.attributes["mode"] == mode
    assert ((result - truth).abs() <= 1e-10 * truth.abs() + 1e-14 * largest_entry(name)).all()
    assert operator.risk == pytest.approx(reference(name).value, rel=1e-12)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("name", swept(CASES, "class weights and smoothing"))
def test_float32_entries_agree_to_1e5_of_the_largest(name, matrix, traced):
    result, operator = columns(CASES[name]().to(torch.float32), matrix)
    truth = reference(name).matrices[matrix]
    assert result.dtype == torch.float32
    assert ((result - truth).abs() <= 1e-5 * largest_entry(name)).all()


@pytest.mark.parametrize("matrix", MATRICES)
def test_double_backward_takes_the_place_of_a_trace_that_fails(matrix, traced, monkeypatch):
    def untraceable(*_):
        raise RuntimeError("no forward-mode rule")

    monkeypatch.setattr(passes, "trace_linear", untraceable)
    result, operator = columns(CASES["cnn"]().to(torch.float64), matrix)
    truth = reference("cnn").matrices[matrix]
    assert operator.attributes["mode"] == "double backward"
    assert "no forward-mode rule" in operator.attributes["mode_reason"]
    assert ((result - truth).abs() <= 1e-10 * truth.abs() + 1e-14 * largest_entry("cnn")).all()


class Cumulative(nn.Module):
    """A network with logarithms of sums, whose gradient takes logarithms of the incoming one."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.body(x).logcumsumexp(1))


def test_gauss_newton_products_exist_where_a_rule_has_no_derivative_at_a_zero_gradient(double_backward):
    torch.manual_seed(0)
    model, x, y = Cumulative().double(), torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    loss = nn.CrossEntropyLoss()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator = hesspec.GaussNewton(model, loss, [(x, y)])
    expected = gauss_newton_of(model, lambda: model(x), lambda out: loss(out, y))
    torch.testing.assert_close(whole(operator), expected, rtol=1e-9, atol=1e-11)
    assert operator.attributes["mode"] == "double backward"
