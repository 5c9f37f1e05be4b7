"""Monitor of the sharpness during a training of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from hesspec.applications.stability.monitoring import Monitor, monitor
from hesspec.study.datasets import Dataset
from hesspec.study.losses import LOSSES
from hesspec.study.measuring import Attribute
from hesspec.study.optimizers import Stepper
from hesspec.study.store import TrainingRun
from hesspec.study.training import MonitorSettings

__all__ = ["TrainingMonitor"]

# Samples in a pass of the monitor.
BATCH = 256


class TrainingMonitor:
    """Measures the sharpness of a network with its training samples; an `Observer` of the training.

    Parameters
    ----------
    run : TrainingRun
        Training, whose settings have a monitor.
    network : torch.nn.Module
    train_set : Dataset
    """

    def __init__(self, run: TrainingRun, network: nn.Module, train_set: Dataset) -> None:
        self._run, self._network = run, network
        count = len(train_set) if self._settings.samples is None else self._settings.samples
        part = replace(train_set, inputs=train_set.inputs[:count], targets=train_set.targets[:count])
        self._batches = part.batches(BATCH)
        self._monitor: Monitor | None = None
        self._restored: Mapping[str, Tensor] = {}

    @property
    def _settings(self) -> MonitorSettings:
        settings = self._run.settings.monitor
        if settings is None:
            raise ValueError("The training has no monitor.")
        return settings

    def __call__(self, network: nn.Module, stepper: Stepper, step: int) -> None:
        """Measure after a step, if it is due."""
        self._of(network, stepper)(step)

    def _of(self, network: nn.Module, stepper: Stepper) -> Monitor:
        if self._monitor is None:
            settings = self._settings
            self._monitor = monitor(
                network,
                LOSSES[self._run.settings.loss],
                self._batches,
                stepper.optimizers[0],
                every=settings.every,
                tolerance=settings.tolerance,
            )
            if self._restored:
                self._monitor.load_state_dict(self._restored)
        return self._monitor

    def state(self) -> dict[str, Tensor]:
        """State of the monitor."""
        return dict(self._restored) if self._monitor is None else self._monitor.state_dict()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state of the monitor."""
        self._restored = dict(tensors)

    def write(self, attributes: Mapping[str, Attribute]) -> None:
        """Write what was measured so far, as a `hesspec.stability.StabilityRun`, with attributes of the training."""
        if self._monitor is not None:
            found = self._monitor.result()
            replace(found, attributes={**found.attributes, **attributes}).save(self._run.monitored)
