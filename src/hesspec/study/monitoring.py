"""What is measured during a training of a study: the sharpness, and the shares of steps in the top eigenspace."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from torch import Tensor, nn

from hesspec.applications.optim.share_monitor import ShareMonitor, monitor_shares
from hesspec.applications.stability.monitoring import Monitor, monitor
from hesspec.spectra.record import Record
from hesspec.study.datasets import Dataset
from hesspec.study.losses import LOSSES
from hesspec.study.measuring import Attribute
from hesspec.study.optimizers import GaussNewtonStepper, Stepper
from hesspec.study.settings import MonitorSettings, ShareSettings
from hesspec.study.store import TrainingRun

__all__ = ["TrainingMonitor", "TrainingShares", "monitors_of"]

# Samples in a pass.
BATCH = 256


class _Measuring(Protocol):
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...
    def result(self) -> Record: ...


M = TypeVar("M", bound=_Measuring)


class _Observer(ABC, Generic[M]):
    """Measures a network with its first training samples, an `Observer` of the training.

    Parameters
    ----------
    run : TrainingRun
    train_set : Dataset
    samples : int or None
    file : Path
        Where `write` writes the result.
    """

    def __init__(self, run: TrainingRun, train_set: Dataset, samples: int | None, file: Path) -> None:
        self._batches: list[tuple[Tensor, Tensor]] = train_set.first(samples).batches(BATCH)
        self._loss, self._file = LOSSES[run.settings.loss], file
        self._made: M | None = None
        self._restored: Mapping[str, Tensor] = {}

    @abstractmethod
    def _make(self, network: nn.Module, stepper: Stepper) -> M:
        """Create what measures."""

    def _of(self, network: nn.Module, stepper: Stepper) -> M:
        if self._made is None:
            self._made = self._make(network, stepper)
            if self._restored:
                self._made.load_state_dict(self._restored)
        return self._made

    def before(self, network: nn.Module, stepper: Stepper, step: int) -> None:
        """Do nothing by default."""

    def after(self, network: nn.Module, stepper: Stepper, step: int) -> None:
        """Do nothing by default."""

    def state(self) -> dict[str, Tensor]:
        """State of what measures."""
        return dict(self._restored) if self._made is None else self._made.state_dict()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state of what measures."""
        self._restored = dict(tensors)

    def write(self, attributes: Mapping[str, Attribute]) -> None:
        """Write what was measured so far, with attributes of the training."""
        if self._made is not None:
            found = self._made.result()
            replace(found, attributes={**found.attributes, **attributes}).save(self._file)


class TrainingMonitor(_Observer[Monitor]):
    """Measures the sharpness after steps; see `hesspec.stability.monitor`."""

    def __init__(self, run: TrainingRun, train_set: Dataset, settings: MonitorSettings) -> None:
        super().__init__(run, train_set, settings.samples, run.observed("monitor"))
        self._settings = settings

    def _make(self, network: nn.Module, stepper: Stepper) -> Monitor:
        every, tolerance = self._settings.every, self._settings.tolerance
        return monitor(network, self._loss, self._batches, stepper.optimizers[0], every=every, tolerance=tolerance)

    def after(self, network: nn.Module, stepper: Stepper, step: int) -> None:
        """Measure, if the step is due."""
        self._of(network, stepper)(step)


class TrainingShares(_Observer[ShareMonitor]):
    """Measures the shares of gradient, momentum and update before steps; see `hesspec.optim.monitor_shares`."""

    def __init__(self, run: TrainingRun, train_set: Dataset, settings: ShareSettings) -> None:
        super().__init__(run, train_set, settings.samples, run.observed("shares"))
        self._settings = settings

    def _make(self, network: nn.Module, stepper: Stepper) -> ShareMonitor:
        chosen = self._settings
        return monitor_shares(
            network,
            self._loss,
            self._batches,
            stepper.vectors if isinstance(stepper, GaussNewtonStepper) else stepper.optimizers,
            every=chosen.every,
            k=chosen.eigenvectors,
            steps=chosen.products,
        )

    def before(self, network: nn.Module, stepper: Stepper, step: int) -> None:
        """Measure, if the step is due."""
        self._of(network, stepper)(step)


def monitors_of(run: TrainingRun, train_set: Dataset) -> dict[str, TrainingMonitor | TrainingShares]:
    """Return what is measured during a training, by name."""
    settings = run.settings
    found: dict[str, TrainingMonitor | TrainingShares] = {}
    if settings.monitor is not None:
        found["monitor"] = TrainingMonitor(run, train_set, settings.monitor)
    if settings.shares is not None:
        found["shares"] = TrainingShares(run, train_set, settings.shares)
    return found
