"""Processes with a group among them, each of which runs a script of the folder `distributed` and prints JSON."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "distributed"
LIMIT = 1800  # seconds after which processes hang: three ranks on two busy cores took 410


@dataclass(frozen=True)
class Ended:
    """How a rank ended: its exit status, what it printed last as JSON, and its errors."""

    status: int
    result: Any
    errors: str


def launch(script: str, ranks: int, *arguments: object) -> list[Ended]:
    """Run a script as each of so many ranks, as `torchrun` would but for the ending of ranks by one another."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(HERE.parent),
    }
    processes = [
        subprocess.Popen(  # noqa: S603 - this very Python and a script of the tests
            [sys.executable, "-W", "error::UserWarning:hesspec", HERE / script, *map(str, arguments)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    ended = []
    try:
        for process in processes:
            out, errors = process.communicate(timeout=LIMIT)
            lines = [line for line in out.splitlines() if line.startswith("{")]
            ended.append(Ended(process.returncode, json.loads(lines[-1]) if lines else None, errors))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return ended


def results(script: str, ranks: int, *arguments: object) -> list[Any]:
    """What each rank printed, of ranks that all end well."""
    ended = launch(script, ranks, *arguments)
    for rank, one in enumerate(ended):
        assert one.status == 0, f"rank {rank}: {one.errors}"
    return [one.result for one in ended]
