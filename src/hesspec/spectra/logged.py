"""Method of a spectrum that writes it to an experiment tracker."""

from __future__ import annotations

from typing import Any

__all__ = ["Logged"]


class Logged:
    """Base class of results that can be written to an experiment tracker."""

    def log_to(self: Any, writer: Any, *, step: int | None = None, name: str | None = None) -> None:
        """Write numbers, a figure and histograms of the spectrum to an experiment tracker.

        Numbers are those of `hesspec show --csv` that can change (`NAME/largest`, `NAME/trace`, `NAME/outliers` and so
        on), in units of eigenvalues where they have a unit; `NAME/spectrum` is the figure of `plot`. Histograms count
        eigenvalues: `NAME/eigenvalues` over their values, `NAME/log10_magnitudes` over log10 of their absolute values,
        without those that rounding does not tell from zero.

        Parameters
        ----------
        writer : object
            A `torch.utils.tensorboard.SummaryWriter`; a W&B run; an MLflow run, such as `mlflow.active_run()`, whose
            histograms are left out, and whose figures are artifacts; an `accelerate.Accelerator`, for its trackers; a
            logger of Lightning, of which those that are not for one of these three get the numbers only, as
            `CSVLogger`; or a list of them.
        step : int, optional
            Training step. W&B draws the values against `NAME/step`, or `trainer/global_step` for Lightning's logger,
            so steps may be those of epochs, whatever else is logged.
        name : str, optional
            First part of the names. By default `hesspec/SPLIT/MATRIX`, from the attributes.

        Raises
        ------
        ValueError
            If the writer is of another kind, or the step is negative.
        RuntimeError
            If a tracker cannot store the spectrum, as on a full disk; the message names it and its error. Other
            trackers of a list have the spectrum.
        """
        from hesspec.integrations.loggers import log_spectrum  # noqa: PLC0415 - a layer above, asked only here

        log_spectrum(writer, self, step=step, name=name)
