"""Optimisers by name, and the steps of a training with one of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from hesspec.study.training import TrainingSettings

__all__ = ["MONITORED", "OPTIMIZERS", "SGD", "Stepper", "check_options", "make_stepper"]

SGD: Final = "sgd"
Options = Mapping[str, Any]


class Stepper(Protocol):
    """Protocol of what makes the steps of a training.

    Its weights are those of the network. Between epochs, in evaluation, they may be others than those at which
    gradients are taken (averages of them).
    """

    optimizers: Sequence[Optimizer]
    """PyTorch's optimisers that make the step; none for a method that is not one."""

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """Make a step on a batch, and return its loss before the step."""

    def set_rate(self, rate: float) -> None:
        """Set the learning rate."""

    def train(self) -> None:
        """Give the network the weights at which gradients are taken."""

    def eval(self) -> None:
        """Give the network the weights that are evaluated."""

    def state(self) -> tuple[dict[str, Tensor], str]:
        """Tensors by name, and everything else as JSON, from which `load` restores it to the bit."""

    def load(self, tensors: Mapping[str, Tensor], text: str) -> None:
        """Restore what `state` returned; the network must have its weights of that time."""


class TorchStepper:
    """Steps with optimisers of PyTorch, which share the parameters of a network among them.

    Parameters
    ----------
    network : torch.nn.Module
    loss_fn : torch.nn.Module
    optimizers : sequence of torch.optim.Optimizer
    """

    def __init__(self, network: nn.Module, loss_fn: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = optimizers
        self._network, self._loss = network, loss_fn

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """Make a step of each optimiser with the gradient of a batch; none if the loss is not finite."""
        loss: Tensor = self._loss(self._network(inputs), targets)
        value = loss.item()
        if not math.isfinite(value):
            return value
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(loss)
        for optimizer in self.optimizers:
            optimizer.step()
        return value

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of all groups."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def train(self) -> None:
        """Switch optimisers that average the weights to those at which gradients are taken."""
        self._switch("train")

    def eval(self) -> None:
        """Switch optimisers that average the weights to the averages."""
        self._switch("eval")

    def _switch(self, mode: str) -> None:
        for optimizer in self.optimizers:
            switch: Callable[[], None] | None = getattr(optimizer, mode, None)
            if switch is not None:
                switch()

    def state(self) -> tuple[dict[str, Tensor], str]:
        """State dicts of the optimisers."""
        tensors: dict[str, Tensor] = {}
        rest = []
        for number, optimizer in enumerate(self.optimizers):
            state = optimizer.state_dict()
            numbers: dict[str, dict[str, Any]] = {}
            for index, values in state["state"].items():
                for key, value in values.items():
                    if isinstance(value, Tensor):
                        tensors[f"{number}.{index}.{key}"] = value
                    else:
                        numbers.setdefault(str(index), {})[key] = value
            rest.append({"groups": state["param_groups"], "numbers": numbers})
        return tensors, json.dumps(rest)

    def load(self, tensors: Mapping[str, Tensor], text: str) -> None:
        """Restore the state dicts."""
        for number, (optimizer, rest) in enumerate(zip(self.optimizers, json.loads(text), strict=True)):
            state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in rest["numbers"].items()}
            for name, value in tensors.items():
                owner, index, key = name.split(".", 2)
                if int(owner) == number:
                    state.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({"state": state, "param_groups": rest["groups"]})


def _sgd(network: nn.Module, settings: TrainingSettings, options: Options) -> list[Optimizer]:
    shared = {"lr": settings.learning_rate, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    return [torch.optim.SGD(network.parameters(), **{**shared, **options})]


def _adam(network: nn.Module, settings: TrainingSettings, options: Options) -> list[Optimizer]:
    shared = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    return [torch.optim.Adam(network.parameters(), **{**shared, **options})]


def _adamw(network: nn.Module, settings: TrainingSettings, options: Options) -> list[Optimizer]:
    shared = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    return [torch.optim.AdamW(network.parameters(), **{**shared, **options})]


OPTIMIZERS: Final[dict[str, Callable[[nn.Module, TrainingSettings, Options], list[Optimizer]]]] = {
    SGD: _sgd,
    "adam": _adam,
    "adamw": _adamw,
}
"""Optimisers that a study file can name."""

MONITORED: Final = (SGD, "adam", "adamw")
"""Those whose threshold of stability is known."""


def make_stepper(network: nn.Module, loss_fn: nn.Module, settings: TrainingSettings) -> Stepper:
    """Create what makes the steps of a training.

    Raises
    ------
    ValueError
        If the optimiser does not take its options.
    """
    options = dict(settings.options)
    try:
        return TorchStepper(network, loss_fn, OPTIMIZERS[settings.optimizer](network, settings, options))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The optimiser {settings.optimizer!r} does not take its options {options}: {error}"
        ) from error


def check_options(settings: TrainingSettings) -> None:
    """Raise ValueError if the optimiser does not take its options; a small network is enough to find out."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    make_stepper(network, nn.MSELoss(), settings)
