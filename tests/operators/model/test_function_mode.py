"""Modes that see calls of PyTorch functions, with arguments that PyTorch does not pass on to them."""

import ast
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import hesspec
from hesspec.operators.model.function_mode import FunctionMode

MODES = ["traced", "double backward", "double backward in place", "differences"]


def lost_by_pytorch():
    """Parameters of functions of `torch.nn.functional` that they do not pass on to `handle_torch_function`."""
    for function in ast.walk(ast.parse(inspect.getsource(F))):
        if not isinstance(function, ast.FunctionDef):
            continue
        names = function.args
        parameters = {item.arg for item in (*names.posonlyargs, *names.args, *names.kwonlyargs)}
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "handle_torch_function":
                passed = [*call.args[2:], *(item.value for item in call.keywords)]
                named = {node.id for value in passed for node in ast.walk(value) if isinstance(node, ast.Name)}
                yield from ((function.name, name) for name in sorted(parameters - named))


def test_no_other_argument_is_lost():
    assert set(lost_by_pytorch()) <= {("l1_loss", "weight")}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["module attribute", "keyword", "position", "inside the model"])
def test_the_weight_of_the_l1_loss_counts(mode, form):
    generator = torch.Generator().manual_seed(0)
    x, y, w = (torch.randn(6, size, generator=generator, dtype=torch.float64) for size in (3, 2, 2))
    weight, direct = w.abs(), F.l1_loss

    class Net(nn.Sequential):
        def forward(self, inputs):
            outputs = super().forward(inputs)
            return outputs, F.l1_loss(outputs, y, weight=weight)

    layers = [nn.Linear(3, 4, dtype=torch.float64), nn.Tanh(), nn.Linear(4, 2, dtype=torch.float64)]
    model = (Net if form == "inside the model" else nn.Sequential)(*layers)
    loss = {
        "module attribute": lambda outputs, targets: F.l1_loss(outputs, targets, weight=weight),
        "keyword": lambda outputs, targets: direct(outputs, targets, weight=weight, reduction="mean"),
        "position": lambda outputs, targets: direct(outputs, targets, None, None, "mean", weight),
        "inside the model": lambda outputs, _: outputs[1],
    }[form]

    def risk(flat):
        parts = torch.split(flat, [p.numel() for p in model.parameters()])
        names = dict(model.named_parameters())
        values = {name: part.view_as(names[name]) for name, part in zip(names, parts, strict=True)}
        return loss(functional_call(model, values, (x,)), y)

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    truth = torch.autograd.functional.hessian(risk, flat)
    operator = hesspec.Hessian(model, loss, [(x, y)], mode=mode)
    v = torch.randn(flat.numel(), generator=generator, dtype=torch.float64)
    assert operator.risk == pytest.approx(float(risk(flat)), rel=1e-12)
    bound = 1e-6 if mode == "differences" else 1e-12
    assert torch.linalg.vector_norm(operator @ v - truth @ v) <= bound * torch.linalg.vector_norm(truth @ v)


def test_other_arguments_are_left_alone():
    class Seen(FunctionMode):
        def call(self, func, args, kwargs):
            seen.append((func, kwargs))
            return func(*args, **kwargs)

    seen, zeros = [], torch.zeros(2)
    with Seen():
        F.l1_loss(zeros, zeros, reduction="sum")
        torch.clone(zeros)
    (loss, given), *_ = seen
    assert loss is F.l1_loss
    assert (given["reduction"], "weight" in given) == ("sum", False)
    assert seen[-1] == (torch.clone, {})
