"""A study on Ray: a worker that is killed in the middle loses nothing, and nothing is done twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hesspec.study.cluster import _carried, _resolved, run_on_ray
from hesspec.study.running import run_study
from hesspec.study.store import tasks_of
from hesspec.study.study_file import parse_study

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
import psutil
from hesspec.study.cluster import run_on_ray
from hesspec.study.study_file import load_study

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
"""

FAILING = """
import sys
from pathlib import Path
from hesspec.study import StudyError, load_study
from hesspec.study.cluster import run_on_ray
from hesspec.study.store import tasks_of

folder, study = Path(sys.argv[2]), load_study(sys.argv[1])
small, large = tasks_of(study, folder)
# The larger one, which begins first, as if it had diverged.
large.runs[0].path.mkdir(parents=True)
large.runs[0].write_diverged("The loss is nan.")
try:
    run_on_ray(study, folder)
except StudyError as error:
    assert list(error.failures) == [large.name], error.failures
    assert isinstance(error.failures[large.name], ValueError)
else:
    raise AssertionError("no error")
assert small.done
"""

# A network that ends its process from outside, as the system does where memory runs out, at one sample size.
GREEDY = """
import os, signal
from torch import nn
from hesspec.study import small_cnn

class Greedy(nn.Sequential):
    def forward(self, inputs):
        if os.environ.get("GREEDY_ENDS") and self.training and len(inputs) % 8 == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(inputs)

def net(channels, classes, size):
    return Greedy(*small_cnn(channels, classes, size))
"""

GIVEN_UP = """
import sys
from pathlib import Path
from hesspec.study import StudyError, load_study
from hesspec.study.cluster import run_on_ray
from hesspec.study.store import tasks_of

folder, study = Path(sys.argv[2]), load_study(sys.argv[1])
small, large = tasks_of(study, folder)
try:
    run_on_ray(study, folder)
except StudyError as error:
    assert list(error.failures) == [small.name], error.failures
    (sentence,) = error.sentences
    assert sentence.startswith(f"{small.name}: its worker was killed 3 times from outside"), sentence
    assert " of memory at its last report." in sentence, sentence
else:
    raise AssertionError("no error")
assert tasks_of(study, folder)[1].done
"""

# Most of the time is the start of Ray and its workers.
ALL = """
import json, os, sys, traceback
from pathlib import Path
os.environ["GREEDY_ENDS"] = "1"  # for the workers, which inherit it
import ray

said = {}
for number, folder in enumerate(map(Path, sys.argv[1:])):
    if number == 1:  # the first study starts Ray itself, and ends it
        assert not ray.is_initialized()
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    sys.argv = ["", str(folder / "study.yaml"), str(folder / "results")]
    try:
        exec((folder / "script.py").read_text(), {})
    except BaseException:
        said[folder.name] = traceback.format_exc()
ray.shutdown()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with one for each script, with its study and results; the errors of those that failed."""
    path = tmp_path_factory.mktemp("ray")
    # 20 samples end with a batch of 4, and 30 with one of 6.
    greedy = STUDY.replace("small_cnn", "greedy:net").replace("[0, 1, 2]", "[end]").replace("[g, h]", "[g]")
    scripts = {"failing": (FAILING, STUDY), "killed": (SCRIPT, STUDY), "given up": (GIVEN_UP, greedy)}
    for name, (script, study) in scripts.items():
        (path / name).mkdir()
        (path / name / "study.yaml").write_text(study)
        (path / name / "script.py").write_text(script)
    (path / "greedy.py").write_text(GREEDY)
    found = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(  # noqa: S603 - of this test
        [sys.executable, "-c", ALL, *(str(path / name) for name in scripts)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": found},
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return path, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_a_task_that_fails_is_reported_after_the_others_are_done(on_ray: tuple[Path, dict[str, str]]) -> None:
    assert "failing" not in on_ray[1], on_ray[1]["failing"]


def test_a_device_that_ray_cannot_give_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no device 'cuda:1'; did you mean 'cuda'"):
        run_on_ray(parse_study(STUDY, "study.yaml"), tmp_path, device="cuda:1")


def test_workers_are_told_the_whole_path_of_a_folder_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = parse_study(STUDY.replace("digits", "{name: mnist, folder: data}"), "study.yaml")

    assert [data.folder for data in _resolved(study).datasets] == [tmp_path / "data"]


@pytest.mark.long
def test_a_worker_that_is_killed_loses_nothing_and_nothing_is_done_twice(
    tmp_path: Path, on_ray: tuple[Path, dict[str, str]]
) -> None:
    path, said = on_ray
    assert "killed" not in said, said["killed"]

    tasks = tasks_of(parse_study(STUDY, "study.yaml"), path / "killed" / "results")
    assert all(task.done for task in tasks)
    # The same weights as in one process.
    alone = tmp_path / "alone"
    run_study(parse_study(STUDY.replace("[0, 1, 2]", "[2]").replace("[g, h]", "[g]"), "study.yaml"), alone)
    for task, other in zip(tasks, tasks_of(parse_study(STUDY, "study.yaml"), alone), strict=True):
        assert task.runs[0].history == other.runs[0].history


@pytest.mark.long
def test_a_task_that_ends_its_worker_again_and_again_is_given_up_and_the_others_are_done(
    on_ray: tuple[Path, dict[str, str]],
) -> None:
    assert "given up" not in on_ray[1], on_ray[1]["given up"]


def test_errors_that_cannot_be_sent_are_sent_as_what_they_say() -> None:
    class OfTheUserError(ValueError):
        def __init__(self, one: int, other: int) -> None:
            super().__init__(f"{one} and\n{other}")

    carried = _carried(OfTheUserError(1, 2))
    assert type(carried) is ValueError
    assert str(carried) == "1 and 2"
    assert type(_carried(FileNotFoundError(2, "No such file", "x"))) is OSError
    assert type(_carried(RuntimeError("std::bad_alloc"))) is MemoryError
