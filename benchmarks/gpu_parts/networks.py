"""Networks that the parts share, on random data: what the data show takes no time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import hesspec
from gpu_parts import Given
from methods import Matrix, Problem

__all__ = ["NETWORKS", "QUICK", "Logits", "Network", "eigenvalues", "of_torchvision", "small", "tiny", "vgg"]


def small(device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, list[Any]]:
    """A network whose matrices are small enough to be known, and its data."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10)
    )
    inputs, targets = torch.randn(200, 1, 8, 8), torch.arange(200) % 10
    data = list(zip(inputs.to(device, dtype).split(80), targets.to(device).split(80), strict=True))
    return model.eval().to(device, dtype), data


def eigenvalues(matrix: str) -> np.ndarray:
    """Exact eigenvalues of a matrix of the small network, in float64 on the CPU."""
    model, data = small(torch.device("cpu"), torch.float64)
    operator = getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), data)
    return np.asarray(torch.linalg.eigvalsh(operator @ torch.eye(operator.shape[0], dtype=torch.float64)).numpy())


@dataclass(frozen=True)
class Network:
    """A network, how many samples it is measured on, and their shape."""

    build: Callable[[], nn.Module]
    samples: int
    shape: tuple[int, ...]
    classes: int = 10
    tokens: int = 0

    def problem(self, matrix: Matrix, given: Given) -> Problem:
        """The problem, on a device."""
        torch.manual_seed(0)
        model, samples = self.build().eval().to(given.device), min(self.samples, 4) if given.quick else self.samples
        if self.tokens:
            inputs = torch.randint(self.tokens, (samples, *self.shape), device=given.device)
            return Problem(model, [(inputs, inputs.roll(-1, 1))], matrix, nn.CrossEntropyLoss())
        inputs = torch.randn(samples, *self.shape, device=given.device)
        targets = torch.arange(samples, device=given.device) % self.classes
        return Problem(model, [(inputs, targets)], matrix, nn.CrossEntropyLoss())


class Logits(nn.Module):
    """GPT-2 of a configuration, from tokens (N, T) to logits (N, V, T), as cross-entropy takes them."""

    def __init__(self, **settings: int) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415 - takes seconds that other parts keep

        self.body = GPT2LMHeadModel(GPT2Config(attn_implementation="eager", **settings))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits."""
        return self.body(tokens, use_cache=False).logits.transpose(1, 2)


def vgg() -> nn.Module:
    """VGG11 with batch norm for images of 32x32."""
    model = torchvision.models.vgg11_bn(num_classes=10)
    model.avgpool, model.classifier = nn.Identity(), nn.Linear(512, 10)
    return model


def tiny() -> nn.Module:
    """A network of which a trace takes a second, for a try on a CPU."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )


def of_torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A network of torchvision."""

    def build() -> nn.Module:
        return getattr(torchvision.models, name)(**options)

    return build


NETWORKS = {
    "VGG11-BN": Network(vgg, 2048, (3, 32, 32)),
    "ResNet18": Network(of_torchvision("resnet18", num_classes=10), 512, (3, 64, 64)),
    "GPT-2 small": Network(Logits, 4, (256,), tokens=50257),
    "ResNet50": Network(of_torchvision("resnet50"), 64, (3, 224, 224), 1000),
    "ViT-B/16": Network(of_torchvision("vit_b_16"), 32, (3, 224, 224), 1000),
}
QUICK = {
    "VGG11-BN": NETWORKS["VGG11-BN"],
    "GPT-2, 2 layers of 32": Network(
        lambda: Logits(n_layer=2, n_embd=32, n_head=2, vocab_size=64, n_positions=16), 4, (16,), tokens=64
    ),
}
