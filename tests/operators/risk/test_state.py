"""Models and losses that are another function in each pass are refused in every mode, and what differs is named."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import MATRICES, seeded
from torch import nn

import hesspec
from hesspec.operators.engine import passes

CE = nn.CrossEntropyLoss()


def data():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 5, generator=generator, dtype=torch.float64), torch.randint(3, (n,), generator=generator))
        for n in (6, 4)
    ]


class Model(nn.Module):
    """A linear model whose outputs are scaled by what a function of it and of its input says."""

    def __init__(self, scale) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(5, 3), scale
        self.count, self.cache, self.table = 0, None, {}
        self.generator = np.random.default_rng(0)
        self.register_buffer("running", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        return self.linear(x) * self.scale(self, x)


def counted(model, _):
    model.count += 1
    return 1 + 0.1 * model.count


def counted_in_a_dict(model, _):
    model.table["count"] = model.table.get("count", 0) + 1
    return 1 + 0.1 * model.table["count"]


OUTSIDE = {"count": 0}


def counted_outside(_model, _):
    OUTSIDE["count"] += 1
    return 1 + 0.1 * OUTSIDE["count"]


DIFFERENT = {
    "NumPy's global generator": lambda _model, _: 1 + np.random.standard_normal(),  # noqa: NPY002
    "a generator of NumPy": lambda model, _: 1 + model.generator.standard_normal(),
    "Python's generator": lambda _model, _: 1 + random.random(),  # noqa: S311
    "PyTorch's generator": lambda _model, x: 1 + torch.rand((), dtype=x.dtype),
    "a count": counted,
    "a count in a dict": counted_in_a_dict,
    "a count outside of the model": counted_outside,
}
NAMED = {"a count": "Model.count", "a count in a dict": "Model.table"}


@pytest.mark.parametrize("way", ["auto", *passes.WAYS])
@pytest.mark.parametrize("kind", DIFFERENT)
def test_a_model_that_differs_from_pass_to_pass_is_refused(kind, way):
    model = seeded(lambda: Model(DIFFERENT[kind]).double())
    with pytest.raises(ValueError, match=f"two passes over the same samples differ.*{NAMED.get(kind, '')}"):
        hesspec.spectrum(hesspec.Hessian(model, CE, data(), mode=way), steps=8)


GENERATOR = np.random.default_rng(0)
LOSSES = {
    "NumPy's global generator": lambda: 1 + np.random.standard_normal(),  # noqa: NPY002
    "a generator of NumPy": lambda: 1 + GENERATOR.standard_normal(),
    "Python's generator": lambda: 1 + random.random(),  # noqa: S311
    "a count": lambda: counted_outside(None, None),
}


@pytest.mark.parametrize(
    ("matrix", "way"),
    [("Hessian", "auto"), *(("Hessian", way) for way in passes.WAYS), *((m, "auto") for m in MATRICES[1:])],
)
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.filterwarnings("ignore:.*mean over:UserWarning")
def test_a_loss_that_differs_from_pass_to_pass_is_refused(kind, way, matrix):
    def loss(outputs, targets):
        return LOSSES[kind]() * F.cross_entropy(outputs, targets)

    model = seeded(lambda: nn.Linear(5, 3).double())
    with pytest.raises(ValueError, match="The loss draws random numbers, or depends on something that changes"):
        hesspec.spectrum(getattr(hesspec, matrix)(model, loss, data(), mode=way), steps=8)


def running(model, x):
    """As normalisation does that never stops to learn."""
    model.running = 0.9 * model.running + 0.1 * x.mean().detach()
    return 1 + model.running


def running_in_place(model, x):
    model.running.mul_(0.9).add_(x.mean().detach(), alpha=0.1)
    return 1 + model.running


def cached(model, x):
    if model.cache is None:
        model.cache = 1 + x.mean().detach()
    return model.cache


# PyTorch warns of its own first use of TorchScript, in the derivatives of the reference.
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("way", ["auto", *passes.WAYS])
@pytest.mark.parametrize("scale", [running, running_in_place, cached], ids=lambda one: one.__name__)
def test_a_model_that_keeps_something_of_its_inputs_is_one_matrix_or_refused(scale, way):
    """One matrix is that of one state: as at the making, in each batch; or after the first batch, in all of them."""
    model, batches = seeded(lambda: Model(scale).double()), data()
    try:
        operator = hesspec.Hessian(model, CE, batches, mode=way)
        found = operator @ torch.eye(operator.shape[0], dtype=torch.float64)
    except ValueError as error:
        assert "two passes over the same samples differ" in str(error)  # noqa: PT017 - it may be one matrix as well
        return
    assert model.cache is None
    assert float(model.running) == 0

    def exact(scales):
        weights = [len(y) / sum(len(other) for _, other in batches) for _, y in batches]
        parts = []
        for (x, y), factor in zip(batches, scales, strict=True):

            def mean(theta, x=x, y=y, factor=factor):
                return F.cross_entropy((x @ theta[:15].view(3, 5).T + theta[15:]) * factor, y)

            theta = torch.cat([model.linear.weight.reshape(-1), model.linear.bias]).detach()
            parts.append(torch.func.hessian(mean)(theta))
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))

    means = [float(x.mean()) for x, _ in batches]
    if scale is cached:
        allowed = [[1 + mean for mean in means], [1 + means[0]] * 2]
    else:
        allowed = [[1 + 0.1 * mean for mean in means]]
    assert any(torch.allclose(found, exact(scales), atol=1e-6 if way == "differences" else 1e-10) for scales in allowed)
