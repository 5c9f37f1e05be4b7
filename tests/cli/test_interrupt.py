"""Ctrl-C leaves no half-written file, and ends with a line and the exit code 130."""

import os
import pty
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from hesspec.spectra.record import load

# Python ignores SIGINT where the shell that started it does, as for a job in the background; a terminal does not.
MAIN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from hesspec.cli.app import main
main()
"""
LAST = "Interrupted. All files written so far are complete."
ENDLESS = ("--data", "digits", "--samples-per-class", "1", "--steps", "20000")


@contextmanager
def started(*arguments, stderr=subprocess.PIPE):
    """A process of the command; it is gone at the end, whatever happens."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    with subprocess.Popen(  # noqa: S603 - our own program
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(file, text):
    """Lines up to one that has the text."""
    lines = []
    while not lines or text not in lines[-1]:
        line = file.readline()
        assert line, f"It ended without {text!r}:\n{''.join(lines)}"
        lines.append(line)


def interrupt(process):
    """Send what Ctrl-C sends, and see how it ends; what the process still prints on a pipe has to be the line alone."""
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=1000)
    assert process.returncode == 130
    assert output == ""
    if errors is not None:
        # A signal that comes while the line before is being written can repeat that line.
        assert errors.splitlines()[-1] == LAST
        assert "Traceback" not in errors


@pytest.fixture
def finished(hesspec, here):
    """A spectrum in the folder from an earlier command."""
    options = ("--data", "digits", "--samples-per-class", 1, "--steps", 2, "--split", "test", "--matrix", "g")
    assert hesspec("measure", "small_cnn", *options).exit_code == 0
    return here / "spectra"


def everything_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts)


def test_a_measurement_in_a_pipe(finished):
    with started("measure", "small_cnn", *ENDLESS) as process:
        read_until(process.stderr, "Hess, train set ...")
        interrupt(process)
    assert everything_below(finished) == ["initialisation-test-GaussNewton.nc"]
    load(finished / "initialisation-test-GaussNewton.nc")


@pytest.mark.long
def test_a_measurement_on_a_terminal(finished):
    ours, theirs = pty.openpty()
    try:
        with started("measure", "small_cnn", *ENDLESS, stderr=theirs) as process:
            os.close(theirs)  # so that the end of the process is the end of the file
            seen = ""
            while " left" not in seen:  # the first steps are done
                seen += os.read(ours, 1024).decode("utf-8", "replace")
            assert "Hess, train set" in seen
            interrupt(process)
            while LAST not in seen:
                seen += os.read(ours, 1024).decode("utf-8", "replace")
    finally:
        os.close(ours)
    assert "Traceback" not in seen
    assert everything_below(finished) == ["initialisation-test-GaussNewton.nc"]


@pytest.mark.long
def test_the_demo(here):
    with started("demo", "--out", here / "demo") as process:
        read_until(process.stderr, "G, train set, epoch 0, ")
        interrupt(process)
    (spectrum,) = (here / "demo").rglob("*.nc")
    assert load(spectrum).attributes["matrix"] == "Hessian"
    assert not [path for path in everything_below(here / "demo") if "unfinished" in path or path.endswith(".html")]


@pytest.mark.long
def test_a_signal_to_end_is_answered_like_ctrl_c(finished):
    with started("measure", "small_cnn", *ENDLESS) as process:
        read_until(process.stderr, "Hess, train set ...")
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=1000)
    assert process.returncode == 128 + signal.SIGTERM
    assert output == ""
    assert errors.splitlines()[-1] == "Terminated. All files written so far are complete."
    assert everything_below(finished) == ["initialisation-test-GaussNewton.nc"]


SWALLOWED = """
import os, signal, sys
import hesspec.operators.base as base

times = 0
take = base.CurvatureOperator.__matmul__

class Finaliser:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def product(self, vector):
    global times
    times += 1
    if times == 3:
        Finaliser()  # Python drops what is raised in it
    return take(self, vector)

base.CurvatureOperator.__matmul__ = product
"""


@pytest.mark.long
def test_a_signal_that_arises_where_python_drops_it_is_not_lost(here):
    (here / "swallowed.py").write_text(SWALLOWED)
    main = f"import sys; sys.path.insert(0, {str(here)!r}); import swallowed\n{MAIN}"
    command = [sys.executable, "-c", main, "measure", "small_cnn", *ENDLESS]
    done = subprocess.run(  # noqa: S603 - our own program
        command, capture_output=True, text=True, check=False, timeout=1000, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert "Exception ignored" in done.stderr
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == LAST
    assert not list(here.rglob("*.nc"))


# Ends the process, as Ctrl-C would, while the named module is imported.
IMPORTING = """
import builtins, os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
name, load = {name!r}, builtins.__import__

def importing(wanted, *rest, **more):
    if wanted == name and name not in sys.modules:
        builtins.__import__ = load
        os.kill(os.getpid(), signal.SIGINT)
    return load(wanted, *rest, **more)

builtins.__import__ = importing
sys.argv = ["hesspec", "show", "none.nc", "none.nc"]
runpy.run_module("hesspec", run_name="__main__")
"""


@pytest.mark.parametrize(
    "name", ["hesspec.cli.app", "typer", "rich.console", "hesspec.spectra.spectrum", "xarray", "h5py"]
)
@pytest.mark.few(2)
def test_ctrl_c_while_importing_is_a_line(here, name):
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", IMPORTING.format(name=name)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{LAST}\n")
