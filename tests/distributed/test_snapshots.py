"""A run that ranks share resumes from its snapshot, on any number of ranks."""

import json
import os
import subprocess
import sys

import pytest
from distributed_ranks import SCRIPTS, launch_forked, results
from sweeps import swept

from hesspec.backend.file_lock import FileLock
from hesspec.krylov.snapshot_files import LOCK


def continued(ranks, folder, *options):
    return results("continued.py", ranks, folder, *options, start=launch_forked)


@pytest.mark.long  # three ranks
@pytest.mark.parametrize(("basis", "probes"), [("half", 2), ("restarted", 1)])
def test_a_run_resumes_on_another_number_of_ranks(tmp_path, basis, probes):
    folder = tmp_path / "snapshot"
    # Of 30 products of each probe; what a rank does before it stops is lost with it.
    for ranks, stop in ((2, 6), (3, 13), (1, 22)):
        for found in continued(ranks, folder, basis, probes, stop):
            assert not found["finished"]
    for found in continued(2, folder, basis, probes, 0):
        assert found["finished"]
        assert found["first"] == 21  # as many products had been done when the last snapshot was written
        assert found["matvecs"] == 0
        # Float64; the operator's sums are taken in another order, and 30 steps in.
        assert found["error"] < 1e-12
        assert found["sketches"] < 1e-5


@pytest.mark.parametrize("ranks", swept([1, 2], 2))
@pytest.mark.parametrize("part", swept([0, 1], 1))
def test_a_damaged_file_is_named(tmp_path, ranks, part):
    folder = tmp_path / "snapshot"
    continued(2, folder, "full", 1, 6)
    damaged = max(folder.glob(f"rows-*.{part}.safetensors"))
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 4
    damaged.write_bytes(content)
    errors = [found["error"] for found in continued(ranks, folder, "full", 1, 0)]
    # Each of two ranks looks at one of the parts.
    said = errors.pop(part if ranks == 2 else 0)
    assert said.startswith(f"ValueError: The snapshot in {str(folder)!r} cannot be read: {damaged.name} is damaged")
    for error in errors:
        assert error.startswith(f"RankError: Rank {part} of 2 ended with ValueError: {damaged.name} is damaged")


def test_a_rank_reads_nothing_but_safetensors(tmp_path):
    folder = tmp_path / "snapshot"
    continued(2, folder, "half", 1, 6)
    assert {path.suffix for path in folder.iterdir()} == {".safetensors"}
    assert len(list(folder.glob("rows-*.0.*"))) == len(list(folder.glob("rows-*.1.*"))) == 5


def test_a_second_group_in_the_folder_is_refused(tmp_path):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    lock = FileLock(folder / LOCK)
    first, second = (found["error"] for found in continued(2, folder, "full", 1, 6))
    assert first.startswith(f"OSError: Another run uses the snapshots in {str(folder)!r}: ")
    assert second.startswith("RankError: Rank 0 of 2 ended with BlockingIOError: Another run uses")
    lock.release()


@pytest.mark.long
def test_a_full_disk_leaves_the_snapshot_before(tmp_path):
    folder = tmp_path / "snapshot"
    continued(2, folder, "full", 1, 6)
    before = sorted(path.name for path in folder.iterdir())
    # A row's slice of two, in float64, has 800 bytes, and what it is stored in has more.
    first, second = (found["error"] for found in continued(2, folder, "full", 1, 0, 500))
    assert first.startswith(f"OSError: {str(folder)!r} cannot be written to: File too large. The file needs ")
    assert first.endswith("The previous snapshot is unharmed.")
    assert second.startswith("RankError: Rank 0 of 2 ended with OSError: ")
    assert before == sorted(path.name for path in folder.iterdir())
    for found in continued(2, folder, "full", 1, 0):
        assert found["finished"]
        assert found["error"] < 1e-12


@pytest.mark.parametrize(
    "kills", [pytest.param(12, marks=pytest.mark.long), pytest.param(100, marks=pytest.mark.hours)]
)
def test_ranks_that_are_killed_at_any_time_always_resume(kills):
    script = SCRIPTS / "killed.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(  # noqa: S603 - this very Python and a script of the tests
        [sys.executable, script, "2", str(kills)], capture_output=True, text=True, check=False, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["kills"] >= kills
    assert (found["wrong"], found["failures"]) == (0, 0)
    assert found["finished"] >= 1
