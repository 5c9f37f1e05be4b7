"""`torchrun -m hesspec`, and snapshots of `hesspec measure`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hesspec import load
from hesspec.krylov import snapshot

MEASURE = ("measure", "small_cnn", "--data", "digits", "--samples-per-class", "3", "--steps", "12")


def torchrun(folder, ranks, *arguments):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(ranks),
        "-m",
        "hesspec",
        *arguments,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    return subprocess.run(  # noqa: S603 - this very Python
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_ranks_write_one_file_of_the_same_spectrum(hesspec, here):
    ended = torchrun(here, 2, *MEASURE, "--matrix", "hess", "--out", "shared", "--snapshot", "running")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Lanczos steps") == 1
    assert ended.stderr.count("No --weights") == 1
    assert [path.name for path in (here / "shared").iterdir()] == ["initialisation-train-Hessian.nc"]
    assert not (here / "running").exists()
    hesspec(*MEASURE, "--matrix", "hess", "--out", "alone")
    shared, alone = (load(here / name / "initialisation-train-Hessian.nc") for name in ("shared", "alone"))
    assert np.allclose(shared.ritz_values, alone.ritz_values, rtol=0, atol=1e-5 * alone.norm)
    assert (shared.attributes["ranks"], shared.attributes["samples"]) == (2, alone.attributes["samples"])


ERRORS = [
    (("measure", "smal_cnn", "--data", "digits"), "There is no network 'smal_cnn'; did you mean 'small_cnn'?"),
    (("study", "digits-quick"), "hesspec study runs in a single process and cannot be started by torchrun"),
    ((*MEASURE, "--out", "/proc/nowhere"), "/proc/nowhere"),
]


@pytest.mark.long
@pytest.mark.parametrize(("arguments", "error"), ERRORS)
def test_an_error_is_one_line_of_one_rank(here, arguments, error):
    ended = torchrun(here, 2, *arguments)
    assert ended.returncode != 0
    lines = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert error in lines[0]
    # Of the rank that speaks: neither a signal nor a crash.
    assert re.search(r"Root Cause.*exitcode +: 1 ", ended.stderr, re.DOTALL)


def test_an_interrupted_command_goes_on_with_what_it_has(hesspec, here, monkeypatch):
    whole = hesspec(*MEASURE, "--matrix", "hess", "--matrix", "g", "--out", "whole")
    assert whole.exit_code == 0, whole.output
    write, count = snapshot.Snapshot.write, 0

    def interrupted(self, state):
        nonlocal count
        write(self, state)
        count += 1
        if count == 18:  # in the second of two spectra of 12 steps
            raise KeyboardInterrupt

    monkeypatch.setattr(snapshot.Snapshot, "write", interrupted)
    again = (*MEASURE, "--matrix", "hess", "--matrix", "g", "--out", "parts", "--snapshot", "running", "--every", "0")
    stopped = hesspec(*again)
    assert stopped.exit_code == 130
    assert [path.name for path in (here / "parts").iterdir()] == ["initialisation-train-Hessian.nc"]
    finished = hesspec(*again)
    assert finished.exit_code == 0, finished.output
    assert "Resuming from the snapshots in running" in finished.output
    assert "Already measured: parts/initialisation-train-Hessian.nc" in re.sub(r"\s+", " ", finished.output)
    for matrix in ("Hessian", "GaussNewton"):
        one, other = (load(here / folder / f"initialisation-train-{matrix}.nc") for folder in ("whole", "parts"))
        assert np.array_equal(one.ritz_values, other.ritz_values)
    assert not (here / "running").exists()


def test_what_is_measured_is_not_measured_again(hesspec, here):
    assert hesspec(*MEASURE, "--matrix", "g").exit_code == 0
    file = here / "spectra" / "initialisation-train-GaussNewton.nc"
    before = file.read_bytes()
    again = hesspec(*MEASURE, "--matrix", "g", "--snapshot", "running")
    assert again.exit_code == 0, again.output
    assert "Already measured: spectra/initialisation-train-GaussNewton.nc" in again.stderr
    assert "Saved" not in again.stdout
    shared = torchrun(here, 2, *MEASURE, "--matrix", "g", "--snapshot", "running")
    assert shared.returncode == 0, shared.stderr
    assert shared.stderr.count("Already measured") == 1
    assert file.read_bytes() == before
    assert not Path("running").exists()


@pytest.fixture
def interrupted(hesspec, here, monkeypatch):
    """A command that measured Hess and was interrupted while it measured G."""
    write = snapshot.Snapshot.write
    count = 0

    def stop(self, state):
        nonlocal count
        write(self, state)
        count += 1
        if count == 18:  # in the second of two spectra of 12 steps
            raise KeyboardInterrupt

    command = (*MEASURE, "--matrix", "hess", "--matrix", "g", "--snapshot", "running", "--every", "0")
    with monkeypatch.context() as once:
        once.setattr(snapshot.Snapshot, "write", stop)
        assert hesspec(*command).exit_code == 130
    return command


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        (("--samples-per-class", "2"), "its --samples-per-class was 3, and now it is 2"),
        (("--seed", "7"), "its --seed was 0, and now it is 7"),
        (("--steps", "6"), "its --steps was 12, and now it is 6"),
        (("--params", "*.bias"), "its --params was all, and now it is *.bias"),
        (("--dtype", "float64"), "its --dtype was float32, and now it is float64"),
        (("--out", "elsewhere"), "its --out was"),
    ],
)
@pytest.mark.few(2)
def test_results_of_another_command_are_not_taken_for_its_own(hesspec, interrupted, option, difference):
    refused = hesspec(*interrupted, *option)
    assert refused.exit_code == 1
    assert difference in refused.output
    assert "Choose another folder with --snapshot" in refused.output


def test_what_else_is_in_the_folder_of_snapshots_is_left_and_said(hesspec, interrupted, here):
    (here / "running" / "notes.txt").write_text("mine")
    # The snapshot of G is left, too.
    without = hesspec(*MEASURE, "--matrix", "hess", "--snapshot", "running")
    assert without.exit_code == 0, without.output
    assert (
        "The folder running was not deleted, as it contains initialisation-train-GaussNewton, notes.txt."
        in without.stderr
    )
    assert "Lanczos steps" in without.stdout
    finished = hesspec(*interrupted)
    assert finished.exit_code == 0, finished.output
    assert "The folder running was not deleted, as it contains notes.txt." in finished.stderr
    assert [path.name for path in (here / "running").iterdir()] == ["notes.txt"]


def test_a_record_that_is_damaged_is_said(hesspec, interrupted, here):
    (here / "running" / "command.json").write_text("nothing")
    refused = hesspec(*interrupted)
    assert refused.exit_code == 1
    assert "The record 'running/command.json' of an interrupted command cannot be read" in refused.output


def test_a_time_between_snapshots_without_a_folder_for_them_is_refused(hesspec, here):
    refused = hesspec(*MEASURE, "--every", "1h")
    assert refused.exit_code == 1
    assert "--every 1h requires a folder for the snapshots; choose one with --snapshot." in refused.output


def test_a_bad_interval_is_said_before_anything_is_measured(hesspec, here):
    refused = hesspec(*MEASURE, "--snapshot", "running", "--every", "soon")
    assert refused.exit_code == 1
    assert "every='soon' is not a valid duration" in refused.output
    assert not Path("running").exists()


def test_a_rank_that_a_scheduler_has_set_alone_silences_nothing(hesspec, here, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    refused = hesspec("measure", "smal_cnn", "--data", "digits")
    assert refused.exit_code == 1
    assert "There is no network 'smal_cnn'" in refused.output


FAULTY = """
import os
import signal

from torch import nn

from hesspec.operators.engine.streaming import LinearisedRisk

run_pass, count = LinearisedRisk._pass, 0


def faulty(self, vectors):
    global count
    count += 1
    if os.environ["RANK"] == "1" and count == 5:
        if os.environ["FAULT"] == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("batch 3 cannot be read")
    return run_pass(self, vectors)


LinearisedRisk._pass = faulty


def linear(channels, classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, classes))
"""


@pytest.fixture
def faulty(here, monkeypatch):
    """Function from a fault to how the command ended that had it in its fifth product, with a snapshot before each."""

    def run(fault):
        (here / "faulty.py").write_text(FAULTY)
        monkeypatch.setenv("FAULT", fault)
        network = ("measure", "faulty:linear", *MEASURE[2:], "--matrix", "hess")
        ended = torchrun(here, 2, *network, "--snapshot", "running", "--every", "0")
        assert ended.returncode != 0
        assert not list((here / "spectra").iterdir())
        assert (here / "running" / "initialisation-train-Hessian" / snapshot.STATE).is_file()
        return ended, [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]

    return run


@pytest.mark.long
def test_an_error_in_the_middle_of_one_rank_is_one_line(faulty):
    ended, lines = faulty("raises")
    assert lines == ["Error: batch 3 cannot be read"]
    assert re.search(r"Root Cause.*exitcode +: 1 ", ended.stderr, re.DOTALL)


@pytest.mark.long
def test_the_death_of_a_rank_in_the_middle_ends_the_command(faulty):
    ended, lines = faulty("dies")
    assert re.search(r"exitcode +: -9 ", ended.stderr)
    # None where the launcher is faster than the rank that is left.
    assert len(lines) <= 1
    assert all("A rank exited" in line for line in lines)
