"""Results of a study as one labelled dataset."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from hesspec.applications.laplace.record import Evidence
from hesspec.backend.text import error_line
from hesspec.spectra.folder import Unread, read_results
from hesspec.spectra.spectrum import Spectrum
from hesspec.spectra.study_names import STUDY_FILE
from hesspec.study.columns import RANKED, SCALARS, UNITS, fill
from hesspec.study.opening_recorded import open_recorded
from hesspec.study.store import EVIDENCE, STRUCTURE, Measurement, Task, TrainingRun, tasks_of
from hesspec.study.study_folder import read_study

__all__ = ["open_study"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

# Quantities of the evidence at the best prior precision, and their units.
EVIDENCES: Final[dict[str, tuple[Callable[[Evidence], float], str]]] = {
    **{
        f"{name}{end}": (partial(Evidence.at_best, name=f"{name}{end}"), unit)
        for name, unit in (("log_evidence", "nats"), ("effective_parameters", "1"))
        for end in ("", "_lower", "_upper")
    },
    "prior_precision": (lambda found: found.best, "1 per squared parameter"),
    "squared_norm": (lambda found: found.squared_norm, "squared parameter"),
}
# Dimensions of what is measured during a training, besides those of the training.
OBSERVED: Final = {
    "sharpness": ("monitored_step",),
    "threshold": ("monitored_step",),
    "dominant_share": ("shared_step", "vector"),
}
RUN_DIMENSIONS: Final = ("dataset", "network", "optimizer", "start", "seed", "samples_per_class")


def open_study(folder: str | os.PathLike[str]) -> xr.Dataset:
    """Read all available results of a study into one labelled dataset.

    Parameters
    ----------
    folder : path
        Folder of a study, with a `study.yaml`, which may be running; or of a `SpectrumRecorder`, or a callback of
        `hesspec.integrations`, during one training.

    Returns
    -------
    xarray.Dataset
        Dimensions `dataset`, `network`, `optimizer`, `start`, `seed`, `samples_per_class`, `epoch` (those that are
        measured), `split`, `matrix`, `rank` and `training_epoch` (all epochs). NaN, and -1 for `track`, where something
        is missing.

        `eigenvalue`, `error_bound` and `outlier` (whether it is one) over all of the first nine and `rank`: resolved
        eigenvalues by decreasing absolute value, labelled by `hesspec.steady_outliers` through the epochs; `track`: the
        number of an outlier's eigenvector, the same at all epochs (see `hesspec.track_outliers`).

        `bulk_low`, `bulk_high`, `trace`, `trace_standard_error`, `effective_rank`, `negative_mass` with its interval,
        `outliers` (their number), `wasserstein_bound`, `matvecs`, `seconds` over the first nine.

        `sharpness` and `threshold` over the first six and `monitored_step`, in studies with `monitor:`; of optimisers
        with a preconditioner, those of the preconditioned Hessian. `dominant_share` over the first six, `shared_step`
        and `vector`, in studies with `shares:`.

        `log_evidence` and `effective_parameters` with the ends of their intervals of 95%, at the `prior_precision` that
        maximises the evidence, and the `squared_norm` of the parameters, over the first six and `epoch`, in studies
        with `measure.laplace`: those of the training set.

        `loss` (mean cross-entropy in nats, or that of the study) and `error` (fraction) over the first six, `split`
        and `training_epoch`; `learning_rate` over the first six: the one that was kept; `parameters` over `dataset`
        and `network`.

        Of a training without a study, the dimensions are `epoch`, `split`, `matrix` and `rank`, with `step` as a
        coordinate of `epoch` (-1 if it is not known), and there are the variables over these dimensions only.

        Results and records that are damaged, or from a later version of hesspec, are skipped. A line for each, with the
        reason, is in the attribute `unread`, and is logged as a warning.

    Raises
    ------
    FileNotFoundError
        If the folder contains neither a study nor spectra of a training.
    ValueError
        If its study file is damaged, or it has spectra of several trainings without one.

    Examples
    --------
    Exponent with which the largest outlier of the Hessian grows with the sample size, at the end of training::

        found = hesspec.study.open("my-study").sel(matrix="Hessian", split="train").isel(epoch=-1, rank=0).squeeze()
        hesspec.fit_power_law(found.samples_per_class, found.eigenvalue)
    """
    unread: Unread = []
    if not (Path(folder) / STUDY_FILE).is_file():
        found = open_recorded(Path(folder), unread)
        _log(unread)
        return found
    config = read_study(folder)
    tasks = tasks_of(config, Path(folder))
    splits, matrices = list(config.measure.splits), list(config.measure.matrices)
    coordinates: dict[str, list[Any]] = {
        "dataset": [data.name for data in config.datasets],
        "network": list(config.networks),
        "optimizer": [optimizer.name for optimizer in config.optimizers],
        "start": [start.name for start in config.start],
        "seed": list(config.seeds),
        "samples_per_class": sorted({task.runs[0].samples_per_class for task in tasks}),
        "epoch": sorted({epoch for task in tasks for epoch in task.epochs}),
        "split": splits,
        "matrix": matrices,
    }
    shown = [_shown(task, unread) for task in tasks]
    spectra: dict[tuple[int, Measurement], Spectrum] = {}
    for index, (task, run) in enumerate(zip(tasks, shown, strict=True)):
        if run is None:
            continue
        files = {
            file: place
            for place in task.measurements
            if place.what not in (STRUCTURE, EVIDENCE) and (file := run.result(place, task.measure)).is_file()
        }
        spectra |= {
            (index, files[file]): spectrum
            for file, spectrum in read_results(files, unread)
            if isinstance(spectrum, Spectrum)
        }
    evidence = [[] if run is None else _evidence(unread, task, run) for task, run in zip(tasks, shown, strict=True)]
    observed: list[dict[str, Any]] = [
        {}
        if run is None
        else {
            name: found
            for name in run.settings.observers
            if (file := run.observed(name)).is_file()
            for _, found in read_results([file], unread)
        }
        for run in shown
    ]
    ranks = max((spectrum.eigenvalues.size for spectrum in spectra.values()), default=0)
    epochs = max(task.runs[0].settings.epochs for task in tasks) + 1
    steps = {
        name: sorted({int(step) for each in observed if name in each for step in each[name].steps})
        for name in ("monitor", "shares")
    }
    vectors = list(dict.fromkeys(str(name) for each in observed if "shares" in each for name in each["shares"].names))
    blank = _Blank(coordinates, ranks, epochs, (steps["monitor"], steps["shares"], vectors), laplace=any(evidence))
    for index, run in enumerate(shown):
        if run is not None:
            blank.add_training(run)
            blank.add_observed(run, observed[index])
            blank.add_evidence(run, evidence[index])
            mine = {place: spectrum for (owner, place), spectrum in spectra.items() if owner == index}
            blank.add_spectra(run, mine)
    _log(unread)
    return blank.dataset(folder, unread)


def _log(unread: Unread) -> None:
    for _, reason in unread:
        logger.warning("left out: %s", reason)


def _evidence(unread: Unread, task: Task, run: TrainingRun) -> list[tuple[int, Evidence]]:
    """Read the evidence of one training, with its epochs."""
    epochs = {run.result(place, task.measure): place.epoch for place in task.measurements if place.what == EVIDENCE}
    read = read_results((file for file in epochs if file.is_file()), unread)
    return [(epochs[file], found) for file, found in read if isinstance(found, Evidence)]


def _shown(task: Task, unread: Unread) -> TrainingRun | None:
    """Return the training that is or, as far as known, will be measured; None if none has begun or can be read."""
    try:
        begun = [run for run in task.runs if run.history and not run.diverged]
        return min(begun, key=lambda run: (not run.ended, run.score), default=None)
    except (ValueError, OSError) as error:
        unread.append((task.runs[0].path, error_line(error)))
        return None


class _Blank:
    """The dataset while it is being filled."""

    def __init__(
        self,
        coordinates: dict[str, list[Any]],
        ranks: int,
        epochs: int,
        observed: Sequence[list[Any]],
        *,
        laplace: bool,
    ) -> None:
        self._coordinates = {**coordinates, "rank": list(range(ranks)), "training_epoch": list(range(epochs))}
        names = ("monitored_step", "shared_step", "vector")
        for name, values in zip(names, observed, strict=True):
            if values:
                self._coordinates[name] = values
        each = (*RUN_DIMENSIONS, "epoch", "split", "matrix")
        history = (*RUN_DIMENSIONS, "split", "training_epoch")
        self._values: dict[str, tuple[tuple[str, ...], Array]] = {
            **{name: self._new((*each, "rank"), blank) for name, blank in RANKED.items()},
            **{name: self._new(each, np.nan) for name in SCALARS},
            "loss": self._new((*RUN_DIMENSIONS, "split", "training_epoch"), np.nan),
            "error": self._new(history, np.nan),
            "learning_rate": self._new(RUN_DIMENSIONS, np.nan),
            "parameters": self._new(("dataset", "network"), np.nan),
        }
        if laplace:
            self._values |= {name: self._new((*RUN_DIMENSIONS, "epoch"), np.nan) for name in EVIDENCES}
        for name, dimensions in OBSERVED.items():
            if set(dimensions) <= self._coordinates.keys():
                self._values[name] = self._new((*RUN_DIMENSIONS, *dimensions), np.nan)

    def _new(self, dimensions: tuple[str, ...], value: float | bool | int) -> tuple[tuple[str, ...], Array]:
        return dimensions, np.full([len(self._coordinates[name]) for name in dimensions], value)

    def _place(self, run: TrainingRun) -> tuple[int, int, int, int, int, int]:
        settings = run.settings
        where = (run.data.name, run.network, settings.optimizer, run.start_name, settings.seed, run.samples_per_class)
        dataset, network, optimizer, start, seed, count = (
            self._coordinates[name].index(value) for name, value in zip(RUN_DIMENSIONS, where, strict=True)
        )
        return dataset, network, optimizer, start, seed, count

    def add_training(self, run: TrainingRun) -> None:
        """Add the records of a training."""
        at = self._place(run)
        self._values["learning_rate"][1][at] = run.settings.learning_rate
        for column, split in enumerate(self._coordinates["split"]):
            for record in run.history:
                values = (
                    (record.train_loss, record.train_error)
                    if split == "train"
                    else (record.test_loss, record.test_error)
                )
                for name, value in zip(("loss", "error"), values, strict=True):
                    self._values[name][1][*at, column, record.epoch] = value

    def add_observed(self, run: TrainingRun, found: dict[str, Any]) -> None:
        """Add what was measured during one training."""
        where, places = self._place(run), self._coordinates
        if "monitor" in found:
            monitored = found["monitor"]
            at = np.searchsorted(places["monitored_step"], monitored.steps)
            sharpness = monitored.preconditioned if monitored.is_preconditioned else monitored.sharpness
            self._values["sharpness"][1][*where, at] = sharpness
            self._values["threshold"][1][*where, at] = monitored.thresholds
        if "shares" in found:
            shares = found["shares"]
            at = np.searchsorted(places["shared_step"], shares.steps)
            for column, name in enumerate(shares.names):
                self._values["dominant_share"][1][*where, at, places["vector"].index(str(name))] = shares.values[
                    :, column
                ]

    def add_evidence(self, run: TrainingRun, evidence: Sequence[tuple[int, Evidence]]) -> None:
        """Add the evidence of one training after each measured epoch, at its best prior precision."""
        for epoch, found in evidence:
            at = (*self._place(run), self._epoch(epoch))
            for name, (value, _) in EVIDENCES.items():
                self._values[name][1][at] = value(found)

    def add_spectra(self, run: TrainingRun, spectra: dict[Measurement, Spectrum]) -> None:
        """Add the spectra of one training, with its outliers tracked from epoch to epoch."""
        where = self._place(run)
        for split, what in {(place.split, place.what) for place in spectra}:
            series = sorted(
                (place for place in spectra if (place.split, place.what) == (split, what)), key=lambda x: x.epoch
            )
            places = [(*where, self._epoch(place.epoch), *self._split_and_matrix(split, what)) for place in series]
            fill({name: values for name, (_, values) in self._values.items()}, places, [spectra[at] for at in series])
            self._values["parameters"][1][where[:2]] = spectra[series[0]].dimension

    def _epoch(self, epoch: int) -> int:
        return self._coordinates["epoch"].index(epoch)

    def _split_and_matrix(self, split: str, matrix: str) -> tuple[int, int]:
        return self._coordinates["split"].index(split), self._coordinates["matrix"].index(matrix)

    def dataset(self, folder: str | os.PathLike[str], unread: Unread) -> xr.Dataset:
        """Return the dataset, including what could not be read."""
        result = xr.Dataset(
            {name: (dimensions, values) for name, (dimensions, values) in self._values.items()},
            coords=self._coordinates,
            attrs={"study": str(folder), "unread": "\n".join(reason for _, reason in unread)},
        )
        laplace = {name: unit for name, (_, unit) in EVIDENCES.items() if name in result}
        for name, unit in {**UNITS, **laplace, "loss": "nats"}.items():
            result[name].attrs["units"] = unit
        return result
