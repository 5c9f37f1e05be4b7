"""Measurements at chosen epochs or steps, on all ranks, and their logging: what the callbacks of all trainers share."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import nn

from hesspec.operators.risk.losses import LossFunction
from hesspec.study.recorder import SpectrumRecorder

__all__ = ["Measuring"]


class Measuring:
    """Measurements at the requested epochs or steps, in a training that may be resumed.

    The trainer calls `begin` where it starts or resumes, and `epoch_ended` or `step_ended` after each epoch or step.
    A measurement that is due where it resumes is made if it is missing: the training may have been killed between
    its checkpoint and the measurement.

    All ranks of a distributed training measure together: each has the same weights, or a part of them, so none would
    have anything else to do, and a rank that went on would wait in its next collective.

    Parameters
    ----------
    folder, loss_fn, data, matrices
        See `hesspec.study.SpectrumRecorder`.
    at_epochs, at_steps : collection of int, optional
        Numbers of completed epochs, or of completed steps, at which to measure; by default all epochs.
    options : mapping
        Further arguments of the recorder.

    Raises
    ------
    ValueError
        If both collections are given, or an argument of the recorder is invalid.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        loss_fn: LossFunction,
        data: Mapping[str, Iterable[Any]],
        matrices: Sequence[str],
        at_epochs: Collection[int] | None,
        at_steps: Collection[int] | None,
        options: Mapping[str, Any],
    ) -> None:
        if at_epochs is not None and at_steps is not None:
            raise ValueError("Both at_epochs and at_steps are given; a training is measured by epochs or by steps.")
        for name, numbers in (("at_epochs", at_epochs), ("at_steps", at_steps)):
            if numbers is not None and not isinstance(numbers, Collection):
                raise ValueError(
                    f"{name} is {numbers!r}; it must be a collection of numbers, such as [0, 1, 10], or "
                    "range(0, 10_000, 100) for every 100th."
                )
        self.recorder = SpectrumRecorder(folder, loss_fn, data, matrices, **options)
        self._epochs, self._steps = at_epochs, at_steps
        self._last = 0

    @property
    def needs_steps(self) -> bool:
        """Whether measurements are at steps rather than at epochs."""
        return self._steps is not None

    def begin(self, model: nn.Module, epoch: float, step: int, log_to: Any, *, whole: bool) -> None:
        """Measure where the training starts or resumes, after `epoch` epochs; `whole` if none of them is a part."""
        self.recorder.group = dist.group.WORLD if dist.is_initialized() and dist.get_world_size() > 1 else None
        self._last = step - 1
        self.step_ended(model, epoch, step, log_to)
        if whole:
            self.epoch_ended(model, round(epoch), step, log_to)

    def epoch_ended(self, model: nn.Module, epoch: int, step: int, log_to: Any) -> None:
        """Measure if the epoch is due."""
        if self._steps is None and (self._epochs is None or epoch in self._epochs):
            self.recorder(model, epoch, step=step, log_to=log_to)

    def step_ended(self, model: nn.Module, epoch: float, step: int, log_to: Any) -> None:
        """Measure if this step is due, or one since the last call: several optimisers count several steps at once."""
        last, self._last = self._last, step
        if self._steps is not None and any(number in self._steps for number in range(last + 1, step + 1)):
            self.recorder(model, float(epoch), step=step, log_to=log_to)
