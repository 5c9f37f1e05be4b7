"""Traces are shared by operators of one model at several checkpoints, and by nothing else."""

import pytest
import torch
from torch import nn

import hesspec
from hesspec.operators.engine import passes


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    monkeypatch.setattr(passes, "trace_pays", lambda *_, **__: (True, "forced"))


@pytest.fixture
def made(monkeypatch):
    """Traces that were made, one entry each."""
    found = []
    trace_linear = passes.trace_linear
    monkeypatch.setattr(passes, "trace_linear", lambda *arguments: found.append(1) or trace_linear(*arguments))
    return found


def problem(dtype=torch.float64, width=5):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 3)).to(dtype).eval()
    data = [(torch.randn(6, 4, dtype=dtype), torch.randint(3, (6,))) for _ in range(2)]
    return model, data


def change(model):
    with torch.no_grad():
        for tensor in (*model.parameters(), model[1].running_mean):
            tensor.add_(torch.rand_like(tensor))


@pytest.mark.parametrize("matrix", [hesspec.Hessian, hesspec.GaussNewton, hesspec.Residual, hesspec.GaussNewtonWithin])
@pytest.mark.few(2)
def test_a_second_checkpoint_takes_no_trace_and_gives_the_same_product(matrix, made):
    (model, data), loss, graphs = problem(), nn.CrossEntropyLoss(), hesspec.GraphCache(points=2)
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    first = matrix(model, loss, data, graphs=graphs)
    before = first @ v
    change(model)
    count = len(made)
    second = matrix(model, loss, data, graphs=graphs) @ v
    assert len(made) == count > 0

    assert torch.equal(second, matrix(model, loss, data) @ v)
    assert not torch.allclose(second, before)
    # The first operator is at the weights that the model had.
    assert torch.equal(first @ v, before)


def test_other_matrices_models_losses_and_parameters_have_traces_of_their_own(made):
    (model, data), loss, graphs = problem(), nn.CrossEntropyLoss(), hesspec.GraphCache()
    other_model, _ = problem(width=5)
    operators = [
        hesspec.Hessian(model, loss, data, graphs=graphs),
        hesspec.GaussNewton(model, loss, data, graphs=graphs),
        hesspec.GaussNewton(model, loss, data, graphs=graphs, output_curvature="true-vs-rest"),
        hesspec.Hessian(other_model, loss, data, graphs=graphs),
        hesspec.Hessian(model, nn.CrossEntropyLoss(label_smoothing=0.1), data, graphs=graphs),
        hesspec.Hessian(model, loss, data, ["0.*"], graphs=graphs),
    ]
    alone = [
        hesspec.Hessian(model, loss, data),
        hesspec.GaussNewton(model, loss, data),
        hesspec.GaussNewton(model, loss, data, output_curvature="true-vs-rest"),
        hesspec.Hessian(other_model, loss, data),
        hesspec.Hessian(model, nn.CrossEntropyLoss(label_smoothing=0.1), data),
        hesspec.Hessian(model, loss, data, ["0.*"]),
    ]
    for shared, own in zip(operators, alone, strict=True):
        v = torch.randn(shared.shape[0], dtype=torch.float64)
        assert torch.equal(shared @ v, own @ v)
    assert len(made) == 2 * len(operators)


def test_points_decide_whether_a_trace_pays(monkeypatch):
    asked = []
    monkeypatch.setattr(passes, "trace_pays", lambda *_, **how: asked.append(how["points"]) or (False, ""))
    model, data = problem()
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    _ = hesspec.Hessian(model, nn.CrossEntropyLoss(), data, graphs=hesspec.GraphCache(points=7)) @ v

    assert asked == [7]


@pytest.mark.parametrize("points", [0, -1, 1.5])
def test_points_are_a_positive_number(points):
    with pytest.raises(ValueError, match=f"points is {points}"):
        hesspec.GraphCache(points=points)
