"""What many cases are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "CE",
    "MSE",
    "Forward",
    "classes",
    "counted",
    "head",
    "images",
    "mlp",
    "per_token",
    "some_training",
    "tokens",
    "vectors",
]

CE = nn.CrossEntropyLoss()
MSE = nn.MSELoss()


def classes(count: int, *shape: int) -> Tensor:
    """Random classes of `count`."""
    return torch.randint(count, shape)


def mlp(inputs: int, outputs: int, hidden: int = 16, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """A network of two dense layers."""
    return nn.Sequential(nn.Linear(inputs, hidden), activation(), nn.Linear(hidden, outputs))


def head(channels: int, count: int) -> nn.Sequential:
    """Classes of the means of feature maps."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, count))


def vectors(inputs: int, count: int, *sizes: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of random vectors with classes, of these sizes."""
    return [(torch.randn(size, inputs), classes(count, size)) for size in sizes or (12, 5)]


def images(channels: int, side: int, count: int, *sizes: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of random images with classes, of these sizes."""
    return [(torch.randn(size, channels, side, side), classes(count, size)) for size in sizes or (3, 2)]


def tokens(count: int, *shapes: tuple[int, int], least: int = 0) -> list[Tensor]:
    """Random token ids."""
    return [torch.randint(least, count, shape) for shape in shapes]


def per_token(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens that are not -100."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def counted(batch: Any) -> float:
    """Number of targets that are not -100."""
    return float((batch[1] != -100).sum())


class Forward(nn.Module):
    """Modules by name, and a function of them and the inputs."""

    def __init__(self, function: Callable[..., Any], **modules: Any) -> None:
        super().__init__()
        self._function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The function's value."""
        return self._function(self, *inputs, **named)


def some_training(model: nn.Module) -> nn.Module:
    """The model with noise on all parameters: what begins at zero is no longer there, as after some training."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
