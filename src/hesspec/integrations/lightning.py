"""Callback for Lightning."""
# ruff: noqa: E402 - what is missing is named before it is imported

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from hesspec.backend.extras import require
from hesspec.integrations.measuring import Measuring
from hesspec.operators.risk.losses import LossFunction

require("LightningCallback", "hesspec[lightning]", "lightning")

from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["LightningCallback"]


class LightningCallback(Callback):
    """Measures spectra during a training by Lightning, and writes them to a folder and to the trainer's loggers.

    The model is measured in evaluation mode. Its weights, the modes of its modules, gradients and random states are
    left unchanged, so the callback does not change the training. All ranks measure together and share the data; rank 0
    writes the files. Spectra in the folder are not measured again when the trainer resumes from a checkpoint; those of
    epochs or steps that it repeats with other weights are replaced.

    Parameters
    ----------
    folder : path
        Folder for the spectra, a separate one for each training; see `hesspec.study.SpectrumRecorder`.
        `hesspec report FOLDER` shows them, and `hesspec.study.open` reads them.
    loss_fn : callable
        See `hesspec.Hessian`.
    data : mapping of str to iterable
        Data sets by split, such as {"train": batches, "test": loader}: the same batches in the same order in each pass,
        without augmentation. On several ranks, all of the data on each, not a share of it.
    matrices : sequence of str
        Names of matrices, such as "hessian", "g", "h".
    at_epochs, at_steps : collection of int, optional
        Numbers of completed epochs, or of completed steps (`Trainer.global_step`), at which to measure; 0 is the
        initialisation. Every 100th is `range(0, 10_000, 100)`. By default all epochs.
    module : str, optional
        Name of the submodule that is measured; by default the whole `LightningModule`, by its `forward`.
    **options
        Further arguments of `hesspec.study.SpectrumRecorder`: steps, probes, seed, params, memory, attributes and
        progress.

    Raises
    ------
    ModuleNotFoundError
        If Lightning is not installed.
    ValueError
        If an argument is invalid.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        loss_fn: LossFunction,
        data: Mapping[str, Iterable[Any]],
        matrices: Sequence[str] = ("Hessian",),
        *,
        at_epochs: Collection[int] | None = None,
        at_steps: Collection[int] | None = None,
        module: str = "",
        **options: Any,
    ) -> None:
        self._measuring = Measuring(folder, loss_fn, data, matrices, at_epochs, at_steps, options)
        self._folder, self._module = os.fspath(folder), module
        # Number of steps at which the last epoch ended.
        self._ended = 0

    @property
    def state_key(self) -> str:
        """Key of this callback in checkpoints; a trainer may have several."""
        return self._generate_state_key(folder=self._folder)

    def state_dict(self) -> dict[str, Any]:
        """Return what checkpoints store: the identifier of the training, and the step at which an epoch ended."""
        return {"training_id": self._measuring.recorder.training_id, "ended": self._ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._measuring.recorder.training_id, self._ended = str(state_dict["training_id"]), int(state_dict["ended"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where the training starts or resumes."""
        step, progress = trainer.global_step, trainer.fit_loop.epoch_loop.batch_progress
        # Checkpoints may be written within epochs, and after the last batch of one before these calls.
        whole = step == self._ended or progress.is_last_batch
        epoch = self._epoch(trainer, 0 if whole else progress.current.completed)
        self._measuring.begin(self._model(pl_module), epoch, step, _loggers(trainer), whole=whole)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure after a step."""
        if self._measuring.needs_steps:
            epoch = self._epoch(trainer, batch_idx + 1)
            self._measuring.step_ended(self._model(pl_module), epoch, trainer.global_step, _loggers(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure after an epoch."""
        # The trainer counts an epoch after these calls.
        epoch, self._ended = trainer.current_epoch + 1, trainer.global_step
        self._measuring.epoch_ended(self._model(pl_module), epoch, self._ended, _loggers(trainer))

    def _epoch(self, trainer: Trainer, batches: int) -> float:
        """Number of completed epochs, with the part of the current one if its number of batches is known."""
        count = trainer.num_training_batches
        return trainer.current_epoch + (batches / count if math.isfinite(count) else 0.0)

    def _model(self, pl_module: LightningModule) -> nn.Module:
        try:
            found: nn.Module = pl_module.get_submodule(self._module)
        except AttributeError as error:
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise ValueError(f"The module has no submodule {self._module!r}; it has {names}.") from error
        return found


def _loggers(trainer: Trainer) -> list[Any]:
    """Return the trainer's loggers on the rank that logs."""
    return list(trainer.loggers) if trainer.is_global_zero else []
