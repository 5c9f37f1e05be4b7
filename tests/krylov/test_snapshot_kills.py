"""A run that is killed at any time resumes, to the very same bits, and leaves no files behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def killed(*arguments):
    script = Path(__file__).parents[1] / "scripts" / "killed_runs.py"
    ended = subprocess.run(  # noqa: S603 - this very Python and a script of the tests
        [sys.executable, script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["finished"] >= 1
    assert (found["different"], found["left"]) == ([], [])
    return found["kills"]


@pytest.mark.long
def test_kills_at_every_call_to_the_file_system():
    assert killed("every", "dense, float64, half, 3 probes") >= 15


@pytest.mark.long
def test_kills_in_products_and_in_writes():
    names = [
        "dense, float32, restarted, 3 probes",
        "network, float64, full, 1 probes",
        "dense, float32, half on disk, 1 probes, partial",
    ]
    assert killed("random", 30, 0, *names) >= 30


@pytest.mark.parametrize(
    "seed",
    [pytest.param(0, marks=pytest.mark.long), *(pytest.param(seed, marks=pytest.mark.hours) for seed in (1, 2, 3))],
)
def test_200_kills_of_runs_of_all_kinds(seed):
    assert killed("random", 200, seed) >= 200
