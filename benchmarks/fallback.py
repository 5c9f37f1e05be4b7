"""Products by double backward beside those with a graph that is retained by hand, which is what they come to.

    python benchmarks/fallback.py [--quick]

One process, one thread, float32; networks whose products take a fraction of a millisecond to some hundred, as they are
initialised, all samples in one batch. Both multiply in turn, many times a turn where a product is short; times are
medians of all turns, and ratios are medians of the turns' ratios. `--quick` has few turns.

Prints a table: how many times as fast as the retained graph hesspec is.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torchvision
from rich.table import Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import hesspec
from _tables import console
from _turns import in_turn

CE = nn.CrossEntropyLoss()
# Turns: at least so many, and as many as fit into so many seconds.
TURNS, SECONDS = 15, 2.0
MEDIAN, LEAST = 0.95, 0.8

Multiply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Network:
    """A model, and shapes of its inputs; `classes` of its logits."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int = 10


class Recurrent(nn.Module):
    """The last state of a recurrent network, (N, T, d) to logits."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.body, self.head = kind(16, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(x)[0][:, -1])


def mlp(depth: int, width: int) -> Callable[[], nn.Module]:
    """Layers of one width with tanh between."""
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.Tanh())]
    return lambda: nn.Sequential(*layers, nn.Linear(width, 10))


def cnn(channels: int) -> Callable[[], nn.Module]:
    """Two convolutions on digits of 8x8, with batch norm."""
    return lambda: nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * channels, 10),
    )


def encoder() -> nn.Module:
    """A transformer encoder of two layers."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(32 * 12, 10))


NETWORKS = {
    "logistic regression, 16": Network(lambda: nn.Linear(16, 10), (20, 16)),
    "MLP, 2 x 16": Network(mlp(2, 16), (20, 16)),
    "MLP, 8 x 16": Network(mlp(8, 16), (20, 16)),
    "MLP, 3 x 256": Network(mlp(3, 256), (128, 256)),
    "CNN, 4 channels": Network(cnn(4), (16, 1, 8, 8)),
    "CNN, 32 channels": Network(cnn(32), (256, 1, 8, 8)),
    "RNN, 8 steps": Network(lambda: Recurrent(nn.RNN), (8, 8, 16)),
    "LSTM, 8 steps": Network(lambda: Recurrent(nn.LSTM), (8, 8, 16)),
    "transformer encoder, 2 layers": Network(encoder, (16, 12, 32)),
    "ResNet18, 32x32": Network(lambda: torchvision.models.resnet18(num_classes=10), (8, 3, 32, 32)),
    "MobileNetV2, 32x32": Network(lambda: torchvision.models.mobilenet_v2(num_classes=10), (8, 3, 32, 32)),
}


def split(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Views of a flat vector, shaped as the parameters are."""
    sizes = [parameter.numel() for parameter in parameters]
    return [part.view_as(parameter) for part, parameter in zip(vector.split(sizes), parameters, strict=True)]


def hessian(model: nn.Module, inputs: Tensor, targets: Tensor) -> Multiply:
    """By hand: the gradient's graph is kept, and every product is the gradient of its inner product with v."""
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(CE(model(inputs), targets), parameters, create_graph=True)

    def multiply(vector: Tensor) -> Tensor:
        parts = torch.autograd.grad(gradient, parameters, split(vector, parameters), retain_graph=True)
        return torch.cat([part.reshape(-1) for part in parts])

    return multiply


def gauss_newton(model: nn.Module, inputs: Tensor, targets: Tensor) -> Multiply:
    """By hand: J v by the derivative of J^T u, the loss's second derivative from a kept graph, J^T of that."""
    parameters = list(model.parameters())
    outputs = model(inputs)
    u = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(outputs, parameters, u, create_graph=True)
    at = outputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(CE(at, targets), at, create_graph=True)

    def multiply(vector: Tensor) -> Tensor:
        (pushed,) = torch.autograd.grad(pulled, u, split(vector, parameters), retain_graph=True)
        (curved,) = torch.autograd.grad(slope, at, pushed, retain_graph=True)
        parts = torch.autograd.grad(outputs, parameters, curved, retain_graph=True)
        return torch.cat([part.reshape(-1) for part in parts])

    return multiply


BY_HAND = {"Hessian": hessian, "GaussNewton": gauss_newton}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few turns")
    least, seconds = (3, 0.0) if parser.parse_args().quick else (TURNS, SECONDS)
    torch.set_num_threads(1)
    table = Table("network", "p", "matrix", "by hand, ms", "hesspec, ms", "times as fast", title="Double backward")
    ratios = []
    for name, network in NETWORKS.items():
        torch.manual_seed(0)
        model = network.build().eval()
        inputs, targets = torch.randn(network.shape), torch.randint(network.classes, network.shape[:1])
        for matrix, by_hand in BY_HAND.items():
            operator = getattr(hesspec, matrix)(model, CE, [(inputs, targets)], mode="double backward")
            vector = torch.randn(operator.shape[0])
            found = operator @ vector
            # After the verification of that product, which takes the parameters out of graphs that are alive.
            with sdpa_kernel(SDPBackend.MATH):
                multiply = by_hand(model, inputs, targets)
            expected = multiply(vector)
            assert operator.attributes["mode"] == "double backward"
            assert (found - expected).norm() < 1e-4 * expected.norm()
            both = {"hand": lambda m=multiply, v=vector: m(v), "ours": lambda o=operator, v=vector: o @ v}
            hand, ours = in_turn(both, least, seconds).values()
            ratios.append(statistics.median(a / b for a, b in zip(hand, ours, strict=True)))
            milliseconds = (f"{1e3 * statistics.median(times):.2f}" for times in (hand, ours))
            table.add_row(name, f"{operator.shape[0]:,}", matrix, *milliseconds, f"{ratios[-1]:.2f}")
            console.print(name, matrix, f"{ratios[-1]:.2f}")
    console.print(table)
    reached = statistics.median(ratios), min(ratios)
    console.print(f"median {reached[0]:.2f} (wanted: {MEDIAN}), least {reached[1]:.2f} (wanted: {LEAST})")


if __name__ == "__main__":
    main()
