"""Processes with a group among them, each of which runs a script of `tests/scripts/ranks` and prints JSON."""

import contextlib
import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1] / "scripts" / "ranks"
LIMIT = 1800  # seconds after which processes hang: three ranks on two busy cores took 410


@dataclass(frozen=True)
class Ended:
    """How a rank ended: its exit status, what it printed last as JSON, and its errors."""

    status: int
    result: Any
    errors: str


def launch(script: str, ranks: int, *arguments: object) -> list[Ended]:
    """Run a script as each of so many ranks, as `torchrun` would but for the ending of ranks by one another."""
    return _launch(_process, script, ranks, arguments)


def launch_forked(script: str, ranks: int, *arguments: object) -> list[Ended]:
    """As `launch`, in processes forked from one that has imported PyTorch and hesspec: they start at once.

    They do not end as others do: modules and their threads are not taken down.
    """
    return _launch(_fork, script, ranks, arguments)


def results(script: str, ranks: int, *arguments: object, start: Callable[..., list[Ended]] = launch) -> list[Any]:
    """What each rank printed, of ranks that all end well."""
    ended = start(script, ranks, *arguments)
    for rank, one in enumerate(ended):
        assert one.status == 0, f"rank {rank}: {one.errors}"
    return [one.result for one in ended]


def _launch(start: Callable[..., Any], script: str, ranks: int, arguments: tuple[object, ...]) -> list[Ended]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        printed = [(Path(name) / f"{rank}.out", Path(name) / f"{rank}.err") for rank in range(ranks)]
        waits = []
        for rank, files in enumerate(printed):
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process, wait = start(SCRIPTS / script, [str(each) for each in arguments], environment, files)
            stack.callback(process.kill)
            waits.append(wait)
        statuses = [wait() for wait in waits]
        ended = []
        for status, (out, errors) in zip(statuses, printed, strict=True):
            lines = [line for line in out.read_text().splitlines() if line.startswith("{")]
            ended.append(Ended(status, json.loads(lines[-1]) if lines else None, errors.read_text()))
    return ended


def _process(
    script: Path, arguments: list[str], environment: dict[str, str], files: tuple[Path, Path]
) -> tuple[Any, Callable[[], int]]:
    with files[0].open("w") as out, files[1].open("w") as errors:
        process = subprocess.Popen(  # noqa: S603 - this very Python and a script of the tests
            [sys.executable, "-W", "error::UserWarning:hesspec", script, *arguments],
            env={**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parent)},
            stdout=out,
            stderr=errors,
        )
    return process, lambda: process.wait(LIMIT)


def _fork(
    script: Path, arguments: list[str], environment: dict[str, str], files: tuple[Path, Path]
) -> tuple[Any, Callable[[], int]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["hesspec.measure.spectrum", "hesspec.operators", "torch.distributed.fsdp", "transformers.models.gpt2"]
    )
    process = context.Process(target=_run, args=(script, arguments, environment, files))
    process.start()

    def wait() -> int:
        process.join(LIMIT)
        assert process.exitcode is not None, f"it hangs: {files[1].read_text()}"
        return process.exitcode

    return process, wait


def _run(script: Path, arguments: list[str], environment: dict[str, str], files: tuple[Path, Path]) -> None:
    os.environ.update(environment)
    for number, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [str(script), *arguments]
    warnings.filterwarnings("error", category=UserWarning, module="hesspec")
    runpy.run_path(str(script), run_name="__main__")
    sys.stdout.flush()
