"""The demo: train a network as in arXiv 1811.07062 and measure its spectra during training."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn

from hesspec.applications.class_structure.figure import plot_structure
from hesspec.applications.class_structure.record import ClassStructure
from hesspec.backend.files import atomic_path
from hesspec.backend.progress import Meter, Progress
from hesspec.matrices import DEFAULT_MATRICES, symbol_of
from hesspec.plot import plot_multiples, plot_spectrum, plot_training
from hesspec.report import write_report
from hesspec.spectra.spectrum import Spectrum
from hesspec.study import (
    Dataset,
    EpochRecord,
    TrainingSettings,
    load_dataset,
    save_checkpoint,
    small_cnn,
    train,
)
from hesspec.study.measuring import Attribute, measure, measure_structure

__all__ = ["CHECKPOINTS", "Demo", "demo"]

CHECKPOINTS: Final = ("initialisation", "middle", "end")

# From the paper's grid of sample sizes. With all 139 to 146 samples of a class, the demo takes 1.5 times as long.
SAMPLES_PER_CLASS = 71
EPOCHS = 30
# At 0.01 and above, all training samples are classified with near certainty at the end. The test error is then one or
# two points lower, but the curvature on the test set is that of the few samples that are still uncertain, and the
# outliers of some classes sink into the bulk. At 0.005 all ten are separated from it on both sets.
LEARNING_RATE = 0.005

# Cost of an epoch of training, in Lanczos steps for all three matrices on the same samples, and the share of figures
# and report in the total work. Measured; used to estimate the time left.
EPOCH_COST = 0.5
PAGE_SHARE = 0.1
# Cost of the class structure per step in the same unit: three Hessians of the eight thirds, and the traces.
STRUCTURE_COST = 1.5

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Demo:
    """Result of the demo.

    Parameters
    ----------
    report : Path
        HTML page that shows all results.
    history : list of EpochRecord
        Training, epoch by epoch.
    spectra : dict of (str, str, str) to Spectrum
        Spectra by checkpoint, split and matrix.
    structure : ClassStructure
        Class structure of the outliers of the Hessian at the end of training, on the training set.
    """

    report: Path
    history: list[EpochRecord]
    spectra: dict[Key, Spectrum]
    structure: ClassStructure


def demo(
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    steps: int = 64,
    on_progress: Progress | None = None,
) -> Demo:
    """Train `small_cnn` on 710 digits and measure Hess, G and H on the training and test set at three checkpoints.

    Writes `report.html`, `training.json` (a record for each epoch), `checkpoints/CHECKPOINT.safetensors`,
    `spectra/CHECKPOINT-SPLIT-MATRIX.nc`, `spectra/end-train-ClassStructure.nc` and `figures/*.png`, all of them at the
    end: after an error or Ctrl-C the folder is unchanged.

    Parameters
    ----------
    folder : path
        Output folder; must be new or empty, as no file is ever overwritten.
    seed : int
        Random seed of the initial weights, the choice and order of the training samples, and the probes.
    epochs : int
        Epochs of training, at least 3. The checkpoints are the initialisation, the epoch before the learning rate first
        drops, and the end.
    steps : int
        Lanczos steps per spectrum.
    on_progress : callable, optional
        Called frequently with a description of the current activity, the work done, and the total work.

    Returns
    -------
    Demo

    Raises
    ------
    FileExistsError
        If the folder is not empty, or is a file.
    ValueError
        If a number is out of range.
    OSError
        If a file cannot be written.

    Notes
    -----
    The training is that of arXiv 1811.07062: SGD with momentum 0.9, weight decay 5e-4, batches of 128, and a learning
    rate that drops by a factor of 10 at 1/3 and at 2/3 of the epochs. The digits are not padded to 32x32 pixels, as
    8x8 pixels are enough for this network.

    A single thread is used, regardless of the number of cores, so that the same seed gives bitwise identical numbers on
    all processors of one kind. It is also the safe choice: if other programs keep the cores busy, threads that wait for
    one another in each of these small operations made a matvec ten times slower.
    """
    target = Path(folder)
    if target.is_file():
        raise FileExistsError(f"{str(target)!r} is a file; the demo writes into a folder.")
    if target.is_dir() and any(target.iterdir()):
        raise FileExistsError(f"The folder {str(target)!r} is not empty; delete it, or choose another one.")
    if epochs < 3:
        raise ValueError(f"epochs is {epochs}; it must be at least 3, as the learning rate drops twice.")
    existed = target.is_dir()
    target.mkdir(parents=True, exist_ok=True)
    try:
        with _one_thread(), tempfile.TemporaryDirectory(prefix=".unfinished-", dir=target) as temporary:
            # The report shows the name of its folder, which must therefore be the final one.
            work = Path(temporary) / target.resolve().name
            train_set = load_dataset("digits", "train", samples_per_class=SAMPLES_PER_CLASS, seed=seed)
            test_set = load_dataset("digits", "test")
            settings = TrainingSettings(epochs=epochs, learning_rate=LEARNING_RATE, seed=seed)
            samples = len(train_set) + len(test_set)
            before_page = epochs * EPOCH_COST * len(train_set) + len(CHECKPOINTS) * steps * samples
            before_page += STRUCTURE_COST * steps * len(train_set)
            meter = Meter(on_progress, before_page / (1 - PAGE_SHARE))
            history, spectra, structure = _train_and_measure(
                work, train_set, test_set, settings=settings, steps=steps, meter=meter
            )
            meter.report("figures and report")
            _write_records(work / "training.json", history)
            _draw(work / "figures", spectra, structure)
            write_report(work)
            for item in work.iterdir():
                item.rename(target / item.name)
    finally:
        if not existed and not any(target.iterdir()):
            target.rmdir()
    return Demo(target / "report.html", history, spectra, structure)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train_and_measure(
    folder: Path,
    train_set: Dataset,
    test_set: Dataset,
    *,
    settings: TrainingSettings,
    steps: int,
    meter: Meter,
) -> tuple[list[EpochRecord], dict[Key, Spectrum], ClassStructure]:
    """Train, measure, and save checkpoints, spectra and class structure in the folder."""
    checkpoints = dict(zip((0, settings.epochs // 3, settings.epochs), CHECKPOINTS, strict=True))
    spectra: dict[Key, Spectrum] = {}

    def on_epoch(record: EpochRecord) -> None:
        meter.done += EPOCH_COST * len(train_set) if record.epoch else 0
        meter.report("training")

    def on_checkpoint(network: nn.Module, record: EpochRecord) -> None:
        checkpoint = checkpoints[record.epoch]
        epoch: dict[str, Attribute] = {"epoch": record.epoch, "checkpoint": checkpoint}
        metadata = {"network": "small_cnn", "dataset": train_set.name, "seed": settings.seed, **epoch}
        save_checkpoint(
            folder / "checkpoints" / f"{checkpoint}.safetensors",
            network,
            {name: str(value) for name, value in metadata.items()},
        )
        for dataset in (train_set, test_set):
            measured = _measure(
                network, dataset, folder / "spectra", steps=steps, seed=settings.seed, epoch=epoch, meter=meter
            )
            spectra.update({(checkpoint, dataset.split, matrix): found for matrix, found in measured.items()})

    torch.manual_seed(settings.seed)
    network = small_cnn(train_set.channels, train_set.classes, train_set.size)
    history = train(
        network,
        train_set,
        test_set,
        settings,
        checkpoint_epochs=checkpoints,
        on_epoch=on_epoch,
        on_checkpoint=on_checkpoint,
    )
    meter.report("class structure")
    structure = measure_structure(
        network,
        train_set,
        matrices=["Hessian"],
        steps=steps,
        seed=settings.seed,
        batch_size=len(train_set),
        attributes={"network": "small_cnn", "epoch": settings.epochs, "checkpoint": CHECKPOINTS[-1]},
        folder=folder / "spectra",
    )
    meter.done += STRUCTURE_COST * steps * len(train_set)
    return history, spectra, structure


def _measure(
    network: nn.Module,
    dataset: Dataset,
    folder: Path,
    *,
    steps: int,
    seed: int,
    epoch: Mapping[str, Attribute],
    meter: Meter,
) -> dict[str, Spectrum]:
    work = steps * len(dataset)

    def on_progress(matrix: str, done: float, total: float | None) -> None:
        what = f"{symbol_of(matrix)}, {dataset.split} set, {epoch['checkpoint']}"
        meter.report(what, work * done / (total or 1))

    spectra = measure(
        network,
        dataset,
        steps=steps,
        seed=seed,
        batch_size=len(dataset),  # one batch shape, and thus one trace, per matrix and set
        attributes={"network": "small_cnn", **epoch},
        folder=folder,
        on_progress=on_progress,
    )
    meter.done += work
    return spectra


def _write_records(path: Path, history: list[EpochRecord]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps([asdict(record) for record in history], indent=1), encoding="utf-8")


def _draw(folder: Path, spectra: Mapping[Key, Spectrum], structure: ClassStructure) -> None:
    sets = {"train": "training set", "test": "test set"}
    figures = {
        f"end-{split}": plot_spectrum(
            {symbol_of(matrix): spectra["end", split, matrix] for matrix in DEFAULT_MATRICES},
            title=f"small_cnn on digits, end of training, {name}",
        )
        for split, name in sets.items()
    }
    figures["end-train-and-test"] = plot_spectrum(
        {f"Hess, {name}": spectra["end", split, "Hessian"] for split, name in sets.items()},
        title="small_cnn on digits, end of training",
    )
    end = {symbol_of(matrix): spectra["end", "train", matrix] for matrix in DEFAULT_MATRICES}
    title = "small_cnn on digits, end of training, training set"
    figures["end-train-scree"] = plot_spectrum(end, kind="scree", title=title)
    figures["training-train"] = plot_multiples(
        {
            checkpoint: {symbol_of(matrix): spectra[checkpoint, "train", matrix] for matrix in DEFAULT_MATRICES}
            for checkpoint in CHECKPOINTS
        },
        title="small_cnn on digits through training, training set",
    )
    # H has no outliers to follow.
    for matrix in ("Hessian", "GaussNewton"):
        figures[f"training-{matrix}"] = plot_training(
            {checkpoint: spectra[checkpoint, "train", matrix] for checkpoint in CHECKPOINTS},
            title=f"small_cnn on digits: {symbol_of(matrix)} through training, training set",
        )
    figures["end-train-class-structure"] = plot_structure(
        structure, spectra["end", "train", "GaussNewton"], title="small_cnn on digits, end of training, training set"
    )
    for name, figure in figures.items():
        with atomic_path(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=200)
