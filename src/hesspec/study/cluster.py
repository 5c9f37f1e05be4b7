"""A study on many processes and machines: each task is one of Ray's."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hesspec._suggest import unknown
from hesspec.study.checking import faults_of
from hesspec.study.config import StudyConfig
from hesspec.study.failures import TASK_ERRORS, raise_failures, refuse_faults
from hesspec.study.running import Networks, Progress, run_task, work_of
from hesspec.study.store import Task, code_of, lock, tasks_of, write_study

__all__ = ["run_on_ray"]

# Of a task whose worker was lost (a machine that went away, memory that ran out): what it had done is kept, so that
# each go on costs little. Errors of the task itself, such as bad input, are not retried.
RETRIES = 10
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
    are lost are replaced, and their tasks go on from what is in the folder.

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
        As `run_study`; of tasks whose workers were lost again and again, too. A worker looks for the faults that are
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
    tasks = sorted((task for task in everything if not task.done), key=lambda task: -work_of(task))
    mine = not ray.is_initialized()
    if mine:
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False)
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
        raise_failures(_all_of(tasks, device, cpus, on_progress), len(everything))
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

    lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
    work = ray.remote(num_cpus=cpus, num_gpus=int(device == "cuda"), max_retries=RETRIES)(_work)
    waiting: dict[Any, Task] = {work.remote(task, device, cpus): task for task in tasks}
    failures: dict[str, Exception] = {}
    done, total = 0.0, sum(map(work_of, tasks))
    while waiting:
        ready, _ = ray.wait(list(waiting), timeout=LOOK)
        for reference in ready:
            task = waiting.pop(reference)
            done += work_of(task)
            try:
                ray.get(reference)
            except lost as error:
                failures[task.name] = error
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, TASK_ERRORS):
                    for other in waiting:
                        ray.cancel(other, force=True)
                    raise error.as_instanceof_cause() from None  # type: ignore[no-untyped-call]
                failures[task.name] = error.cause
        if on_progress is not None and waiting:
            on_progress(f"{len(tasks) - len(waiting)} of {len(tasks)} tasks done, on Ray", done, total)
    return failures


def _work(task: Any, device: str, cpus: int) -> None:
    """One task, in a worker."""
    import torch  # noqa: PLC0415 - in the worker, whose threads are set

    torch.set_num_threads(cpus)
    while True:
        with lock(task) as held:
            if held is not None:
                run_task(task, Networks(device))
                return
        # A worker that Ray has given up may still be ending, or another process runs the same study.
        time.sleep(LOOK)
