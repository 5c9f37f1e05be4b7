"""The demo: the study of the preset `demo`, as in arXiv 1811.07062, with figures and a report."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from hesspec.applications.class_structure.figure import plot_structure
from hesspec.applications.class_structure.record import ClassStructure
from hesspec.backend.files import atomic_path
from hesspec.backend.progress import Progress
from hesspec.matrices import DEFAULT_MATRICES, symbol_of
from hesspec.plot import plot_multiples, plot_spectrum, plot_training
from hesspec.report import write_report
from hesspec.spectra.record import load
from hesspec.spectra.spectrum import Spectrum
from hesspec.study import EpochRecord, StudyConfig, load_study, run_study
from hesspec.study.store import STRUCTURE, tasks_of
from hesspec.study.study_folder import read_study

__all__ = ["CHECKPOINTS", "Demo", "demo", "demo_study", "read_demo"]

CHECKPOINTS = ("initialisation", "middle", "end")
"""Names of the measured epochs, in order."""

# Share of figures and report in the total work, measured; used to estimate the time left.
PAGE_SHARE = 0.1

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Demo:
    """Results of the demo.

    Parameters
    ----------
    history : list of EpochRecord
        Training, epoch by epoch.
    spectra : dict of (str, str, str) to Spectrum
        Spectra by checkpoint, split and matrix.
    structure : ClassStructure
        Class structure of the outliers of the Hessian at the end of training, on the training set.
    weights : dict of str to Path
        Files of the weights by checkpoint.
    """

    history: list[EpochRecord]
    spectra: dict[Key, Spectrum]
    structure: ClassStructure
    weights: dict[str, Path]


def demo_study(seed: int = 0) -> StudyConfig:
    """Return the preset `demo` with a seed of the weights, the choice and order of the samples, and the probes."""
    study = load_study("demo").model_dump(mode="json", exclude_none=True)
    return StudyConfig.model_validate({**study, "seeds": [seed], "measure": {**study["measure"], "seed": seed}})


def demo(study: StudyConfig, folder: str | os.PathLike[str], *, on_progress: Progress | None = None) -> Demo:
    """Run the study of the demo, or what is left of it, and write `figures/*.png` and `report.html` into its folder.

    Parameters
    ----------
    study : StudyConfig
        From `demo_study`, or one of the same kind: a single training, measured at three epochs.
    folder : path
        Folder of the study; new, empty, or that of the same study, which is resumed.
    on_progress : callable, optional
        Called frequently with a description of the current activity, the work done, and the total work.

    Returns
    -------
    Demo

    Raises
    ------
    FileExistsError
        If the folder has other files, or is a file.
    StudyError, OSError
        See `hesspec.study.run_study`.

    Notes
    -----
    A single thread is used, regardless of the number of cores, so that the same seed gives bitwise identical numbers on
    all processors of one kind. It is also the safe choice: if other programs keep the cores busy, threads that wait for
    one another in each of these small operations made a matvec ten times slower.
    """
    target = Path(folder)
    _check_free(target, study)
    report: Progress = (lambda *_: None) if on_progress is None else on_progress
    work = 0.0

    def of_study(what: str, done: float, total: float | None) -> None:
        nonlocal work
        work = total or 0.0
        report(what, (1 - PAGE_SHARE) * done, total)

    with _one_thread():
        run_study(study, target, on_progress=of_study)
    report("figures and report", (1 - PAGE_SHARE) * work, work)
    result = read_demo(target)
    for name, figure in _figures(result).items():
        with atomic_path(target / "figures" / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=200)
    write_report(target)
    return result


def read_demo(folder: str | os.PathLike[str]) -> Demo:
    """Read the results of a demo that is complete.

    Raises
    ------
    FileNotFoundError
        If the folder has no study, or a result is missing.
    ValueError
        If a file is damaged.
    """
    (task,) = tasks_of(read_study(folder), Path(folder))
    run = task.best
    if run is None:
        raise FileNotFoundError(f"The demo in {os.fspath(folder)!r} is not complete; run the same command again.")
    names = dict(zip(task.epochs, CHECKPOINTS, strict=True))
    results = {
        (names[place.epoch], place.split, place.what): load(run.result(place, task.measure))
        for place in task.measurements
    }
    return Demo(
        history=run.history,
        spectra={key: found for key, found in results.items() if isinstance(found, Spectrum)},
        structure=next(found for key, found in results.items() if key[1:] == ("train", STRUCTURE)),
        weights={name: run.weights(epoch) for epoch, name in names.items()},
    )


def _check_free(folder: Path, study: StudyConfig) -> None:
    """Raise FileExistsError for a file, and for a folder with anything but this study in it."""
    if folder.is_file():
        raise FileExistsError(f"{str(folder)!r} is a file; the demo writes into a folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        resumed = read_study(folder) == study
    except (FileNotFoundError, ValueError):
        resumed = False
    if not resumed:
        raise FileExistsError(f"The folder {str(folder)!r} is not empty; delete it, or choose another one.")


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _figures(result: Demo) -> Mapping[str, Figure]:
    """Figures of the demo by the names of their files."""
    spectra = result.spectra

    def of(checkpoint: str, split: str) -> dict[str, Spectrum]:
        return {symbol_of(matrix): spectra[checkpoint, split, matrix] for matrix in DEFAULT_MATRICES}

    at_end = "small_cnn on digits, end of training"
    sets = {"train": "training set", "test": "test set"}
    figures = {f"end-{split}": plot_spectrum(of("end", split), title=f"{at_end}, {sets[split]}") for split in sets}
    figures["end-train-and-test"] = plot_spectrum(
        {f"Hess, {sets[split]}": spectra["end", split, "Hessian"] for split in sets}, title=at_end
    )
    figures["end-train-scree"] = plot_spectrum(of("end", "train"), kind="scree", title=f"{at_end}, training set")
    figures["training-train"] = plot_multiples(
        {checkpoint: of(checkpoint, "train") for checkpoint in CHECKPOINTS},
        title="small_cnn on digits through training, training set",
    )
    # H has no outliers to follow.
    for matrix in ("Hessian", "GaussNewton"):
        figures[f"training-{matrix}"] = plot_training(
            {checkpoint: spectra[checkpoint, "train", matrix] for checkpoint in CHECKPOINTS},
            title=f"small_cnn on digits: {symbol_of(matrix)} through training, training set",
        )
    figures["end-train-class-structure"] = plot_structure(
        result.structure, spectra["end", "train", "GaussNewton"], title=f"{at_end}, training set"
    )
    return figures
