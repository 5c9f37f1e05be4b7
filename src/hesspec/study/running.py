"""Execution of studies: trainings and measurements, each done once in spite of interruptions."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from hesspec.backend.progress import Meter, Progress
from hesspec.errors import NonFiniteError
from hesspec.matrices import MATRICES
from hesspec.operators import GraphCache
from hesspec.study.checking import faults_of
from hesspec.study.checkpoints import load_training_state, load_weights, save_checkpoint, save_training_state
from hesspec.study.config import MeasureConfig, StudyConfig
from hesspec.study.datasets import Dataset
from hesspec.study.digests import code_of
from hesspec.study.evidence import evidence_of
from hesspec.study.failures import noted, raise_failures, refuse_faults
from hesspec.study.folders import check_there
from hesspec.study.locking import lock
from hesspec.study.measuring import Attribute, measure, measure_structure
from hesspec.study.monitoring import TrainingMonitor, TrainingShares, monitors_of
from hesspec.study.networks import build_network
from hesspec.study.store import EVIDENCE, STRUCTURE, Measurement, Task, TrainingRun, tasks_of
from hesspec.study.study_folder import write_study
from hesspec.study.text_files import is_text
from hesspec.study.training import EpochRecord, TrainingState, train

__all__ = ["run_study", "run_task", "work_of"]

logger = logging.getLogger(__name__)


# Work is counted in forward passes of a sample: a training step takes three, one forward and two for the backward pass,
# and a product with a matrix takes `Matrix.tangent` of them.
STEP, EVALUATION = 3.0, 1.0
STRUCTURE_PASSES = 4.0
STRUCTURE_SPECTRA = 3  # of the Hessian, also without class means, and without class and cross-class means
AUTO_STEPS = 64  # number of steps assumed for "auto"
# Share of the time that may be spent on writing states for resuming a training.
SAVING = 0.1
# Seconds between checks of tasks on which other processes are working.
PATIENCE = 2.0


def run_study(
    config: StudyConfig,
    folder: str | os.PathLike[str],
    *,
    device: str = "cpu",
    on_progress: Progress | None = None,
) -> None:
    """Run the remaining part of a study in this process.

    Every training and every measurement is written once, atomically, below `folder/runs`. A study that was killed is
    resumed by the same call, from the last epoch and the last measurement. Several processes, on one machine or on
    several that share the folder, can run the same study: each takes tasks on which no other one works.

    Results belong to the code that computed them. After a change in the user's own module of a network or data set, or
    in the user's own modules that it imports (see `hesspec.study.imports.code_digest`), they are computed again;
    earlier results are kept, and are used again if the change is reverted.

    Parameters
    ----------
    config : StudyConfig
    folder : path
        Folder of the study. Results of an earlier state of the study are kept, and used if they still match.
    device : str
        PyTorch device.
    on_progress : callable, optional
        Called often with a description of the current work, the work done, and the total work.

    Raises
    ------
    FileNotFoundError
        If the folder of the study is removed while it is running.
    StudyError
        If a task failed: a network, a data set or the name of a parameter is invalid, which is checked before anything
        is run or written; or, once all other tasks are done, `run_task` raised an error. The same call retries failed
        tasks.
    """
    target = Path(folder)
    code = code_of(config)
    tasks = tasks_of(config, target, code)
    meter = Meter(on_progress, sum(work_of(task) for task in tasks))
    refuse_faults(faults_of(tasks, on_check=lambda what: meter.report(what, 0.0)), len(tasks))
    write_study(config, target, code)
    networks = Networks(device)
    failures: dict[str, Exception] = {}
    waiting = list(tasks)
    while waiting:
        postponed = []
        for task in waiting:
            check_there(target)
            with lock(task) as mine:
                if mine is None:
                    postponed.append(task)
                    continue
                with noted([task.name], failures):
                    run_task(task, networks, on_progress=meter.report)
                if task.name in failures:
                    logger.info("%s failed: %s", task.name, failures[task.name])
                meter.done += work_of(task)
        if len(postponed) == len(waiting):
            meter.report("waiting for other processes of this study", 0.0)
            time.sleep(PATIENCE)
        waiting = postponed
    check_there(target)
    raise_failures(failures | lost_of(tasks, failures), len(tasks))


def lost_of(tasks: Iterable[Task], failures: Mapping[str, Exception]) -> dict[str, Exception]:
    """Tasks that did not fail but whose results are incomplete at the end, by name."""
    return {
        task.name: task.unreadable
        or FileNotFoundError(
            "Some of its results have disappeared, although each was written. Run the same command to measure what "
            "is missing."
        )
        for task in tasks
        if task.name not in failures and (task.unreadable is not None or not task.done)
    }


def work_of(task: Task, what: Iterable[Measurement] | None = None) -> float:
    """Work of a task, or of some of its measurements only, in forward passes of a sample."""
    run = task.runs[0]
    # Almost all named data sets of images have ten classes; work is relative, for progress bars.
    groups = 1 if is_text(run.data.name) else 10
    train_size = run.samples_per_class * groups
    test_size = (run.test_samples_per_class or 1000) * groups
    steps = AUTO_STEPS if task.measure.steps == "auto" else task.measure.steps
    most = task.measure.samples or train_size + test_size
    size = {"train": min(train_size, most), "test": min(test_size, most)}
    measuring = sum(
        steps * task.measure.probes * _passes(item.what) * size[item.split]
        for item in (task.measurements if what is None else what)
    )
    if what is not None:
        return measuring
    epoch = (STEP + EVALUATION) * train_size + EVALUATION * test_size
    return len(task.runs) * run.settings.epochs * epoch + measuring


def _passes(what: str) -> float:
    """Cost of a product with the measured matrix, in forward passes."""
    if what == EVIDENCE:
        return 0.0  # it is computed from a spectrum
    return MATRICES[what].tangent if what in MATRICES else STRUCTURE_PASSES


class Networks:
    """Networks of a process: one object for each name, so that it is traced only once.

    Parameters
    ----------
    device : str
        PyTorch device of the networks.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._found: dict[tuple[str, int, int, int], tuple[nn.Module, GraphCache]] = {}

    def of(self, task: Task, data: Dataset) -> tuple[nn.Module, GraphCache]:
        """Return the network of a task, initialised from the task's seed and not yet started, and its traces."""
        run = task.runs[0]
        key = (run.network, data.channels, data.classes, data.size)
        # The generator is left unchanged.
        with torch.random.fork_rng([]):
            torch.manual_seed(run.settings.seed)
            network = build_network(run.network, channels=data.channels, classes=data.classes, size=data.size)
        if key not in self._found:
            self._found[key] = network.to(self._device), GraphCache(points=len(task.epochs))
        found, graphs = self._found[key]
        found.load_state_dict(network.state_dict())
        return found, graphs

    def problem(self, task: Task, train_set: Dataset, test_set: Dataset) -> _Problem:
        """Return the data of a task and its network, with the weights that its trainings start from."""
        network, graphs = self.of(task, train_set)
        start = task.runs[0].start
        new = () if start is None else tuple(start.load_into(network))
        if start is not None:
            head = f"; newly initialised: {', '.join(new)}" if new else ""
            logger.info("%s starts from %r%s", task.name, str(start.weights), head)
        return _Problem(train_set, test_set, network, graphs, new)


def run_task(
    task: Task, networks: Networks, *, on_progress: Callable[[str, float], None] = lambda _what, _done: None
) -> None:
    """Train with every learning rate, and measure the best; existing results are not computed again.

    Parameters
    ----------
    task : Task
        Task, locked by the caller.
    networks : Networks
        Networks of this process.
    on_progress : callable
        Called with a description of the current work and the work done in this task, as counted by `work_of`.

    Raises
    ------
    ValueError
        If the data set or the network is invalid, or all trainings diverged.
    NonFiniteError, MemoryError, OSError
        See `measure`.
    ModuleNotFoundError
        If a library that the network or the data set needs is missing.
    """
    if not task.done and not task.diverged:
        _run(task, networks, on_progress)
    if task.diverged:
        raise ValueError(task.diverged)


def _run(task: Task, networks: Networks, on_progress: Callable[[str, float], None]) -> None:
    for run in task.runs:
        run.made()
    train_set, test_set = task.runs[0].dataset("train"), task.runs[0].dataset("test")
    pretrained = task.runs[0].start.pretraining if task.runs[0].start is not None else None
    if pretrained is not None:
        _pretrain(pretrained, networks, on_progress)
    done = 0.0
    each = (work_of(task) - work_of(task, task.measurements)) / len(task.runs)
    for run in task.runs:
        # Each training starts from the initialised network, or the weights that are named.
        problem = networks.problem(task, train_set, test_set)
        _train(run, task, problem, _plus(on_progress, done, each / run.settings.epochs))
        _drop_losers(task)
        done += each
    best = task.best
    if best is None:
        return
    if not all(best.has_weights(m.epoch) for m in task.missing):
        # Epochs were added to the study after the training, or files were removed or damaged.
        problem = networks.problem(task, train_set, test_set)
        _train(best, task, problem, _plus(on_progress, done, 0.0), again=True)
    done += work_of(task, set(task.measurements) - set(task.missing))
    for measurement in task.missing:
        file = best.result(measurement, task.measure)
        if file.exists():
            logger.warning("%r is damaged, and is measured again", str(file))
        _measure(best, task, measurement, problem, _plus(on_progress, done, 1.0))
        done += work_of(task, [measurement])


def _pretrain(run: TrainingRun, networks: Networks, on_progress: Callable[[str, float], None]) -> None:
    """Train on other data for the start of trainings, once for all tasks; others wait for the process that does it.

    Raises
    ------
    ValueError
        If the training diverged.
    """
    last = run.settings.epochs
    task = Task((run,), MeasureConfig.model_validate({"epochs": [last]}))
    with lock(task, wait=True):
        if not (run.ended and (run.diverged or run.has_weights(last))):
            run.made()
            train_set, test_set = run.dataset("train"), run.dataset("test")
            problem = networks.problem(task, train_set, test_set)
            _train(run, task, problem, lambda what, _done: on_progress(f"pre-{what}", 0.0), again=run.ended)
    if run.diverged:
        raise ValueError(f"The pre-training on {run.data.name} diverged; use a lower learning_rate. {run.diverged}")


@dataclass(frozen=True)
class _Problem:
    """Data and network of a task, and names of tensors that are newly initialised at its start."""

    train_set: Dataset
    test_set: Dataset
    network: nn.Module
    graphs: GraphCache
    new: tuple[str, ...]


def _plus(report: Callable[[str, float], None], before: float, scale: float) -> Callable[[str, float], None]:
    return lambda what, done: report(what, before + scale * done)


def _train(
    run: TrainingRun, task: Task, problem: _Problem, report: Callable[[str, float], None], *, again: bool = False
) -> None:
    """Train from the last saved epoch, or from the beginning if weights are missing."""
    if run.ended and not again:
        return
    wanted = set(task.epochs)
    network = problem.network
    resume = None
    lacking = {epoch for epoch in wanted if not run.has_weights(epoch)}
    monitors = monitors_of(run, problem.train_set)
    # Of a monitored training that has ended, only the file of a monitor can be missing: it is trained again.
    beyond = run.settings.epochs + (not monitors)
    usable = [epoch for epoch in run.resumable() if epoch < min(lacking, default=beyond) and epoch < beyond]
    if usable:
        load_weights(network, run.weights(usable[-1]))
        resume = load_training_state(run.optimizer(usable[-1]), run.history[: usable[-1] + 1])
    what = (
        f"training {run.network} on {run.data.name}, n = {run.samples_per_class}, rate {run.settings.learning_rate:g}"
    )
    report(what, 0 if resume is None else len(resume.history))
    saver = _Saver(run, wanted, monitors)
    history: list[EpochRecord] = []

    def on_state(network: nn.Module, state: TrainingState) -> None:
        nonlocal history
        history = list(state.history)
        saver(network, state)
        report(what, len(history) - 1)

    try:
        data = problem.train_set, problem.test_set
        train(network, *data, run.settings, on_state=on_state, resume=resume, observers=monitors)
    except NonFiniteError as error:
        reached = history or ([] if resume is None else resume.history)
        if not reached:
            raise  # not finite at initialisation: no learning rate helps
        run.write_history(reached)
        run.write_diverged(str(error))
        run.keep_only(set(), optimizer=None)


class _Saver:
    """Writes states for resuming a training: after requested epochs, and in between as often as is cheap."""

    def __init__(
        self, run: TrainingRun, wanted: set[int], monitors: Mapping[str, TrainingMonitor | TrainingShares]
    ) -> None:
        self._run, self._wanted, self._monitors = run, wanted, monitors
        self._cost, self._last = 0.0, time.monotonic()

    def __call__(self, network: nn.Module, state: TrainingState) -> None:
        """After an epoch."""
        run, epoch = self._run, state.history[-1].epoch
        check_there(run.folder)
        start = time.monotonic()
        asked = epoch in self._wanted or epoch == run.settings.epochs
        if not asked and self._cost > SAVING * (start - self._last):
            return
        for monitor in self._monitors.values():
            monitor.write({"dataset": run.data.name, **_attributes(run)})
        # In this order, as the optimiser's state is valid only if weights and record of its epoch exist.
        run.write_history(state.history)
        save_training_state(run.optimizer(epoch), state)
        metadata = {"network": run.network, "dataset": run.data.name, "epoch": str(epoch)}
        save_checkpoint(run.weights(epoch), network, metadata)
        run.keep_only(self._wanted | {epoch}, optimizer=epoch)
        self._last = time.monotonic()
        self._cost = self._last - start


def _attributes(run: TrainingRun) -> dict[str, Attribute]:
    """Attributes of a training for the results of its network."""
    return {
        "network": run.network,
        "train_samples_per_class": run.samples_per_class,
        "training_seed": run.settings.seed,
        "learning_rate": run.settings.learning_rate,
        "optimizer": run.settings.optimizer,
        **({} if run.start is None else {"start": run.start.name}),
    }


def _drop_losers(task: Task) -> None:
    """Remove the weights of finished trainings that are not the best so far."""
    ended = [run for run in task.runs if run.ended and not run.diverged]
    best = min(ended, key=lambda run: run.score, default=None)
    for run in ended:
        if run is not best:
            run.keep_only(set(), optimizer=None)


def _measure(
    run: TrainingRun, task: Task, measurement: Measurement, problem: _Problem, report: Callable[[str, float], None]
) -> None:
    how, history = task.measure, run.history
    if measurement.epoch >= len(history):
        raise FileNotFoundError(f"The records of the training in {str(run.path)!r} were removed while it was measured.")
    record = history[measurement.epoch]
    network = problem.network
    load_weights(network, run.weights(measurement.epoch))
    dataset = (problem.train_set if measurement.split == "train" else problem.test_set).first(how.samples)
    attributes: dict[str, Attribute] = {
        **_attributes(run),
        "epoch": measurement.epoch,
        "train_error": record.train_error,
        "test_error": record.test_error,
        **({"params": " ".join(how.params)} if how.params else {}),
        **({"newly_initialised": " ".join(problem.new)} if problem.new else {}),
    }
    others = {STRUCTURE: "class structure", EVIDENCE: "evidence"}
    name = others.get(measurement.what) or MATRICES[measurement.what].symbol
    what = f"{name}, {measurement.split} set, epoch {measurement.epoch}, {task.name}"
    work = work_of(task, [measurement])

    parts: dict[str, float] = {}

    def on_progress(part: str, done: float, total: float | None) -> None:
        parts[part] = done / total if total else 0.0
        report(what, work * sum(parts.values()) / (STRUCTURE_SPECTRA if measurement.what == STRUCTURE else 1))

    report(what, 0.0)
    logger.info("%s", what)
    if measurement.what == EVIDENCE:
        spectrum = run.result(replace(measurement, what="GaussNewton"), how)
        evidence_of(network, spectrum, how.params).save(run.result(measurement, how))
        return
    if measurement.what == STRUCTURE:
        found = measure_structure(
            network,
            dataset,
            matrices=["Hessian"],
            params=how.params,
            steps=AUTO_STEPS if how.steps == "auto" else how.steps,
            seed=how.seed,
            batch_size=how.batch_size,
            memory=how.memory,
            attributes=attributes,
            on_progress=on_progress,
        )
        check_there(run.folder)
        found.save(run.result(measurement, how))
        return
    spectra = measure(
        network,
        dataset,
        matrices=[measurement.what],
        params=how.params,
        steps=how.steps,
        probes=how.probes,
        seed=how.seed,
        loss=run.settings.loss,
        batch_size=how.batch_size,
        memory=how.memory,
        attributes=attributes,
        on_progress=on_progress,
        graphs=problem.graphs,
    )
    check_there(run.folder)
    spectra[measurement.what].save(run.result(measurement, how))
