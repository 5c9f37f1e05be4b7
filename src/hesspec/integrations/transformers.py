"""Callback for the `Trainer` of transformers."""
# ruff: noqa: E402 - what is missing is named before it is imported

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from hesspec.backend.extras import require
from hesspec.integrations.measuring import Measuring
from hesspec.operators.risk.losses import LossFunction

require("TransformersCallback", "hesspec[text]", "transformers")

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["TransformersCallback"]


def _own_loss(outputs: Any, _targets: Any) -> Tensor:
    """Return the loss that the model has computed itself."""
    loss: Tensor = outputs.loss
    return loss


class TransformersCallback(TrainerCallback):
    """Measures spectra during a training by the `Trainer` of transformers, and logs them where it logs.

    The model is measured in evaluation mode. Its weights, the modes of its modules, gradients and random states are
    left unchanged, so the callback does not change the training. All ranks measure together and share the data; rank 0
    writes the files. Spectra in the folder are not measured again when the trainer resumes from a checkpoint; those of
    epochs or steps that it repeats with other weights are replaced.

    Spectra are logged to those of `TrainingArguments.report_to` that are W&B, MLflow or TensorBoard. Callbacks cannot
    reach the trainer's own TensorBoard writer, so TensorBoard shows them as the run `spectra`, whose folder is in
    `output_dir/runs`, or in `TENSORBOARD_LOGGING_DIR` if that is set.

    Parameters
    ----------
    folder : path
        Folder for the spectra, a separate one for each training; see `hesspec.study.SpectrumRecorder`.
        `hesspec report FOLDER` shows them, and `hesspec.study.open` reads them.
    data : mapping of str to iterable
        Data sets by split, such as {"train": batches}: the same batches in the same order in each pass, each a mapping
        with "labels", as data collators give them. On several ranks, all of the data on each, not a share of it.
    matrices : sequence of str
        Names of matrices, such as "hessian", "g", "h".
    loss_fn : callable, optional
        See `hesspec.Hessian`. By default the loss that the model computes itself from the labels.
    at_epochs, at_steps : collection of int, optional
        Numbers of completed epochs, or of completed steps (`TrainerState.global_step`), at which to measure; 0 is the
        initialisation. Every 100th is `range(0, 10_000, 100)`. By default all epochs.
    **options
        Further arguments of `hesspec.study.SpectrumRecorder`: steps, probes, seed, params, memory, attributes and
        progress.

    Raises
    ------
    ModuleNotFoundError
        If transformers is not installed.
    ValueError
        If an argument is invalid.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        data: Mapping[str, Iterable[Any]],
        matrices: Sequence[str] = ("Hessian",),
        *,
        loss_fn: LossFunction = _own_loss,
        at_epochs: Collection[int] | None = None,
        at_steps: Collection[int] | None = None,
        **options: Any,
    ) -> None:
        self._measuring = Measuring(folder, loss_fn, data, matrices, at_epochs, at_steps, options)
        # Entry of the trainer's state; a trainer may have several of these callbacks.
        self._key = f"hesspec {os.fspath(folder)}"
        self._writer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Measure where the training starts or resumes."""
        recorder = self._measuring.recorder
        # Not an `ExportableState`: the trainer would make a new callback, from arguments that it has in JSON.
        every = cast("dict[str, Any]", state.stateful_callbacks)
        stored = every.setdefault(self._key, {"training_id": recorder.training_id})
        recorder.training_id = str(stored["training_id"])
        model: nn.Module = parts["model"]
        epoch, log_to = float(state.epoch or 0), self._writers(args, state)
        self._measuring.begin(model, epoch, state.global_step, log_to, whole=_is_whole(epoch))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """Measure after a step."""
        if self._measuring.needs_steps:
            epoch, log_to = float(state.epoch or 0), self._writers(args, state)
            self._measuring.step_ended(parts["model"], epoch, state.global_step, log_to)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """Measure after an epoch; one that `max_steps` has cut short is not complete."""
        epoch = float(state.epoch or 0)
        if _is_whole(epoch):
            self._measuring.epoch_ended(parts["model"], round(epoch), state.global_step, self._writers(args, state))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """Close the writer of TensorBoard."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _writers(self, args: TrainingArguments, state: TrainerState) -> list[Any]:
        """Return where the trainer logs, on the rank that does."""
        if not state.is_world_process_zero:
            return []
        reporting = list(args.report_to or [])
        writers: list[Any] = []
        if "wandb" in reporting and (wandb := sys.modules.get("wandb")) is not None:
            writers.append(wandb.run)
        if "mlflow" in reporting and (mlflow := sys.modules.get("mlflow")) is not None:
            writers.append(mlflow.active_run())
        if "tensorboard" in reporting:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an optional dependency

                runs = os.environ.get("TENSORBOARD_LOGGING_DIR") or Path(str(args.output_dir)) / "runs"
                self._writer = SummaryWriter(Path(runs).expanduser() / "spectra")
            writers.append(self._writer)
        return [writer for writer in writers if writer is not None]


def _is_whole(epoch: float) -> bool:
    """Whether the trainer's count of epochs, a sum of quotients, is an integer up to rounding."""
    return abs(epoch - round(epoch)) < 1e-6
