"""Training, and its records."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hesspec.errors import NonFiniteError
from hesspec.study.datasets import IGNORED, Dataset
from hesspec.study.losses import CROSS_ENTROPY, LOSSES
from hesspec.study.optimizers import Stepper, make_stepper
from hesspec.study.settings import TrainingSettings

__all__ = [
    "EpochRecord",
    "Observer",
    "TrainingState",
    "check_trainable",
    "evaluate",
    "train",
]


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """The network after an epoch, in evaluation mode.

    Parameters
    ----------
    epoch
        Number of passes over the training set so far; 0 is the initialisation.
    train_loss, test_loss
        Mean loss over all samples (of cross-entropy, in nats), without weight decay: the function whose curvature is
        measured.
    train_error, test_error
        Fraction of samples whose class is not the most probable one, in [0, 1].
    learning_rate
        Learning rate of the epoch's last step; 0 for epoch 0, which has none.
    """

    epoch: int
    train_loss: float
    train_error: float
    test_loss: float
    test_error: float
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """State from which a training is resumed after an epoch, in addition to the network's weights.

    Parameters
    ----------
    history
        Records of all epochs so far.
    optimizer
        Tensors of the optimiser by name; none before the first step.
    text
        Everything else of the optimiser, as JSON.
    generator
        State of the generator that orders the samples, a byte tensor.
    observers
        Tensors of the observers, by the name of the observer, a full stop and their own name.
    """

    history: list[EpochRecord]
    optimizer: dict[str, Tensor]
    text: str
    generator: Tensor
    observers: dict[str, Tensor] = field(default_factory=dict)


class Observer(Protocol):
    """Protocol of what looks at the steps of a training, such as a monitor of the sharpness.

    Steps are counted from 1. The network is in training mode, and is left unchanged like the optimisers.
    """

    def before(self, network: nn.Module, stepper: Stepper, step: int) -> None:
        """When the gradient of a step is known, before it is taken."""

    def after(self, network: nn.Module, stepper: Stepper, step: int) -> None:
        """After a step."""

    def state(self) -> dict[str, Tensor]:
        """Tensors by name from which `load` restores it to the bit."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""


def evaluate(
    network: nn.Module, dataset: Dataset, *, batch_size: int, loss: str = CROSS_ENTROPY
) -> tuple[float, float]:
    """Mean loss and error of a network on a data set, in evaluation mode.

    Parameters
    ----------
    network
        Classifier, or language model (see `hesspec.study.build_network`); it is left in evaluation mode.
    dataset
        Samples; each batch is moved to the network's device.
    batch_size
        Samples in a forward pass; without influence on the result beyond rounding.
    loss
        Name of the loss in `hesspec.study.losses.LOSSES`.

    Returns
    -------
    loss : float
        Mean over the samples, or over the positions of sequences that have a target; of cross-entropy, in nats.
    error : float
        Fraction of them whose class is not the most probable one.

    Raises
    ------
    ValueError
        If the network's outputs are not one number for each class of the data set.
    """
    network.eval()
    device = _device(network)
    total = 0.0
    wrong = 0
    with torch.no_grad():
        for inputs, targets in dataset.batches(batch_size):
            labels = targets.to(device)
            outputs: Tensor = network(inputs.to(device))
            if not dataset.has_outputs(outputs.shape, len(inputs)):
                raise ValueError(
                    f"The network's outputs for {len(inputs)} samples of {dataset.name!r} have "
                    f"shape {tuple(outputs.shape)}, but they must have shape {dataset.outputs_text(len(inputs))}."
                )
            counted = labels != IGNORED
            terms = int(counted.sum())
            if terms > 0:
                total += LOSSES[loss](outputs, labels).item() * terms
            wrong += int(((outputs.argmax(dim=1) != labels) & counted).sum())
    return total / dataset.terms, wrong / dataset.terms


def train(
    network: nn.Module,
    train_set: Dataset,
    test_set: Dataset,
    settings: TrainingSettings,
    *,
    checkpoint_epochs: Collection[int] = (),
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_checkpoint: Callable[[nn.Module, EpochRecord], None] | None = None,
    on_state: Callable[[nn.Module, TrainingState], None] | None = None,
    resume: TrainingState | None = None,
    observers: Mapping[str, Observer] | None = None,
) -> list[EpochRecord]:
    """Train a network in place, on the device where it is.

    The result is determined by the network's weights and `settings`: bit for bit on a CPU with a fixed number of
    threads, and up to the order of sums on a GPU. It does not depend on torch's global generator, which is left
    unchanged.

    A last batch of one sample, which batch norm cannot normalise, is merged with the previous batch.

    Parameters
    ----------
    network
        Classifier with outputs (N, C). It is left in evaluation mode.
    train_set, test_set
        Samples; each batch is moved to the network's device.
    settings
        Epochs, learning rate and so on.
    checkpoint_epochs
        Epochs after which `on_checkpoint` is called, from 0 (the initialisation) to
        `settings.epochs`.
    on_epoch
        Called with the record of every epoch, from 0 on, as soon as it is complete.
    on_checkpoint
        Called with the network, in evaluation mode, and the epoch's record. It may change the mode of the network but
        not its weights.
    on_state
        Called after every epoch, after the other two, with the network and the state for `resume`. The tensors are in
        use: copy or write them to keep them.
    resume
        State after the epoch from which to resume; the network must have the weights of that epoch. On a CPU the result
        is bitwise identical to that of an uninterrupted training.
    observers
        Called before and after every step; their state is part of that of the training.

    Returns
    -------
    list of EpochRecord
        Records of epochs 0 to `settings.epochs`, including those of `resume`.

    Raises
    ------
    NonFiniteError
        If the loss becomes NaN or infinite.
    ValueError
        If a checkpoint epoch is outside the training, the outputs do not fit the classes, or a
        network with batch norm would be trained on single samples.
    """
    _check_epochs(checkpoint_epochs, settings.epochs)
    check_trainable(network, train_set, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    steps = settings.epochs * len(_shuffled(len(train_set), settings.batch_size, torch.Generator()))
    stepper = make_stepper(network, LOSSES[settings.loss], settings, steps)
    history: list[EpochRecord] = []
    observed = dict(observers or {})
    if resume is not None:
        history += resume.history
        generator.set_state(resume.generator)
        stepper.load(resume.optimizer, resume.text)
        for name, observer in observed.items():
            prefix = f"{name}."
            kept = resume.observers.items()
            observer.load({key.removeprefix(prefix): value for key, value in kept if key.startswith(prefix)})
    for epoch in range(len(history), settings.epochs + 1):
        rate = 0.0
        if epoch > 0:
            batches = _shuffled(len(train_set), settings.batch_size, generator)
            rates = [settings.learning_rate_in(epoch, i, len(batches)) for i in range(1, len(batches) + 1)]
            rate = rates[-1]
            # Dropout uses the global generator, which is seeded for each epoch, so that callbacks between epochs may
            # draw from it.
            device = _device(network)
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
                _take_steps(network, stepper, train_set, batches, epoch, rates, list(observed.values()))
        how: dict[str, Any] = {"batch_size": settings.batch_size, "loss": settings.loss}
        train_loss, train_error = evaluate(network, train_set, **how)
        _check_finite(train_loss, "on the train split", epoch, rate)
        test_loss, test_error = evaluate(network, test_set, **how)
        _check_finite(test_loss, "on the test split", epoch, rate)
        record = EpochRecord(
            epoch=epoch,
            train_loss=train_loss,
            train_error=train_error,
            test_loss=test_loss,
            test_error=test_error,
            learning_rate=rate,
        )
        history.append(record)
        if on_epoch is not None:
            on_epoch(record)
        if on_checkpoint is not None and epoch in checkpoint_epochs:
            on_checkpoint(network, record)
        if on_state is not None:
            tensors, text = stepper.state()
            on_state(
                network,
                TrainingState(
                    history=history,
                    optimizer=tensors,
                    text=text,
                    generator=generator.get_state(),
                    observers={
                        f"{name}.{key}": value
                        for name, observer in observed.items()
                        for key, value in observer.state().items()
                    },
                ),
            )
    network.eval()
    return history


def _check_epochs(checkpoint_epochs: Collection[int], last: int) -> None:
    outside = sorted(set(checkpoint_epochs) - set(range(last + 1)))
    if outside:
        raise ValueError(
            f"There is no epoch {outside[0]} for a checkpoint; the training has the "
            f"epochs 0 (the initialisation) to {last}."
        )


def check_trainable(network: nn.Module, train_set: Dataset, settings: TrainingSettings) -> None:
    """Raise ValueError if a network with batch norm would be trained on single samples."""
    if min(settings.batch_size, len(train_set)) == 1 and _has_batch_norm(network):
        raise ValueError(
            "A network with batch norm cannot be trained on one sample at a time (batch_size="
            f"{settings.batch_size}, {len(train_set)} training samples): use at least two."
        )


def _take_steps(
    network: nn.Module,
    stepper: Stepper,
    train_set: Dataset,
    batches: list[Tensor],
    epoch: int,
    rates: Sequence[float],
    observers: Sequence[Observer],
) -> None:
    """Make one step for every batch of sample indices, with its learning rate, in an epoch."""
    network.train()
    stepper.train()
    device = _device(network)
    for number, (batch, rate) in enumerate(zip(batches, rates, strict=True), start=1):
        stepper.set_rate(rate)
        step = (epoch - 1) * len(batches) + number

        def look(step: int = step) -> None:
            for observer in observers:
                observer.before(network, stepper, step)

        loss = stepper.step(train_set.inputs[batch].to(device), train_set.targets[batch].to(device), look)
        _check_finite(loss, f"on batch {number} of {len(batches)}", epoch, rate)
        for observer in observers:
            observer.after(network, stepper, step)
    stepper.eval()


def _shuffled(count: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    batches = list(torch.split(torch.randperm(count, generator=generator), batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _check_finite(loss: float, where: str, epoch: int, rate: float) -> None:
    if math.isfinite(loss):
        return
    if epoch == 0:
        raise NonFiniteError(
            f"The loss {where} is {loss} in epoch 0, before any step: look for NaN, infinity and "
            "overflow in the network's weights and in the data."
        )
    raise NonFiniteError(
        f"The loss {where} is {loss} in epoch {epoch} at learning rate {rate:g}: the training has "
        "diverged. Lower the learning rate."
    )


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def _has_batch_norm(network: nn.Module) -> bool:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return any(isinstance(module, kinds) for module in network.modules())
