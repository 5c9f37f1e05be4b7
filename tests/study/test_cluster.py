"""A study on Ray: a worker that is killed in the middle loses nothing, and nothing is done twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hesspec.study.config import parse_study
from hesspec.study.running import run_study
from hesspec.study.store import tasks_of

pytest.importorskip("ray")

STUDY = """\
datasets: digits
networks: small_cnn
samples_per_class: [2, 3]
test_samples_per_class: 2
training: {epochs: 2, learning_rates: [0.01], batch_size: 8}
measure: {epochs: [0, 1, 2], matrices: [g, h], splits: [train, test], steps: 4}
"""

# The killer ends one worker as soon as there is a first result, with SIGKILL, and notes every version of every file.
SCRIPT = """
import os, signal, sys, threading, time
from pathlib import Path
import psutil, ray
from hesspec.study.cluster import run_on_ray
from hesspec.study.config import load_study

folder = Path(sys.argv[2])
versions, killed, over = {}, [], threading.Event()

def look():
    for path in folder.rglob("epoch-*.nc"):
        try:
            versions.setdefault(str(path), set()).add(path.stat().st_ino)
        except FileNotFoundError:
            pass

def watch():
    while not over.is_set():
        look()
        if versions and not killed:
            workers = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::_work")]
            if workers:
                os.kill(workers[0].pid, signal.SIGKILL)
                killed.append(workers[0].pid)
        time.sleep(0.02)

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
thread = threading.Thread(target=watch)
thread.start()
try:
    run_on_ray(load_study(sys.argv[1]), folder)
finally:
    over.set()
    thread.join()
look()
assert len(killed) == 1, "no worker was killed"
twice = [path for path, found in versions.items() if len(found) > 1]
assert not twice, twice
ray.shutdown()
"""


def test_a_worker_that_is_killed_loses_nothing_and_nothing_is_done_twice(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    folder = tmp_path / "results"
    finished = subprocess.run(  # noqa: S603 - of this test
        [sys.executable, "-c", SCRIPT, str(tmp_path / "study.yaml"), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]

    tasks = tasks_of(parse_study(STUDY, "study.yaml"), folder)
    assert all(task.done for task in tasks)
    # The same weights as in one process.
    alone = tmp_path / "alone"
    run_study(parse_study(STUDY.replace("[0, 1, 2]", "[2]").replace("[g, h]", "[g]"), "study.yaml"), alone)
    for task, other in zip(tasks, tasks_of(parse_study(STUDY, "study.yaml"), alone), strict=True):
        assert task.runs[0].history == other.runs[0].history
