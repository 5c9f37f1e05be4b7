"""Storage of studies: a folder for each training, with files under keys of everything that they depend on."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from hesspec.backend.files import LONGEST_NAME, safe_name
from hesspec.backend.netcdf import NewerFormatError
from hesspec.spectra.record import load
from hesspec.spectra.study_names import HISTORY_FILE, SCRATCH, SGD
from hesspec.study.checkpoints import has_training_state, is_whole
from hesspec.study.config import END, DataConfig, MeasureConfig, OptimizerConfig, StudyConfig
from hesspec.study.datasets import Dataset, load_dataset
from hesspec.study.folders import RUNS, check_there, remove_left, without_links
from hesspec.study.json_files import read_history, read_json, write_json
from hesspec.study.requested import axes_of
from hesspec.study.settings import MonitorSettings, ShareSettings, TrainingSettings
from hesspec.study.start_config import StartConfig
from hesspec.study.starting import Start, start_of
from hesspec.study.study_folder import read_code
from hesspec.study.training import EpochRecord

__all__ = [
    "RUNS",
    "Measurement",
    "Task",
    "TrainingRun",
    "is_whole_result",
    "key_of",
    "tasks_of",
]

DIVERGED: Final = "diverged.json"
STRUCTURE, EVIDENCE = "ClassStructure", "Evidence"

# Part of every key, so that results of versions that train or measure differently are not mixed.
FORMAT = 1
KEY_DIGITS = 10


def key_of(content: dict[str, Any]) -> str:
    """Key of a result or a task, part of file names: a digest of everything that it depends on."""
    text = json.dumps({"format": FORMAT, **content}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


@dataclass(frozen=True)
class Measurement:
    """Measurement of one checkpoint: a spectrum, the class structure, or the evidence of the Laplace approximation.

    Parameters
    ----------
    epoch, split
    what : str
        Name of a matrix, "ClassStructure" or "Evidence".
    """

    epoch: int
    split: str
    what: str


@dataclass(frozen=True)
class TrainingRun:
    """Training with one learning rate, and the folder of its results.

    Parameters
    ----------
    folder : Path
        Folder of the study.
    data : DataConfig
    network : str
    samples_per_class : int
    test_samples_per_class : int or None
    settings : TrainingSettings
        Training settings; the seed also determines the initialisation and the choice of samples.
    code : str
        Digest of the user's own code or text for the network or the data set; empty if they are hesspec's.
    start : Start or None
        Weights to start from; None for the network's own initialisation.
    """

    folder: Path
    data: DataConfig
    network: str
    samples_per_class: int
    test_samples_per_class: int | None
    settings: TrainingSettings
    code: str = ""
    start: Start | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the weights and the training record; the data folder is not part of it."""
        return {
            "dataset": self.data.name,
            "size": self.data.size,
            **({"tokenizer": True} if self.data.tokenizer is not None else {}),
            **({"pool": self.data.pool} if self.data.pool != 1 else {}),
            "network": self.network,
            "samples_per_class": self.samples_per_class,
            "test_samples_per_class": self.test_samples_per_class,
            "settings": self.settings.identity(),
            **({"code": self.code} if self.code else {}),
            **({"start": self.start.identity} if self.start is not None else {}),
        }

    def dataset(self, split: str) -> Dataset:
        """Load the training set or the test set; raises the errors of `load_dataset`."""
        train = split == "train"
        return load_dataset(
            self.data.name,
            split,
            samples_per_class=self.samples_per_class if train else self.test_samples_per_class,
            folder=self.data.folder,
            size=self.data.size,
            # One test set for all repetitions.
            seed=self.settings.seed if train else 0,
            tokenizer=self.data.tokenizer,
            pool=self.data.pool,
        )

    @property
    def start_name(self) -> str:
        """Name of the start."""
        return SCRATCH if self.start is None else self.start.name

    @property
    def what(self) -> str:
        """Network, optimiser, start and data set as text."""
        by = "" if self.settings.optimizer == SGD else f" by {self.settings.optimizer}"
        start = "" if self.start is None else f" from {self.start.name}"
        return f"{self.network}{by}{start} on {self.data.name}"

    @property
    def path(self) -> Path:
        """Folder of this training."""
        settings = self.settings
        by = "" if settings.optimizer == SGD else f"-{settings.optimizer}"
        of = "" if self.start is None else f"-from-{safe_name(self.start.name)}"
        what = f"{safe_name(self.data.name)}-{safe_name(self.network)}{by}{of}"
        which = f"-n{self.samples_per_class}-seed{settings.seed}-lr{settings.learning_rate:g}-{key_of(self.identity)}"
        # The key distinguishes networks whose names are shortened.
        return self.folder / RUNS / f"{what[: LONGEST_NAME - len(which)]}{which}"

    def made(self) -> Path:
        """Create the folder of this training if it is missing, and remove files left by killed processes.

        Raises
        ------
        OSError
            If the folder of the study does not exist, or has a symbolic link instead of a folder.
        """
        check_there(self.folder)
        remove_left(without_links(self.folder, self.path))
        return self.path

    @property
    def history(self) -> list[EpochRecord]:
        """Records of the epochs so far; empty if it has not started. Raises the errors of `read_history`."""
        return read_history(self.path / HISTORY_FILE, self.settings.epochs)

    @property
    def diverged(self) -> str:
        """Why the training diverged; empty if it has not. Raises ValueError if the file with the reason is damaged."""
        file = self.path / DIVERGED
        if not file.is_file():
            return ""
        content = read_json(file)
        if not isinstance(content, dict) or not isinstance(content.get("reason"), str):
            raise ValueError(f"The file {str(file)!r} is damaged: it gives no reason. Delete it to train again.")
        return str(content["reason"])

    @property
    def ended(self) -> bool:
        """Whether the training is complete, or has diverged."""
        if self.diverged or len(self.history) <= self.settings.epochs:
            return bool(self.diverged)
        return all(is_whole_result(self.observed(name)) for name in self.settings.observers)

    @property
    def score(self) -> tuple[float, float]:
        """Test error and test loss after the last epoch so far, for comparing trainings."""
        last = self.history[-1]
        return last.test_error, last.test_loss

    def write_history(self, history: list[EpochRecord]) -> None:
        """Write the records."""
        write_json(self.path / HISTORY_FILE, [asdict(record) for record in history])

    def write_diverged(self, reason: str) -> None:
        """Write why the training diverged."""
        write_json(self.path / DIVERGED, {"reason": reason})

    def observed(self, name: str) -> Path:
        """File of what "monitor" or "shares" measured during the training."""
        return self.path / f"{name}.nc"

    def weights(self, epoch: int) -> Path:
        """File of the weights after an epoch."""
        return self.path / f"epoch-{epoch:04}.safetensors"

    def optimizer(self, epoch: int) -> Path:
        """File of the optimiser's state after an epoch."""
        return self.path / f"optimizer-{epoch:04}.safetensors"

    def has_weights(self, epoch: int) -> bool:
        """Whether the weights after an epoch exist and are valid."""
        return is_whole(self.weights(epoch))

    def resumable(self) -> list[int]:
        """Epochs from which the training can be resumed, ascending."""
        known = len(self.history)
        return [
            epoch
            for epoch, file in sorted(self._kept("optimizer"))
            if epoch < known and has_training_state(file) and self.has_weights(epoch)
        ]

    def keep_only(self, epochs: set[int], *, optimizer: int | None) -> None:
        """Remove weights of all other epochs, and the optimiser's state of all epochs but one."""
        for epoch, file in [*self._kept("epoch")]:
            if epoch not in epochs:
                file.unlink()
        for epoch, file in [*self._kept("optimizer")]:
            if epoch != optimizer:
                file.unlink()

    def _kept(self, what: str) -> Iterator[tuple[int, Path]]:
        """Epochs and files of weights, or of states of the optimiser; other files are the user's own."""
        for file in self.path.glob(f"{what}-*.safetensors"):
            found = re.fullmatch(rf"{what}-(\d{{4,}})", file.stem)
            if found is not None:
                yield int(found[1]), file

    def result(self, measurement: Measurement, how: MeasureConfig) -> Path:
        """File of a measurement."""
        of_spectra = {"steps": how.steps, "probes": how.probes, "seed": how.seed, "params": how.params}
        if how.samples is not None:
            of_spectra["samples"] = how.samples
        key = key_of({**self.identity, **asdict(measurement), **of_spectra})
        name = f"epoch-{measurement.epoch:04}-{measurement.split}-{measurement.what}-{key}.nc"
        return self.path / name


@dataclass(frozen=True)
class Task:
    """Task: one network on one data set at one sample size with one seed, trained with each learning rate."""

    runs: tuple[TrainingRun, ...]
    measure: MeasureConfig

    @property
    def name(self) -> str:
        """Name as text."""
        run = self.runs[0]
        return f"{run.what}, n = {run.samples_per_class}, seed {run.settings.seed}"

    @property
    def epochs(self) -> list[int]:
        """Epochs to measure after, ascending."""
        last = self.runs[0].settings.epochs
        return sorted({last if epoch == END else epoch for epoch in self.measure.epochs})

    @property
    def measurements(self) -> list[Measurement]:
        """All requested measurements, in the order of training."""
        how = self.measure

        def of(epoch: int, split: str) -> Iterator[str]:
            yield from how.matrices
            if how.structure is True or (how.structure == END and epoch == self.epochs[-1]):
                yield STRUCTURE
            # The evidence comes after the spectrum that it is computed from.
            if how.laplace and split == "train":
                yield EVIDENCE

        return [
            Measurement(*place, what) for place in itertools.product(self.epochs, how.splits) for what in of(*place)
        ]

    @property
    def best(self) -> TrainingRun | None:
        """The training with the lowest final test error, and of these with the lowest test loss.

        None before all have ended, and if all have diverged.
        """
        if not all(run.ended for run in self.runs):
            return None
        return min((run for run in self.runs if not run.diverged), key=lambda run: run.score, default=None)

    @property
    def diverged(self) -> str:
        """Why there is nothing to measure; empty unless all trainings have diverged."""
        if not all(run.diverged for run in self.runs):
            return ""
        lowest = min(self.runs, key=lambda run: run.settings.learning_rate)
        return (
            f"All trainings diverged; use lower learning rates than {lowest.settings.learning_rate:g}. "
            f"{lowest.diverged}"
        )

    @property
    def unreadable(self) -> Exception | None:
        """Why the records of its trainings cannot be read; None if they can."""
        try:
            self.done, self.diverged  # noqa: B018 - they read all of the records
        except (ValueError, OSError) as error:
            return error
        return None

    @property
    def missing(self) -> list[Measurement]:
        """Measurements that do not exist or whose file is damaged."""
        best = self.best
        return [m for m in self.measurements if best is None or not is_whole_result(best.result(m, self.measure))]

    @property
    def done(self) -> bool:
        """Whether nothing is missing."""
        return self.best is not None and not self.missing


def is_whole_result(file: Path) -> bool:
    """Whether a file contains a complete result of a measurement, or one from a later version of hesspec.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    if not file.is_file():
        return False
    state = file.stat()
    return _is_result(file, (state.st_ino, state.st_size, state.st_mtime_ns))


@cache
def _is_result(file: Path, _state: tuple[int, ...]) -> bool:
    try:
        load(file)
    except NewerFormatError:
        return True  # it contains more than this version could write
    except ValueError:
        return False
    return True


def tasks_of(config: StudyConfig, folder: Path, code: Mapping[str, str] | None = None) -> list[Task]:
    """List all tasks of a study, small sample sizes first, so that first results appear early.

    Parameters
    ----------
    config : StudyConfig
    folder : Path
    code : mapping, optional
        Digests from `code_of`. By default those of the last run of the study, so that its results can be read without
        the user's code, or after it has changed.
    """
    code = read_code(folder) if code is None else code
    study = (config, folder, code)
    tasks = [
        Task(
            tuple(
                TrainingRun(
                    folder=folder,
                    data=data,
                    network=network,
                    samples_per_class=count,
                    test_samples_per_class=config.test_samples_per_class,
                    settings=_settings(config, data, optimizer, rate, seed),
                    code=" ".join(code[name] for name in (data.name, network) if name in code),
                    start=start_of(
                        start, code, (network, seed), _pretraining(start, study, (network, optimizer, seed))
                    ),
                )
                for rate in config.rates_of(optimizer)
            ),
            config.measure,
        )
        for data, network, optimizer, start, seed, count in axes_of(config)
    ]
    return sorted(tasks, key=lambda task: task.runs[0].samples_per_class)


def _pretraining(
    start: StartConfig, study: tuple[StudyConfig, Path, Mapping[str, str]], place: tuple[str, OptimizerConfig, int]
) -> TrainingRun | None:
    """Return the training on other data that a start asks for, by the same optimiser and seed; None for a file."""
    if start.dataset is None or start.samples_per_class is None:
        return None
    (config, folder, code), (network, optimizer, seed) = study, place
    of_data = start.model_dump(include={"folder", "size", "pool", "tokenizer", "epochs"})
    data = DataConfig.model_validate({"name": start.dataset, **of_data})
    rate = config.rates_of(optimizer)[0] if start.learning_rate is None else start.learning_rate
    return TrainingRun(
        folder=folder,
        data=data,
        network=network,
        samples_per_class=start.samples_per_class,
        test_samples_per_class=config.test_samples_per_class,
        settings=replace(_settings(config, data, optimizer, rate, seed), monitor=None, shares=None),
        code=" ".join(code[name] for name in (data.name, network) if name in code),
    )


def _settings(
    config: StudyConfig, data: DataConfig, optimizer: OptimizerConfig, rate: float, seed: int
) -> TrainingSettings:
    training, monitor, shares = config.training, config.monitor, config.shares
    return TrainingSettings(
        epochs=data.epochs or training.epochs,
        learning_rate=rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay if optimizer.weight_decay is None else optimizer.weight_decay,
        batch_size=training.step_samples,
        drops=tuple(training.drops),
        drop_factor=training.drop_factor,
        schedule=training.schedule,
        warmup=training.warmup,
        seed=seed,
        loss=training.loss,
        optimizer=optimizer.name,
        options=tuple(sorted(optimizer.options.items())),
        monitor=None if monitor is None else MonitorSettings(**monitor.model_dump()),
        shares=None if shares is None else ShareSettings(**shares.model_dump()),
    )
