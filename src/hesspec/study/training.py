"""Training, by default in the protocol of arXiv 1811.07062, and its records."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hesspec.backend.suggest import unknown
from hesspec.errors import NonFiniteError
from hesspec.study.datasets import IGNORED, Dataset
from hesspec.study.losses import CROSS_ENTROPY, LOSSES
from hesspec.study.optimizers import OPTIMIZERS, SGD, Stepper, make_stepper

__all__ = [
    "EpochRecord",
    "MonitorSettings",
    "Observer",
    "TrainingSettings",
    "TrainingState",
    "check_trainable",
    "evaluate",
    "train",
]


@dataclass(frozen=True, kw_only=True)
class MonitorSettings:
    """Settings of the monitor of the sharpness during a training; see `hesspec.stability.monitor`.

    Parameters
    ----------
    every
        Interval of measurements, in steps.
    samples
        Number of training samples that it measures with, the first ones; None for all.
    tolerance
        Residual, relative to the eigenvalue, at which a measurement stops.
    """

    every: int = 10
    samples: int | None = None
    tolerance: float = 0.02


@dataclass(frozen=True, kw_only=True)
class ShareSettings:
    """Settings of the shares of steps in the top eigenspace of the Hessian; see `hesspec.optim.monitor_shares`.

    Parameters
    ----------
    every
        Interval of measurements, in steps.
    eigenvectors
        Number of eigenvectors.
    samples
        Number of training samples of the Hessian, the first ones; None for all.
    products
        Number of products with the Hessian in a measurement.
    """

    every: int = 10
    eigenvectors: int = 10
    samples: int | None = None
    products: int = 64


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of training, by default by SGD with momentum in the protocol of arXiv 1811.07062.

    Parameters
    ----------
    epochs
        Passes over the training set, at least 1; 200 (MNIST, FashionMNIST) or 350 (CIFAR) there.
    learning_rate
        Initial learning rate, above 0.
    momentum
        Momentum of SGD, in [0, 1); other optimisers have their own.
    weight_decay
        Weight decay in the form of the optimiser, at least 0: of SGD and Adam, the coefficient of an L2 penalty on all
        parameters.
    batch_size
        Samples in a step, at least 1.
    drops
        Fractions of the epochs at which the learning rate is reduced, ascending, in (0, 1).
    drop_factor
        Divisor of the learning rate at each drop, above 1.
    seed
        Seed of the order of the samples and of dropout; the initialisation is that of the network.
    loss
        Name of the loss in `hesspec.study.losses.LOSSES`.
    optimizer
        Name of the optimiser in `hesspec.study.optimizers.OPTIMIZERS`.
    options
        Names and values of further arguments of the optimiser.
    monitor
        Settings of the monitor of the sharpness; None for none.
    shares
        Settings of the shares of steps in the top eigenspace; None for none.

    Raises
    ------
    ValueError
        If a value is out of its range.
    """

    epochs: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    drops: tuple[float, ...] = (1 / 3, 2 / 3)
    drop_factor: float = 10.0
    seed: int = 0
    loss: str = CROSS_ENTROPY
    optimizer: str = SGD
    options: tuple[tuple[str, Any], ...] = ()
    monitor: MonitorSettings | None = None
    shares: ShareSettings | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, but it is {self.epochs}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, but it is {self.learning_rate}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), but it is {self.momentum}.")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0, but it is {self.weight_decay}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but it is {self.batch_size}.")
        if not all(0 < drop < 1 for drop in self.drops) or list(self.drops) != sorted(self.drops):
            raise ValueError(f"drops must be fractions between 0 and 1 that ascend, but they are {self.drops}.")
        if not 1 < self.drop_factor < math.inf:
            raise ValueError(f"drop_factor must be above 1, but it is {self.drop_factor}.")
        for what, name, known in (("loss", self.loss, LOSSES), ("optimiser", self.optimizer, OPTIMIZERS)):
            if name not in known:
                raise ValueError(unknown(what, name, known))

    @property
    def observers(self) -> list[str]:
        """Names of what is measured during the training."""
        return [name for name in ("monitor", "shares") if getattr(self, name) is not None]

    def identity(self) -> dict[str, Any]:
        """Everything that determines a training, by name; settings that are new in a version only if they are used."""
        usual = {"loss": CROSS_ENTROPY, "optimizer": SGD, "options": (), "monitor": None, "shares": None}
        return {name: value for name, value in asdict(self).items() if name not in usual or value != usual[name]}

    def learning_rate_in(self, epoch: int) -> float:
        """Return the learning rate in an epoch.

        Parameters
        ----------
        epoch
            From 1 to `epochs`.

        Examples
        --------
        >>> settings = TrainingSettings(epochs=6, learning_rate=0.1)
        >>> [round(settings.learning_rate_in(epoch), 6) for epoch in range(1, 7)]
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
        """
        # Equal quotients of integers are also equal in floating point, so an epoch at a third is at 1/3.
        fallen = sum((epoch - 1) / self.epochs >= drop for drop in self.drops)
        return self.learning_rate / self.drop_factor**fallen


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
        Learning rate of the epoch's steps; 0 for epoch 0, which has none.
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
            rate = settings.learning_rate_in(epoch)
            stepper.set_rate(rate)
            batches = _shuffled(len(train_set), settings.batch_size, generator)
            # Dropout uses the global generator, which is seeded for each epoch, so that callbacks between epochs may
            # draw from it.
            device = _device(network)
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
                _take_steps(network, stepper, train_set, batches, (epoch, rate), list(observed.values()))
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
    place: tuple[int, float],
    observers: Sequence[Observer],
) -> None:
    """Make one step for every batch of sample indices, in an epoch with a learning rate."""
    epoch, rate = place
    network.train()
    stepper.train()
    device = _device(network)
    for number, batch in enumerate(batches, start=1):
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
