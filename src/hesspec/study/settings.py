"""Settings of a training, by default those of the protocol of arXiv 1811.07062, and schedules of learning rates."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from hesspec.backend.suggest import unknown
from hesspec.spectra.study_names import SGD
from hesspec.study.losses import CROSS_ENTROPY, LOSSES
from hesspec.study.optimizers import OPTIMIZERS

__all__ = ["SCHEDULES", "MonitorSettings", "ShareSettings", "TrainingSettings"]

STEPS: Final = "steps"
COSINE: Final = "cosine"
SCHEDULES: Final = (STEPS, COSINE)
"""Schedules of the learning rate."""

# Share of the initial learning rate at the end of the cosine.
COSINE_END = 0.1


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
    schedule
        "steps": the learning rate falls at the drops; "cosine": along half a cosine, from step to step, to a tenth.
    warmup
        Fraction of all steps in which the learning rate rises linearly to its initial value, in [0, 1).
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
    schedule: str = STEPS
    warmup: float = 0.0
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
        self._check_schedule()
        for what, name, known in (("loss", self.loss, LOSSES), ("optimiser", self.optimizer, OPTIMIZERS)):
            if name not in known:
                raise ValueError(unknown(what, name, known))

    def _check_schedule(self) -> None:
        if not all(0 < drop < 1 for drop in self.drops) or list(self.drops) != sorted(self.drops):
            raise ValueError(f"drops must be fractions between 0 and 1 that ascend, but they are {self.drops}.")
        if not 1 < self.drop_factor < math.inf:
            raise ValueError(f"drop_factor must be above 1, but it is {self.drop_factor}.")
        if self.schedule not in SCHEDULES:
            raise ValueError(unknown("schedule", self.schedule, SCHEDULES))
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), but it is {self.warmup}.")

    @property
    def observers(self) -> list[str]:
        """Names of what is measured during the training."""
        return [name for name in ("monitor", "shares") if getattr(self, name) is not None]

    def identity(self) -> dict[str, Any]:
        """Everything that determines a training, by name; settings that are new in a version only if they are used."""
        usual: dict[str, Any] = {
            "loss": CROSS_ENTROPY,
            "optimizer": SGD,
            "options": (),
            "monitor": None,
            "shares": None,
        }
        usual |= {"schedule": STEPS, "warmup": 0.0}
        return {name: value for name, value in asdict(self).items() if name not in usual or value != usual[name]}

    def learning_rate_in(self, epoch: int, step: int = 1, steps: int = 1) -> float:
        """Return the learning rate in a step of an epoch.

        Parameters
        ----------
        epoch
            From 1 to `epochs`.
        step, steps
            Step of the epoch, from 1, and their number.

        Examples
        --------
        >>> settings = TrainingSettings(epochs=6, learning_rate=0.1)
        >>> [round(settings.learning_rate_in(epoch), 6) for epoch in range(1, 7)]
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
        >>> settings = TrainingSettings(epochs=6, learning_rate=0.1, schedule="cosine", warmup=1 / 3)
        >>> [round(settings.learning_rate_in(epoch), 6) for epoch in range(1, 7)]
        [0.05, 0.1, 0.08682, 0.055, 0.02318, 0.01]
        """
        taken, total = (epoch - 1) * steps + step, self.epochs * steps
        warming = math.ceil(self.warmup * total)
        if taken <= warming:
            return self.learning_rate * taken / warming
        if self.schedule == COSINE:
            along = (taken - warming) / (total - warming)
            share = COSINE_END + (1 - COSINE_END) * (1 + math.cos(math.pi * along)) / 2
            return self.learning_rate * share
        # Equal quotients of integers are also equal in floating point, so an epoch at a third is at 1/3.
        fallen = sum((epoch - 1) / self.epochs >= drop for drop in self.drops)
        return self.learning_rate / self.drop_factor**fallen
