"""Warnings name the line of the caller, and none inside hesspec."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hesspec
from hesspec.backend.user_warnings import warn

X, Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
DATA = [(X[:4], Y[:4]), (X[4:], Y[4:])]


class Rounded(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx, x):
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx, g):
        return g


class Model(nn.Module):
    def __init__(self, between=lambda x: x):
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(1, 1)
        self.between = between

    def forward(self, x):
        return self.second(self.between(torch.tanh(self.first(x))))


def coupled(outputs, targets):
    return F.cross_entropy(outputs - outputs.mean(0), targets)


@pytest.mark.parametrize(
    ("matrix", "between", "loss", "message"),
    [
        ("Hessian", None, coupled, "It is unknown how the losses"),
        ("Hessian", None, nn.CrossEntropyLoss(), "do not influence the loss"),
        ("GaussNewton", None, lambda f, y: F.nll_loss(f.log_softmax(1), y), "computed in the model, or is linear"),
        ("Hessian", Rounded.apply, nn.CrossEntropyLoss(), "with the derivatives of the backward passes"),
    ],
)
def test_warnings_name_the_line_of_the_user(matrix, between, loss, message):
    torch.manual_seed(0)
    model = Model(*([] if between is None else [between]))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        operator = getattr(hesspec, matrix)(model, loss, DATA)
        operator @ torch.ones(operator.shape[0])
    assert any(message in str(warning.message) for warning in found)
    assert {warning.filename for warning in found} == {__file__}


def test_a_program_of_hesspec_alone_has_a_line_too():
    """Where all frames are hesspec's, the outermost one is named."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        exec("warn('words')", {"warn": warn, "__name__": "hesspec.cli"})  # noqa: S102
    assert [str(warning.message) for warning in found] == ["words"]


def test_losses_of_a_few_samples_do_not_warn():
    """Such as a standard deviation of one sample, which the user's own batches do not have."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        hesspec.Hessian(nn.Linear(4, 3), lambda f, y: F.cross_entropy(f / f.std(0), y), [(X, Y)])
    assert not found
