"""A study on many processes and machines: each task is one of Ray's."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from hesspec.study.config import StudyConfig
from hesspec.study.running import Networks, Progress, run_task, work_of
from hesspec.study.store import lock, tasks_of, write_study

__all__ = ["run_on_ray"]

# Of a task whose worker was lost (a machine that went away, memory that ran out): what it had done is kept, so that
# each go on costs little. Errors of the task itself, such as bad input, are not retried.
RETRIES = 10
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
        Of PyTorch; where it is "cuda", each task takes one GPU.
    cpus : int
        Cores, and threads of PyTorch, of each task.
    on_progress : callable, optional
        Called often with what is being done in words, the work done, and the work in all.

    Raises
    ------
    ModuleNotFoundError
        If Ray is not installed.
    ValueError, NonFiniteError, MemoryError, OSError
        As `run_study`; the first error ends the study, and what is done is kept.
    """
    try:
        import ray  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "Ray is not installed, which --ray needs: pip install 'hesspec[ray]'; without --ray the study runs in this "
            "process, and in as many others as are started with the same folder."
        ) from None

    target = Path(folder).resolve()
    write_study(config, target)
    tasks = [task for task in tasks_of(config, target) if not task.done]
    # The largest first: no machine is left with one of them at the end.
    tasks.sort(key=lambda task: -work_of(task))
    total = sum(map(work_of, tasks))
    mine = not ray.is_initialized()
    if mine:
        ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False)
    try:
        work = ray.remote(num_cpus=cpus, num_gpus=int(device.startswith("cuda")), max_retries=RETRIES)(_work)
        waiting: dict[Any, float] = {work.remote(task, device, cpus): work_of(task) for task in tasks}
        done = 0.0
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=LOOK)
            for reference in ready:
                done += waiting.pop(reference)
                try:
                    ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    for other in waiting:
                        ray.cancel(other, force=True)
                    raise error.as_instanceof_cause() from None  # type: ignore[no-untyped-call]
            if on_progress is not None and waiting:
                on_progress(f"{len(tasks) - len(waiting)} of {len(tasks)} tasks done, on Ray", done, total)
    finally:
        if mine:
            ray.shutdown()


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
