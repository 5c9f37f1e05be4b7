"""Distribution of a study over processes and machines with Ray."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hesspec.backend.extras import require
from hesspec.backend.heap import keep_freed_memory
from hesspec.backend.memory import in_a_line, in_words
from hesspec.backend.progress import Progress
from hesspec.backend.suggest import unknown
from hesspec.study.checking import faults_of
from hesspec.study.config import StudyConfig
from hesspec.study.digests import code_of
from hesspec.study.failures import TASK_ERRORS, is_task_error, raise_failures, refuse_faults
from hesspec.study.folders import check_there
from hesspec.study.locking import lock, note_memory, noted_memory
from hesspec.study.running import Networks, lost_of, run_task, work_of
from hesspec.study.store import Task, tasks_of
from hesspec.study.study_folder import write_study

__all__ = ["run_on_ray"]

# How often a task may lose its worker, because a machine disappeared or the process was killed, mostly by lack of
# memory, which will kill the next one as well. Completed work of a task is kept. Errors, such as bad input, end it.
MOST_MACHINES = 10
MOST_WORKERS = 3
DEVICES = ("cpu", "cuda")
# Seconds between progress checks.
LOOK = 1.0


def run_on_ray(
    config: StudyConfig,
    folder: str | os.PathLike[str],
    *,
    device: str = "cpu",
    cpus: int = 1,
    on_progress: Progress | None = None,
) -> None:
    """Run the remaining part of a study on the machines of a Ray cluster.

    It joins the cluster given by the environment variable RAY_ADDRESS ("auto" for one that runs on this machine, as set
    up by `ray start` and by the job launchers of Slurm and cloud services), or starts one with this machine's cores. A
    task is one network on one data set at one sample size with one seed; larger ones start first. Lost workers are
    replaced, and their tasks resume from the folder; a task that loses its worker three times, for example because it
    needs too much memory, is abandoned.

    Parameters
    ----------
    config : StudyConfig
    folder : path
        Folder of the study, on a file system that all machines share.
    device : str
        "cpu", or "cuda", for which each task uses one GPU of the cluster; this machine needs none.
    cpus : int
        Number of cores and PyTorch threads for each task.
    on_progress : callable, optional
        Called often with a description of the current work, the work done, and the total work.

    Raises
    ------
    ModuleNotFoundError
        If Ray is not installed.
    ValueError
        If the device is unknown, or it is "cuda" and Ray, started here, finds no GPU.
    StudyError
        See `run_study`; also for abandoned tasks. A worker checks for faults before anything is run, so it must have
        the data sets and the user's modules.
    """
    require("A study on a cluster", "hesspec[ray]", "ray")
    import ray  # noqa: PLC0415 - an extra

    if device not in DEVICES:
        raise ValueError(f"{unknown('device', device, DEVICES)} Ray gives each task a GPU of its own.")
    target = Path(folder).resolve()
    code = code_of(config)
    everything = tasks_of(_resolved(config), target, code)
    # The largest first, so that none of them runs alone at the end.
    left = [task for task in everything if task.unreadable is not None or not task.done]
    tasks = sorted(left, key=lambda task: -work_of(task))
    mine = not ray.is_initialized()
    if mine:
        # Ray responds to SIGTERM by exiting silently.
        answer = signal.getsignal(signal.SIGTERM)
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, answer)
    try:
        # A cluster may gain GPUs while it is in use; Ray on this machine has those present at its start.
        fixed = mine and "RAY_ADDRESS" not in os.environ
        gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
        if device == "cuda" and fixed and not gpus:
            raise ValueError(
                "Ray finds no GPU on this machine; name a cluster with RAY_ADDRESS, or use the device cpu."
            )
        faults: dict[str, Exception] = ray.get(ray.remote(num_cpus=cpus)(faults_of).remote(tasks))
        refuse_faults(faults, len(everything))
        write_study(config, target, code)
        failures = _all_of(tasks, device, cpus, on_progress)
        check_there(target)
        raise_failures(failures | lost_of(everything, failures), len(everything))
    finally:
        if mine:
            ray.shutdown()


def _resolved(config: StudyConfig) -> StudyConfig:
    """Return the study with absolute paths, as workers may be started in another folder."""
    datasets = [
        data if data.folder is None else data.model_copy(update={"folder": data.folder.resolve()})
        for data in config.datasets
    ]
    start = [
        each.model_copy(
            update={
                **({} if each.folder is None else {"folder": each.folder.resolve()}),
                **({} if each.weights is None else {"weights": str(Path.cwd() / each.weights)}),
            }
        )
        for each in config.start
    ]
    return config.model_copy(update={"datasets": datasets, "start": start})


def _all_of(tasks: Sequence[Task], device: str, cpus: int, on_progress: Progress | None) -> dict[str, Exception]:
    """Run all tasks on an initialised Ray; return the errors of failed tasks by name."""
    import ray  # noqa: PLC0415 - an extra

    # Ray itself would retry a task indefinitely if memory runs out.
    work = ray.remote(num_cpus=cpus, num_gpus=int(device == "cuda"), max_retries=0)(_work)
    lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
    waiting: dict[Any, Task] = {work.remote(task, device, cpus): task for task in tasks}
    failures: dict[str, Exception] = {}
    losses: Counter[tuple[str, bool]] = Counter()
    done, total = 0.0, sum(map(work_of, tasks))
    while waiting:
        ready, _ = ray.wait(list(waiting), timeout=LOOK)
        for reference in ready:
            task = waiting.pop(reference)
            try:
                failure: Exception | None = ray.get(reference)
            except lost as error:
                of_machine = isinstance(error, ray.exceptions.NodeDiedError)
                losses[task.name, of_machine] += 1
                if losses[task.name, of_machine] < (MOST_MACHINES if of_machine else MOST_WORKERS):
                    waiting[work.remote(task, device, cpus)] = task
                    continue
                failure = _given_up(task, losses[task.name, of_machine], error)
            except ray.exceptions.RayTaskError as error:
                for other in waiting:
                    ray.cancel(other, force=True)
                raise error.as_instanceof_cause() from None  # type: ignore[no-untyped-call]
            done += work_of(task)
            if failure is not None:
                failures[task.name] = failure
        if on_progress is not None and waiting:
            on_progress(f"{len(tasks) - len(waiting)} of {len(tasks)} tasks done, on Ray", done, total)
    return failures


def _given_up(task: Task, times: int, error: Exception) -> Exception:
    """Return the error of a task whose worker was lost too often."""
    memory = noted_memory(task)
    took = f" It used {in_words(memory)} of memory at its last report." if memory else ""
    return MemoryError(
        f"its worker was killed {times} times from outside, as systems do when memory runs out, so the task was "
        f"abandoned.{took} Give each task more memory, with fewer tasks at a time (--ray-cpus), fewer samples or "
        f"measure.memory in the study file. Ray says: {' '.join(str(error).split())}"
    )


def _work(task: Any, device: str, cpus: int) -> Exception | None:
    """Run one task in a worker; return its error, if the other tasks can continue."""
    import torch  # noqa: PLC0415 - in the worker, whose threads are set

    torch.set_num_threads(cpus)
    while True:
        check_there(task.runs[0].folder)
        with lock(task) as held:
            if held is not None:
                try:
                    with keep_freed_memory():
                        run_task(task, Networks(device), on_progress=lambda _what, _done: note_memory(task))
                except Exception as error:
                    if not is_task_error(error):
                        raise
                    return _carried(error)
                return None
        # A worker that Ray has abandoned may still be exiting, or another process may run the same study.
        time.sleep(LOOK)


def _carried(error: Exception) -> Exception:
    """Convert an error to one of the same kind that can be pickled, as those of libraries and users may not be."""
    kind = next((kind for kind in TASK_ERRORS if isinstance(error, kind)), MemoryError)
    return kind(in_a_line(error))
