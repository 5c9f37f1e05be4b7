"""Checks of a study before its first training."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from hesspec.operators.risk.parameters import ParameterSelection
from hesspec.study.checkpoints import save_checkpoint
from hesspec.study.datasets import Dataset
from hesspec.study.failures import noted
from hesspec.study.measuring import check_outputs
from hesspec.study.networks import build_network
from hesspec.study.store import Task
from hesspec.study.training import check_trainable

__all__ = ["faults_of"]


def faults_of(tasks: Iterable[Task], on_check: Callable[[str], None] = lambda _what: None) -> dict[str, Exception]:
    """Find the tasks that would fail for their data set, their network, or the names of parameters.

    Every data set is read at its largest sample size, and every network is built once for it and run on a sample. Tasks
    with nothing left to do are not checked.

    Parameters
    ----------
    tasks : iterable of Task
    on_check : callable
        Called with a description of the current check.

    Returns
    -------
    dict of str to Exception
        Faults by the names of their tasks; empty if there are none.
    """
    found: dict[str, Exception] = {}
    # Unreadable records only affect their own task, which reports them.
    left = [task for task in tasks if task.unreadable is None and not task.done and not task.diverged]
    for data, of_data in _grouped(left, lambda task: task.runs[0].data.name).items():
        on_check(f"reading {data}")
        dataset = _read(of_data, found)
        if dataset is None:
            continue
        sound = [task for task in of_data if task.name not in found]
        for network, of_network in _grouped(sound, lambda task: task.runs[0].network).items():
            on_check(f"building {network} for {data}")
            with noted(_names(of_network), found):
                _check_network(of_network[0], dataset)
            for of_start in _grouped([task for task in of_network if task.name not in found], _start_of).values():
                with noted(_names(of_start), found):
                    _check_start(of_start[0], dataset)
    return found


def _grouped(tasks: Iterable[Task], key: Callable[[Task], Hashable]) -> dict[Hashable, list[Task]]:
    groups: dict[Hashable, list[Task]] = {}
    for task in tasks:
        groups.setdefault(key(task), []).append(task)
    return groups


def _read(tasks: list[Task], found: dict[str, Exception]) -> Dataset | None:
    """Read the training set of tasks with the same data set, at its largest size; faults are added to `found`."""
    by_size = _grouped(tasks, lambda task: task.runs[0].samples_per_class)
    with noted(_names(tasks), found):
        tasks[0].runs[0].dataset("test")
        for _, of_size in sorted(by_size.items(), reverse=True):
            with noted(_names(of_size), found):
                return of_size[0].runs[0].dataset("train")
    return None


def _names(tasks: Iterable[Task]) -> list[str]:
    return [task.name for task in tasks]


def _start_of(task: Task) -> Hashable:
    start = task.runs[0].start
    return None if start is None else (start.name, start.weights)


def _check_start(task: Task, dataset: Dataset) -> None:
    """Raise an error if the weights that a task starts from do not exist or do not fit its network."""
    run = task.runs[0]
    if run.start is None:
        return
    with torch.random.fork_rng([]), TemporaryDirectory() as folder:
        network = build_network(run.network, channels=dataset.channels, classes=dataset.classes, size=dataset.size)
        start = run.start
        if start.pretraining is not None:
            # Initial weights of the pre-training stand for those at its end.
            other = start.pretraining.dataset("train")
            source = build_network(run.network, channels=other.channels, classes=other.classes, size=other.size)
            check_trainable(source, other, start.pretraining.settings)
            check_outputs(source.eval(), other)
            file = Path(folder) / "initial.safetensors"
            save_checkpoint(file, source, {})
            start = replace(start, file=file, pretraining=None)
        start.load_into(network)


def _check_network(task: Task, dataset: Dataset) -> None:
    run = task.runs[0]
    # The generator is left as it was found.
    with torch.random.fork_rng([]):
        network = build_network(run.network, channels=dataset.channels, classes=dataset.classes, size=dataset.size)
    check_trainable(network, dataset, run.settings)
    check_outputs(network.eval(), dataset)
    ParameterSelection(network, task.measure.params)
