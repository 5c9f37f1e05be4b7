"""Training by stochastic gradient descent, in the protocol of arXiv 1811.07062, and its records."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hesspec.errors import NonFiniteError
from hesspec.study.datasets import Dataset

__all__ = ["EpochRecord", "TrainingSettings", "TrainingState", "check_trainable", "evaluate", "train"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of training by SGD with momentum, in the protocol of arXiv 1811.07062.

    Parameters
    ----------
    epochs
        Passes over the training set, at least 1; 200 (MNIST, FashionMNIST) or 350 (CIFAR) there.
    learning_rate
        Initial learning rate, above 0.
    momentum
        Momentum of SGD, in [0, 1).
    weight_decay
        Coefficient of the L2 penalty on all parameters, at least 0.
    batch_size
        Samples in a step, at least 1.
    drops
        Fractions of the epochs at which the learning rate is reduced, ascending, in (0, 1).
    drop_factor
        Divisor of the learning rate at each drop, above 1.
    seed
        Seed of the order of the samples and of dropout; the initialisation is that of the network.

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
        Mean cross-entropy over all samples, in nats, without weight decay: the function whose
        curvature is measured.
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
    momentum
        SGD's momentum buffers by the names of the parameters; none before the first step.
    generator
        State of the generator that orders the samples, a byte tensor.
    """

    history: list[EpochRecord]
    momentum: dict[str, Tensor]
    generator: Tensor


def evaluate(network: nn.Module, dataset: Dataset, *, batch_size: int) -> tuple[float, float]:
    """Mean cross-entropy and error of a network on a data set, in evaluation mode.

    Parameters
    ----------
    network
        Classifier; it is left in evaluation mode.
    dataset
        Samples; each batch is moved to the network's device.
    batch_size
        Samples in a forward pass; without influence on the result beyond rounding.

    Returns
    -------
    loss : float
        Mean cross-entropy over the samples, in nats.
    error : float
        Fraction of samples whose class is not the most probable one.

    Raises
    ------
    ValueError
        If the network's outputs are not one number for each class of the data set.
    """
    network.eval()
    device = _device(network)
    loss = 0.0
    wrong = 0
    with torch.no_grad():
        for inputs, targets in dataset.batches(batch_size):
            labels = targets.to(device)
            outputs: Tensor = network(inputs.to(device))
            if outputs.shape != (len(inputs), dataset.classes):
                raise ValueError(
                    f"The network's outputs for {len(inputs)} samples of {dataset.name!r} have "
                    f"shape {tuple(outputs.shape)}, but they must have shape "
                    f"{(len(inputs), dataset.classes)}: one number for each class."
                )
            loss += cross_entropy(outputs, labels, reduction="sum").item()
            wrong += int((outputs.argmax(dim=1) != labels).sum())
    return loss / len(dataset), wrong / len(dataset)


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
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    device = _device(network)
    history: list[EpochRecord] = []
    if resume is not None:
        history += resume.history
        generator.set_state(resume.generator)
        for name, parameter in network.named_parameters():
            if name in resume.momentum:
                optimizer.state[parameter]["momentum_buffer"] = resume.momentum[name].to(parameter)
    for epoch in range(len(history), settings.epochs + 1):
        rate = 0.0
        if epoch > 0:
            rate = settings.learning_rate_in(epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batches = _shuffled(len(train_set), settings.batch_size, generator)
            # Dropout uses the global generator, which is seeded for each epoch, so that callbacks between epochs may
            # draw from it.
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
                _take_steps(network, optimizer, train_set, batches, epoch)
        train_loss, train_error = evaluate(network, train_set, batch_size=settings.batch_size)
        _check_finite(train_loss, "on the train split", epoch, rate)
        test_loss, test_error = evaluate(network, test_set, batch_size=settings.batch_size)
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
            momentum = _momentum(network, optimizer)
            on_state(network, TrainingState(history=history, momentum=momentum, generator=generator.get_state()))
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


def _momentum(network: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """Return the existing momentum buffers by parameter name."""
    buffers = {name: optimizer.state[value].get("momentum_buffer") for name, value in network.named_parameters()}
    return {name: buffer for name, buffer in buffers.items() if buffer is not None}


def _take_steps(
    network: nn.Module,
    optimizer: torch.optim.SGD,
    train_set: Dataset,
    batches: list[Tensor],
    epoch: int,
) -> None:
    """Make one step of the optimiser for every batch of sample indices."""
    network.train()
    device = _device(network)
    for number, batch in enumerate(batches, start=1):
        outputs = network(train_set.inputs[batch].to(device))
        loss = cross_entropy(outputs, train_set.targets[batch].to(device))
        where = f"on batch {number} of {len(batches)}"
        _check_finite(loss.item(), where, epoch, optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


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
