"""Common losses, layers and wrappers are traced, and their products are those of the model written out in float64."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from cases import MATRICES, seeded
from reference import gauss_newton_of, hessian_of, whole
from sweeps import swept
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import hesspec

SAMPLES = 7
CE = nn.CrossEntropyLoss()


def inputs() -> Tensor:
    return torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(1))


def numbers() -> Tensor:
    return torch.randn(SAMPLES, 2, generator=torch.Generator().manual_seed(2))


def classes() -> Tensor:
    return torch.arange(SAMPLES) % 3


def sequences() -> Tensor:
    return torch.randn(SAMPLES, 3, 4, generator=torch.Generator().manual_seed(1))


def mlp(outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))


def gaussian_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.gaussian_nll_loss(outputs[:, :2], targets, outputs[:, 2:].exp())


class WeightNorm(nn.Module):
    """A layer whose weight is g v / |v|, by PyTorch or written out: its second derivatives are wrong on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = parametrizations.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 3)
        self.written_out = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.written_out:
            return self.head(torch.tanh(self.layer(x)))
        g, v = self.layer.parametrizations.weight.original0, self.layer.parametrizations.weight.original1
        return self.head(torch.tanh(F.linear(x, g * v / v.square().sum(1, keepdim=True).sqrt(), self.layer.bias)))


class RadialBasis(nn.Module):
    """Gaussians of distances to centres, by `cdist` or written out: it has no second derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.centres, self.head = nn.Parameter(torch.randn(5, 4)), nn.Linear(5, 3)
        self.written_out = False

    def forward(self, x: Tensor) -> Tensor:
        apart = (
            (x[:, None] - self.centres).square().sum(-1).sqrt() if self.written_out else torch.cdist(x, self.centres)
        )
        return self.head(torch.exp(-apart / 2))


class Recurrent(nn.Module):
    """A recurrent layer and a classifier of its last state."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = kind(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Checkpointed(nn.Module):
    """A network that recomputes its activations in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.layers, self.reentrant, self.written_out = mlp(), reentrant, False

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if self.written_out else checkpoint(layer, x, use_reentrant=self.reentrant)
        return x


class Experts(nn.Module):
    """The two most likely of three experts, all computed and masked, or gathered for the samples that use them."""

    def __init__(self, gathered: bool) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList(mlp() for _ in range(3))
        self.gathered = gathered

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(1).topk(2, dim=1)
        if not self.gathered:
            spread = torch.zeros(len(x), 3, dtype=x.dtype).scatter(1, chosen, weights)
            return sum(spread[:, i, None] * expert(x) for i, expert in enumerate(self.experts))
        result = x.new_zeros(len(x), 3)
        for i, expert in enumerate(self.experts):
            rows, places = (chosen == i).nonzero(as_tuple=True)
            result = result.index_add(0, rows, expert(x[rows]) * weights[rows, places, None])
        return result


def frozen_normalisations() -> nn.Module:
    model = nn.Sequential(
        nn.Linear(4, 6),
        nn.LayerNorm(6),
        nn.Tanh(),
        nn.Linear(6, 6),
        nn.BatchNorm1d(6),
        nn.GroupNorm(2, 6),
        nn.Linear(6, 3),
    )
    for place in (1, 4, 5):
        model[place].requires_grad_(False)
        nn.init.uniform_(model[place].weight, 0.5, 1.5)
        nn.init.uniform_(model[place].bias, -0.5, 0.5)
    return model


def lora() -> nn.Module:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(mlp(), peft.LoraConfig(r=2, target_modules=["0", "2"]))
    with torch.no_grad():
        for parameter in model.parameters():
            # The second factor is zero at first, which hides half of the derivatives.
            parameter.add_(torch.randn_like(parameter) / 4)
    return model


class Example(NamedTuple):
    build: Callable[[], nn.Module]
    loss: Any = CE
    inputs: Callable[[], Tensor] = inputs
    targets: Callable[[], Tensor] = classes


EXAMPLES = {
    "Huber": Example(lambda: mlp(2), nn.HuberLoss(delta=0.7), targets=numbers),
    "Gaussian NLL": Example(lambda: mlp(4), gaussian_nll, targets=numbers),
    "soft margin": Example(lambda: mlp(2), nn.SoftMarginLoss(), targets=lambda: numbers().sign()),
    "weight norm": Example(WeightNorm),
    "cdist": Example(RadialBasis),
    "LSTM": Example(lambda: Recurrent(nn.LSTM), inputs=sequences),
    "GRU": Example(lambda: Recurrent(nn.GRU), inputs=sequences),
    "checkpointing, reentrant": Example(lambda: Checkpointed(reentrant=True)),
    "checkpointing": Example(lambda: Checkpointed(reentrant=False)),
    "experts by masks": Example(lambda: Experts(gathered=False)),
    "frozen normalisations": Example(frozen_normalisations),
    "LoRA of PEFT": Example(lora),
}


def deviation(example: Example, matrix: str, **options: Any) -> tuple[float, str]:
    """Distance of a matrix in float32 from the truth, relative to the largest of Hess, G and H, and the mode."""
    model, x, y = seeded(example.build).eval(), example.inputs(), example.targets()
    operator = getattr(hesspec, matrix)(model, example.loss, [(x, y)], **options)
    found = whole(operator)
    exact, x = copy.deepcopy(model).double(), x.double()
    exact.written_out = True
    y = y.double() if y.is_floating_point() else y
    hessian = hessian_of(exact, lambda: example.loss(exact(x), y))
    newton = gauss_newton_of(exact, lambda: exact(x), lambda outputs: example.loss(outputs, y))
    truths = {"Hessian": hessian, "GaussNewton": newton, "Residual": hessian - newton}
    scale = max(truth.norm() for truth in truths.values())
    return float((found.double() - truths[matrix]).norm() / scale), operator.attributes["mode"]


@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian"))
@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_common_is_traced_and_right(name, matrix, traced):
    off, mode = deviation(EXAMPLES[name], matrix)
    assert mode == "traced"
    # Rounding of float32, 6e-8, through a few operations.
    assert off < 3e-6


@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian"))
def test_shapes_that_depend_on_values_take_double_backward(matrix, traced):
    off, mode = deviation(Example(lambda: Experts(gathered=True)), matrix)
    assert mode == "double backward"
    assert off < 3e-6
