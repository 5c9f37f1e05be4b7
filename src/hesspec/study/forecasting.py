"""Prediction of the remaining work of a study on this machine: `hesspec study FILE --dry-run`."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from hesspec.backend.memory_shares import free_shares, shares_of
from hesspec.matrices import MATRICES
from hesspec.measure.plan import Plan
from hesspec.operators.named import operator_class
from hesspec.spectra.study_names import SGD
from hesspec.study.checking import faults_of
from hesspec.study.config import MeasureConfig, StudyConfig
from hesspec.study.datasets import Dataset
from hesspec.study.digests import code_of
from hesspec.study.failures import noted
from hesspec.study.losses import LOSSES
from hesspec.study.measuring import plan_measurement
from hesspec.study.networks import build_network
from hesspec.study.running import AUTO_STEPS
from hesspec.study.store import EVIDENCE, STRUCTURE, Task, TrainingRun, tasks_of
from hesspec.study.training import evaluate

__all__ = ["TaskForecast", "forecast_study"]

# Largest number of samples that are timed; times are assumed to be proportional to samples.
TIMED_SAMPLES = 64
# Number of samples in passes from which, and from twice as many, the memory of larger ones is extrapolated linearly.
FEW = 8
# Number of timed repeats, after a warm-up; the median counts.
REPEATS = 3
# Cost of a class structure relative to a measurement of the Hessian: its three spectra, and the means (from the demo).
STRUCTURE_COST = 4.0
# Cost of a measurement of the sharpness in training steps on its samples: a primal pass and four to five products.
MONITOR_STEPS = 6.0


@dataclass(frozen=True)
class TaskForecast:
    """Remaining work of one task.

    Attributes
    ----------
    task : Task
    epochs : int
        Remaining epochs of all trainings that have not ended.
    measurements : int
        Number of missing measurements.
    training_seconds, measuring_seconds : float
        Expected time for these; NaN if the task cannot be run.
    peak_bytes : int
        Expected peak memory of a measurement; 0 if nothing is left, or the task cannot be run.
    fault : Exception or None
        Why the task cannot be run, or cannot be run to its end.
    """

    task: Task
    epochs: int
    measurements: int
    training_seconds: float
    measuring_seconds: float
    peak_bytes: int
    fault: Exception | None = None


@dataclass(frozen=True)
class _Memory:
    """Memory of passes, linear in the numbers of cached samples and of samples in a pass."""

    kept: float  # of each sample
    fixed: float  # of a pass, independent of samples: products, and tensors with the parameters' shapes
    passing: float  # of each sample in a pass
    budget: int

    @classmethod
    def of(cls, matrix: str, problem: tuple[nn.Module, Dataset, str], how: MeasureConfig) -> _Memory:
        """Measure passes over two small batches of the data."""
        network, dataset, loss = problem
        # Samples alternate between classes, and class parts of G need one of each.
        few = dataset.classes if MATRICES[matrix].by_class and not dataset.is_sequences else FEW
        products = None if how.memory is None else shares_of(how.memory)[0]
        sizes = []
        for samples in (few, 2 * few):
            # All of the data, as the way of computing products depends on its size.
            operator = operator_class(matrix)(network, LOSSES[loss], dataset.batches(samples), how.params)
            number = None if how.steps == "auto" else how.steps * how.probes
            seen = operator.forecast(products, products=number)
            sizes.append((len(dataset) / seen.pieces, seen.size))
        (less, small), (more, large) = sizes
        # Equal if there are not enough samples.
        passing = (large.tangent - small.tangent) / (more - less) if more > less else 0.0
        budget = free_shares(operator.device).products if products is None else products
        return cls(large.kept / more, large.tangent - passing * more, passing, budget)

    def bytes(self, samples: int, batch_size: int) -> float:
        """Memory of all passes over this number of samples; passes that do not fit into the budget are not cached."""
        return min(samples * self.kept + self.fixed + min(samples, batch_size) * self.passing, self.budget)


@dataclass(frozen=True)
class _Costs:
    """Costs of one network on one data set, timed on `samples` samples."""

    samples: int
    batch_size: int
    step: float  # seconds of a training step on them
    evaluation: float  # seconds of an evaluation on them
    plans: dict[str, Plan]
    memory: dict[str, _Memory]
    test_samples: int
    groups: int

    def training(self, run: TrainingRun) -> float:
        """Seconds of an epoch."""
        count = run.samples_per_class * self.groups
        monitored, monitor = 0.0, run.settings.monitor
        if monitor is not None:
            kinds = 1 if run.settings.optimizer == SGD else 2
            readings = math.ceil(count / run.settings.batch_size) / monitor.every
            monitored = readings * kinds * MONITOR_STEPS * min(count, monitor.samples or count)
        return ((count + monitored) * self.step + (count + self.test_samples) * self.evaluation) / self.samples

    def measuring(self, what: str, count: int) -> float:
        """Seconds of a measurement on this number of samples."""
        if what == EVIDENCE:
            return 0.0
        if what == STRUCTURE:
            return STRUCTURE_COST * self.measuring("Hessian", count)
        plan = self.plans[what]
        share = count / self.samples
        products = plan.matvecs * (plan.seconds_matvec * share + plan.seconds_step)
        # Tracing does not depend on samples; the primal passes of the others cost less than a product.
        return plan.seconds_setup + max(share - 1, 0) * plan.seconds_matvec + products

    def peak_bytes(self, what: str, count: int) -> int:
        """Peak memory of the process in a measurement on this number of samples."""
        name = {STRUCTURE: "Hessian", EVIDENCE: "GaussNewton"}.get(what, what)
        plan, memory = self.plans[name], self.memory[name]
        seen, wanted = (memory.bytes(samples, self.batch_size) for samples in (self.samples, count))
        return int(plan.peak_bytes - seen + wanted)


def forecast_study(
    config: StudyConfig,
    folder: str | os.PathLike[str],
    *,
    device: str = "cpu",
    on_task: Callable[[str], None] = lambda _what: None,
) -> list[TaskForecast]:
    """Predict the remaining work of a study, and its time in one process on this device.

    Every network is built once for every data set; a step of its training is timed, and its measurements are planned
    from one timed batch (`hesspec.plan`). Times are assumed proportional to samples: if passes are recomputed because
    they do not fit into memory, measurements take up to twice as long. Memory is that for all samples of a task.

    Parameters
    ----------
    config : StudyConfig
    folder : path
        Folder of the study; existing results are not counted.
    device : str
        PyTorch device.
    on_task : callable, optional
        Called with a description of what is being checked or timed.

    Returns
    -------
    list of TaskForecast
        Predictions in the order in which tasks are run, including tasks that cannot be run.
    """
    tasks = tasks_of(config, Path(folder), code_of(config))
    unreadable = {task.name: error for task in tasks if (error := task.unreadable) is not None}
    faults = unreadable | faults_of(tasks, on_task)
    sound: dict[tuple[str, str], list[Task]] = {}
    for task in tasks:
        if not (task.name in faults or task.done or task.diverged):
            sound.setdefault(_problem(task), []).append(task)
    costs: dict[tuple[str, str], _Costs] = {}
    for key, group in sound.items():
        on_task(f"timing {' on '.join(key)}")
        largest = max((task.runs[0] for task in group), key=lambda run: run.samples_per_class)
        with noted([task.name for task in group], faults):
            costs[key] = _timed(largest, config, torch.device(device))
    counted: set[Path] = set()
    return [
        TaskForecast(task, 0, 0, math.nan, math.nan, 0, unreadable[task.name])
        if task.name in unreadable
        else _without_costs(task, faults.get(task.name))
        if task.done or task.diverged or task.name in faults
        else _forecast(task, costs[_problem(task)], counted)
        for task in tasks
    ]


def _problem(task: Task) -> tuple[str, str]:
    """Network and data set that determine the costs of a task."""
    return task.runs[0].network, task.runs[0].data.name


def _left(task: Task) -> list[tuple[TrainingRun, int]]:
    """Trainings that have not ended, and the number of their remaining epochs."""
    return [(run, run.settings.epochs - max(len(run.history) - 1, 0)) for run in task.runs if not run.ended]


def _without_costs(task: Task, fault: Exception | None) -> TaskForecast:
    """Prediction for a task that cannot be run, or with nothing left."""
    if task.done or task.diverged:
        return TaskForecast(task, 0, 0, 0.0, 0.0, 0, fault=ValueError(task.diverged) if task.diverged else None)
    epochs = sum(epochs for _, epochs in _left(task))
    return TaskForecast(task, epochs, len(task.missing), math.nan, math.nan, 0, fault)


def _forecast(task: Task, costs: _Costs, counted: set[Path]) -> TaskForecast:
    left = _left(task)
    start = task.runs[0].start
    # A pre-training is part of the first task that starts from it; its samples are taken to cost as much as the task's.
    if start is not None and start.pretraining is not None and start.pretraining.path not in counted:
        run = start.pretraining
        counted.add(run.path)
        left += [] if run.ended else [(run, run.settings.epochs - max(len(run.history) - 1, 0))]
    every = {"train": task.runs[0].samples_per_class * costs.groups, "test": costs.test_samples}
    size = {split: min(count, task.measure.samples or count) for split, count in every.items()}
    return TaskForecast(
        task=task,
        epochs=sum(epochs for _, epochs in left),
        measurements=len(task.missing),
        training_seconds=sum(epochs * costs.training(run) for run, epochs in left),
        measuring_seconds=sum(costs.measuring(item.what, size[item.split]) for item in task.missing),
        peak_bytes=max((costs.peak_bytes(item.what, size[item.split]) for item in task.missing), default=0),
    )


def _timed(run: TrainingRun, config: StudyConfig, device: torch.device) -> _Costs:
    how = config.measure
    dataset, test = run.dataset("train"), run.dataset("test")
    network = build_network(run.network, channels=dataset.channels, classes=dataset.classes, size=dataset.size)
    network.to(device)
    loss = config.training.loss
    names = list(dict.fromkeys([*how.matrices, *(["Hessian"] if how.structure else [])]))
    # Samples alternate between classes: equally many of each, and at least one.
    count = max(1, min(how.batch_size, TIMED_SAMPLES) // dataset.groups) * dataset.groups
    part = replace(dataset, inputs=dataset.inputs[:count], targets=dataset.targets[:count])
    plans = plan_measurement(
        network,
        part,
        matrices=names,
        params=how.params,
        steps=AUTO_STEPS if how.steps == "auto" else how.steps,
        probes=how.probes,
        loss=loss,
        batch_size=how.batch_size,
        memory=how.memory,
    )
    batch_size = config.training.step_samples
    return _Costs(
        samples=len(part),
        batch_size=how.batch_size,
        step=_seconds(lambda: _step(network, LOSSES[loss], part, batch_size), device),
        evaluation=_seconds(lambda: evaluate(network, part, batch_size=batch_size), device),
        plans=plans,
        memory={name: _Memory.of(name, (network.eval(), dataset, loss), how) for name in names},
        test_samples=len(test),
        groups=dataset.groups,
    )


def _step(network: nn.Module, loss_fn: nn.Module, dataset: Dataset, batch_size: int) -> None:
    """Run one epoch of training steps, with negligible changes of the weights."""
    network.train()
    device = next(network.parameters()).device
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-12, momentum=0.9)
    for inputs, targets in dataset.batches(batch_size):
        if len(inputs) == 1:
            continue  # batch norm cannot be trained on one
        optimizer.zero_grad()
        torch.autograd.backward(loss_fn(network(inputs.to(device)), targets.to(device)))
        optimizer.step()


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    seconds: Sequence[float] = [_once(work, device) for _ in range(REPEATS + 1)]
    return statistics.median(seconds[1:])


def _once(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
