"""Optimisers by name, and the steps of a training with one of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hesspec.applications.optim.amuse import AMUSE
from hesspec.applications.optim.fast_gauss_newton import FastGaussNewton
from hesspec.applications.optim.parameter_groups import muon_groups
from hesspec.operators.model.module import evaluation_mode
from hesspec.spectra.study_names import SGD

if TYPE_CHECKING:
    from hesspec.study.settings import TrainingSettings

__all__ = [
    "FAST_GAUSS_NEWTON",
    "MONITORED",
    "OPTIMIZERS",
    "GaussNewtonStepper",
    "Stepper",
    "check_options",
    "make_stepper",
]


class Stepper(Protocol):
    """Protocol of what makes the steps of a training.

    Its weights are those of the network. Between epochs, in evaluation, they may be others than those at which
    gradients are taken (averages of them).
    """

    optimizers: Sequence[Optimizer]
    """PyTorch's optimisers that make the step; none for a method that is not one."""

    def step(self, inputs: Tensor, targets: Tensor, look: Callable[[], None] = lambda: None) -> float:
        """Make a step on a batch, and return its loss before the step; `look` is called when the gradient is known."""

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

    def step(self, inputs: Tensor, targets: Tensor, look: Callable[[], None] = lambda: None) -> float:
        """Make a step of each optimiser with the gradient of a batch; none if the loss is not finite."""
        loss: Tensor = self._loss(self._network(inputs), targets)
        value = loss.item()
        if not math.isfinite(value):
            return value
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        torch.autograd.backward(loss)
        look()
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


class GaussNewtonStepper:
    """Steps of Fast Gauss-Newton.

    Parameters
    ----------
    network, loss_fn : torch.nn.Module
    optimizer : FastGaussNewton
    """

    optimizers: Sequence[Optimizer] = ()

    def __init__(self, network: nn.Module, loss_fn: nn.Module, optimizer: FastGaussNewton) -> None:
        self._network, self._loss, self._optimizer = network, loss_fn, optimizer

    def step(self, inputs: Tensor, targets: Tensor, look: Callable[[], None] = lambda: None) -> float:
        """Make a step, which may be rejected."""
        self._batch = inputs, targets
        look()
        return self._optimizer.step(inputs, targets).loss

    def vectors(self) -> dict[str, Tensor]:
        """Gradient and update of the step that is about to be made, on a vector each; everything is left as it is."""
        parameters = list(self._network.parameters())
        inputs, targets = self._batch
        with evaluation_mode(self._network), torch.enable_grad():
            loss = self._loss(self._network(inputs), targets)
            gradient = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        before, state = [value.detach().clone() for value in parameters], self._optimizer.state_dict()
        try:
            self._optimizer.step(inputs, targets)
            moved = [after.detach() - value for after, value in zip(parameters, before, strict=True)]
        finally:
            self._optimizer.load_state_dict(state)
            with torch.no_grad():
                for value, earlier in zip(parameters, before, strict=True):
                    value.copy_(earlier)
        return {
            name: torch.cat([part.reshape(-1) for part in parts])
            for name, parts in (("gradient", gradient), ("update", moved))
        }

    def set_rate(self, rate: float) -> None:
        """Set the factor of the step."""
        self._optimizer.lr = rate

    def train(self) -> None:
        """Do nothing: gradients are those of evaluation mode."""

    def eval(self) -> None:
        """Do nothing."""

    def state(self) -> tuple[dict[str, Tensor], str]:
        """Start of the next solve, and the damping."""
        state = self._optimizer.state_dict()
        start = state.pop("start")
        return {} if start is None else {"start": start}, json.dumps(state)

    def load(self, tensors: Mapping[str, Tensor], text: str) -> None:
        """Restore them."""
        device = next(self._network.parameters()).device
        start = tensors["start"].to(device) if "start" in tensors else None
        self._optimizer.load_state_dict({**json.loads(text), "start": start})


def _sgd(network: nn.Module, settings: TrainingSettings, _steps: int) -> list[Optimizer]:
    shared = {"lr": settings.learning_rate, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    return [torch.optim.SGD(network.parameters(), **{**shared, **dict(settings.options)})]


def _adam(network: nn.Module, settings: TrainingSettings, _steps: int) -> list[Optimizer]:
    return [torch.optim.Adam(network.parameters(), **_shared(settings))]


def _adamw(network: nn.Module, settings: TrainingSettings, _steps: int) -> list[Optimizer]:
    return [torch.optim.AdamW(network.parameters(), **_shared(settings))]


def _muon(network: nn.Module, settings: TrainingSettings, _steps: int) -> list[Optimizer]:
    groups = muon_groups(network)
    # PyTorch's Muon takes matrices, and no kernels of convolutions.
    matrices = [value for name, value in groups[0]["params"] if value.ndim == 2]
    others = [value for group in groups for name, value in group["params"] if not any(value is m for m in matrices)]
    if not matrices:
        raise ValueError("the network has no matrix besides that of the output layer")
    shared: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    # With updates of the size of AdamW's, one learning rate serves both.
    muon = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **{**shared, **dict(settings.options)})
    return [muon, *([torch.optim.AdamW(others, **shared)] if others else [])]


def _amuse(network: nn.Module, settings: TrainingSettings, steps: int) -> list[Optimizer]:
    # The authors' scripts for images warm up during a twentieth of the training.
    warmup = {"warmup_steps": max(1, steps // 20)}
    return [AMUSE(muon_groups(network), **{**warmup, **_shared(settings)})]


def _shared(settings: TrainingSettings) -> dict[str, Any]:
    return {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, **dict(settings.options)}


FAST_GAUSS_NEWTON: Final = "fast-gauss-newton"
_BUILDERS: Final[dict[str, Callable[[nn.Module, TrainingSettings, int], list[Optimizer]]]] = {
    SGD: _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "muon": _muon,
    "amuse": _amuse,
}
OPTIMIZERS: Final = (*_BUILDERS, FAST_GAUSS_NEWTON)
"""Optimisers that a study file can name."""

MONITORED: Final = (SGD, "adam", "adamw")
"""Those whose threshold of stability is known."""


def make_stepper(network: nn.Module, loss_fn: nn.Module, settings: TrainingSettings, steps: int) -> Stepper:
    """Create what makes the steps of a training.

    Parameters
    ----------
    network, loss_fn : torch.nn.Module
    settings : TrainingSettings
    steps : int
        Number of steps of the whole training.

    Raises
    ------
    ValueError
        If the optimiser does not take its options, or the network.
    """
    try:
        if settings.optimizer == FAST_GAUSS_NEWTON:
            rate = settings.learning_rate
            optimizer = FastGaussNewton(network, loss_fn, lr=rate, **dict(settings.options))
            return GaussNewtonStepper(network, loss_fn, optimizer)
        return TorchStepper(network, loss_fn, _BUILDERS[settings.optimizer](network, settings, steps))
    except (TypeError, ValueError) as error:
        options = dict(settings.options)
        given = f" with the options {options}" if options else ""
        raise ValueError(f"The optimiser {settings.optimizer!r} cannot be created{given}: {error}") from error


def check_options(settings: TrainingSettings) -> None:
    """Raise ValueError if the optimiser does not take its options; a small network is enough to find out."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    make_stepper(network, nn.CrossEntropyLoss(), settings, 1)
