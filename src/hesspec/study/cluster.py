"""A study on many processes and machines: each task is one of Ray's."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hesspec.backend.heap import keep_freed_memory
from hesspec.backend.memory import in_a_line, in_words
from hesspec.backend.progress import Progress
from hesspec.backend.suggest import unknown
from hesspec.study.checking import faults_of
from hesspec.study.config import StudyConfig
from hesspec.study.failures import TASK_ERRORS, is_task_error, raise_failures, refuse_faults
from hesspec.study.folders import check_there
from hesspec.study.running import Networks, lost_of, run_task, work_of
from hesspec.study.store import Task, code_of, lock, note_memory, noted_memory, tasks_of, write_study

__all__ = ["run_on_ray"]

# How often a task may lose its worker: to a machine that went away, or to what ends a process, which mostly is that
# memory ran out, and then the next one ends alike. What a task has done is kept. Its errors, such as bad input, end it.
MOST_MACHINES = 10
MOST_WORKERS = 3
DEVICES = ("cpu", "cuda")
# Seconds between looks at what is done.
LOOK = 1.0


def run_on_ray(
    config: StudyConfig,
    folder: str | os.PathLike[str],
    *,
    device: str = "cpu",
    cpus: int = 1,
    on_progress: Progress | None = None,
) -> None:
    """Do what of a study has not been done, on the machines of a Ray cluster.

    Joins the cluster that the environment variable RAY_ADDRESS names ("auto" for one that runs on this machine, as
    `ray start` and the job launchers of Slurm and of cloud services set it up), or starts one of this machine's cores.
    A task is one network on one data set at one sample size with one seed; the larger ones begin first. Workers that
    are lost are replaced, and their tasks resume from what is in the folder; a task that ends its worker three times,
    as one does that takes more memory than there is, is given up.

    Parameters
    ----------
    config : StudyConfig
    folder : path
        Of the study, on a file system that all machines share.
    device : str
        "cpu", or "cuda", with which each task takes one GPU of those that the cluster has: this machine needs none.
    cpus : int
        Cores, and threads of PyTorch, of each task.
    on_progress : callable, optional
        Called often with what is being done in words, the work done, and the work in all.

    Raises
    ------
    ModuleNotFoundError
        If Ray is not installed.
    ValueError
        If the device is another one, or it is "cuda" and Ray, started here, finds no GPU.
    StudyError
        As `run_study`; also of tasks that were given up. A worker looks for the faults that are
        known before anything is run: it has to have the data sets and the user's modules.
    """
    try:
        import ray  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "Ray is not installed, which --ray needs: pip install 'hesspec[ray]'; without --ray the study runs in this "
            "process, and in as many others as are started with the same folder."
        ) from None

    if device not in DEVICES:
        raise ValueError(f"{unknown('device', device, DEVICES)} Ray gives each task a GPU of its own.")
    target = Path(folder).resolve()
    code = code_of(config)
    everything = tasks_of(_resolved(config), target, code)
    # The largest first: no machine is left with one of them at the end.
    left = [task for task in everything if task.unreadable is not None or not task.done]
    tasks = sorted(left, key=lambda task: -work_of(task))
    mine = not ray.is_initialized()
    if mine:
        # Ray answers SIGTERM by a silent end.
        answer = signal.getsignal(signal.SIGTERM)
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, answer)
    try:
        # A cluster may get GPUs while it is in use; Ray on this machine has those of its start.
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
    """The study with whole paths for the folders of its data: workers may be started in another folder than this."""
    datasets = [
        data if data.folder is None else data.model_copy(update={"folder": data.folder.resolve()})
        for data in config.datasets
    ]
    return config.model_copy(update={"datasets": datasets})


def _all_of(tasks: Sequence[Task], device: str, cpus: int, on_progress: Progress | None) -> dict[str, Exception]:
    """Do all tasks, on a Ray that is there; the errors of those that failed, by their names."""
    import ray  # noqa: PLC0415 - an extra

    # Ray itself would try a task again and again where memory runs out.
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
    """The error of a task whose worker was lost once too often."""
    memory = noted_memory(task)
    took = f" It took {in_words(memory)} of memory at its last report." if memory else ""
    return MemoryError(
        f"its worker was ended {times} times from outside, as systems do where memory runs out, and the task is given "
        f"up.{took} Give each task more memory, with fewer tasks at a time (--ray-cpus), fewer samples or "
        f"measure.memory in the study file. Ray says: {' '.join(str(error).split())}"
    )


def _work(task: Any, device: str, cpus: int) -> Exception | None:
    """One task, in a worker: what it failed of, where the others go on."""
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
        # A worker that Ray has given up may still be ending, or another process runs the same study.
        time.sleep(LOOK)


def _carried(error: Exception) -> Exception:
    """An error of the same kind that can be sent to another process, as those of libraries and of users may not."""
    kind = next((kind for kind in TASK_ERRORS if isinstance(error, kind)), MemoryError)
    return kind(in_a_line(error))
