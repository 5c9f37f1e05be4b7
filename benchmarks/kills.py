"""Kills of everything that writes files: nothing may be lost, and what is finished must be the same bit for bit.

    python benchmarks/kills.py [snapshot] [study] [report] [ray] [--kills 250] [--seed 0] [--record FILE]

Each of the four is killed so many times, at random: in its work, at one of its calls to the file system, or in the
middle of writing a file (by a limit of its size), with signals that no handler sees; on Ray, workers are killed. After
each kill the next process resumes. What is finished is compared with what was never killed.

Prints kills, what was finished, and what was wrong (nothing, or it is a fault); --record adds these lines to a file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from safetensors.torch import load_file

import hesspec
from hesspec.report import write_report
from hesspec.study.config import StudyConfig
from hesspec.study.running import run_study
from hesspec.study.store import tasks_of
from hesspec.study.study_file import parse_study

TESTS = Path(__file__).parents[1] / "tests" / "scripts"
sys.path.insert(0, str(TESTS))

from killed_runs import Kill, done_by_child  # noqa: E402 - found by the path above

STUDY = """\
datasets: digits
networks: small_cnn
samples_per_class: [2, 3]
test_samples_per_class: 2
training: {epochs: 4, learning_rates: [0.01, 0.03], batch_size: 8}
measure: {epochs: [0, end], matrices: [g], splits: [train], steps: 6, structure: true}
"""


def config() -> StudyConfig:
    """The study that is killed."""
    return parse_study(STUDY, "study.yaml")


def random_kill(choice: random.Random, calls: int, size: int, seconds: float) -> Kill:
    """At a call to the file system, beyond so many bytes of a file, or after some time, up to these."""
    kinds = (
        Kill(call=choice.randrange(calls)),
        Kill(size=choice.randrange(size)),
        After(seconds=choice.uniform(0, seconds)),
    )
    return choice.choice(kinds)


@dataclass(frozen=True)
class After(Kill):
    """After so many seconds."""

    seconds: float = 0.0

    def prepare(self, folder: Path) -> None:
        """Have the system end the process, at once, without a handler."""
        del folder
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)


def ended(work: Callable[[], object], folder: Path, kill: Kill) -> bool:
    """Whether a process did its work to the end; False where it was killed.

    Raises
    ------
    RuntimeError
        If it ended with an error.
    """

    def killed() -> None:
        kill.prepare(folder)
        work()

    return done_by_child(killed)


def contents(folder: Path) -> dict[str, Any]:
    """All that a finished study has, but for times and places."""
    found: dict[str, Any] = {}
    for task in tasks_of(config(), folder):
        best = task.best
        if best is None or not task.done:
            raise RuntimeError(f"{task.name} is not finished")
        for training in task.runs:
            found[f"{task.name}, {training.path.name}"] = repr(training.history)
        for epoch in task.epochs:
            weights = {name: tensor.numpy().tobytes() for name, tensor in load_file(best.weights(epoch)).items()}
            found[f"{task.name}, weights of epoch {epoch}"] = weights
        for measurement in task.measurements:
            loaded = hesspec.load(best.result(measurement, task.measure))
            fields = {name: value for name, value in vars(loaded).items() if name != "attributes"}
            found[f"{task.name}, {measurement}"] = {
                name: value.tobytes() if isinstance(value, np.ndarray) else repr(value)
                for name, value in fields.items()
            }
    return found


def left_over(folder: Path) -> list[str]:
    """Temporary files that killed processes have left."""
    return [path.name for path in folder.rglob(".*-????????.*")]


class Found:
    """Kills, what was finished, and what was wrong."""

    def __init__(self) -> None:
        self.kills, self.finished = 0, 0
        self.different: list[str] = []
        self.left: list[str] = []

    def compare(self, what: str, expected: dict[str, Any], got: dict[str, Any]) -> None:
        """Note that something is finished, and whatever differs."""
        self.finished += 1
        names = expected.keys() | got.keys()
        self.different += sorted(f"{what}: {name}" for name in names if got.get(name) != expected.get(name))


def snapshot(found: Found, kills: int, seed: int, _: Path) -> None:
    """Krylov runs of all kinds, by the script of the tests."""
    script = TESTS / "killed_runs.py"
    done = subprocess.run(  # noqa: S603 - this very Python and a script of the tests
        [sys.executable, script, "random", str(kills), str(seed)], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    found.kills, found.finished, found.different, found.left = (
        told[name] for name in ("kills", "finished", "different", "left")
    )


def never_killed(scratch: Path) -> Path:
    """A study that was not killed; it is done once."""
    folder = scratch / "whole"
    if not folder.exists():
        ended(lambda: run_study(config(), folder), folder, Kill())
    return folder


def study(found: Found, kills: int, seed: int, scratch: Path) -> None:
    """Studies, killed until each has finished."""
    choice, expected = random.Random(seed), contents(never_killed(scratch))  # noqa: S311 - of kills
    while found.kills < kills:
        folder = scratch / f"killed-{found.finished}"

        def work(folder: Path = folder) -> None:
            run_study(config(), folder)

        before = found.kills
        # A few of its calls and of its time each, so that a study is killed about as often as it has results.
        while not ended(work, folder, random_kill(choice, 40, 60_000, 1.5) if found.kills < kills else Kill()):
            found.kills += 1
        found.compare(f"study after {found.kills - before} kills", expected, contents(folder))
        found.left += left_over(folder)
        shutil.rmtree(folder)


def report(found: Found, kills: int, seed: int, scratch: Path) -> None:
    """Reports of a study: the page is the one before or the new one, and all is drawn in the end."""
    choice, source, page = random.Random(seed), never_killed(scratch), scratch / "page"  # noqa: S311 - of kills
    begin = time.perf_counter()
    ended(lambda: write_report(source, page / "report.html"), page, Kill())
    seconds = time.perf_counter() - begin
    files = sorted(path.relative_to(page) for path in page.rglob("*") if path.is_file())
    expected = {str(name): drawn(page / name) for name in files}

    while found.kills < kills:
        whole = ended(
            lambda: write_report(source, page / "report.html"), page, random_kill(choice, 12, 600_000, seconds)
        )
        found.kills += not whole
        # Whenever it was killed, each file is whole. (Temporary files of reports stay until somebody removes them.)
        got = {str(name): drawn(page / name) for name in files}
        found.finished += whole
        found.different += [f"report: {name}" for name in files if got[str(name)] != expected[str(name)]]


def drawn(file: Path) -> bytes:
    """Content of a page or a figure, but for the time at which it was written."""
    return re.sub(rb"/CreationDate \([^)]*\)|\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?", b"", file.read_bytes())


RAY = """
import os, random, signal, sys, threading, time
from pathlib import Path
import psutil, ray
from hesspec.study import StudyError
from hesspec.study.cluster import run_on_ray
from hesspec.study.study_file import load_study

study, folder, wanted, choice = load_study(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), random.Random(sys.argv[4])
kills, over = 0, threading.Event()

def watch():
    global kills
    while not over.wait(choice.uniform(0.2, 4)):
        workers = [p for p in psutil.Process().children(recursive=True) if p.name() == "ray::_work"]
        if workers and kills < wanted:
            os.kill(choice.choice(workers).pid, signal.SIGKILL)
            kills += 1

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
thread = threading.Thread(target=watch)
thread.start()
try:
    while True:
        try:
            run_on_ray(study, folder)
            break
        except StudyError as error:
            # A task whose worker was killed three times is abandoned; the same command resumes it.
            assert all("killed 3 times from outside" in sentence for sentence in error.sentences), error.sentences
finally:
    over.set()
    thread.join()
ray.shutdown()
print(kills)
"""


def on_ray(found: Found, kills: int, seed: int, scratch: Path) -> None:
    """Studies on Ray, whose workers are killed."""
    expected, file = contents(never_killed(scratch)), scratch / "study.yaml"
    file.write_text(STUDY, encoding="utf-8")
    while found.kills < kills:
        folder = scratch / f"killed-{found.finished}"
        arguments = [str(file), str(folder), str(kills - found.kills), f"{seed} {found.finished}"]
        done = subprocess.run(  # noqa: S603 - this very Python
            [sys.executable, "-c", RAY, *arguments],
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        here = int(done.stdout.splitlines()[-1])
        found.kills += here
        found.compare(f"study on Ray after {here} kills", expected, contents(folder))
        found.left += left_over(folder)
        shutil.rmtree(folder)


PARTS = {"snapshot": snapshot, "study": study, "report": report, "ray": on_ray}


def main() -> None:
    """Kill, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--kills", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    wrong = False
    with tempfile.TemporaryDirectory() as scratch:
        for part in options.parts or list(PARTS):
            found, begin = Found(), time.perf_counter()
            PARTS[part](found, options.kills, options.seed, Path(scratch))
            told = {"part": part, "seed": options.seed, **vars(found), "seconds": time.perf_counter() - begin}
            print(json.dumps(told), flush=True)
            wrong |= bool(found.different or found.left)
            if options.record is not None:
                with options.record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(told) + "\n")
    sys.exit(wrong)


if __name__ == "__main__":
    main()
