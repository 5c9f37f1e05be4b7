"""A run with snapshots on several ranks that is killed with SIGKILL at random times, in steps and in writes.

    python killed.py RANKS KILLS

One of the ranks is killed first, at random, and then the others, as a launcher does.
"""

import datetime
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist

import hesspec
from hesspec.backend.ranks import Ranks

STEPS = 24
SIZE = 60_000


class Slow:
    """A diagonal operator whose products take a while, so that kills fall into them, too."""

    shape, dtype, device = (SIZE, SIZE), torch.float32, torch.device("cpu")

    def __init__(self, ranks: Ranks) -> None:
        outer = torch.tensor([3.0, 4.0, 5.0, 7.0])
        begin, end = ranks.part(SIZE)
        self.ranks = ranks
        self._diagonal = torch.cat([torch.linspace(-0.1, 0.1, SIZE - 4), outer])[begin:end]

    def __matmul__(self, vector: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return self._diagonal * vector

    def identity(self) -> dict[str, str]:
        return {}


def child(rank: int, count: int, meeting: Path, folder: Path | None, result: Path) -> NoReturn:
    """Measure as one of the ranks, and leave the result where the first one has it."""
    try:
        limit = datetime.timedelta(seconds=60)
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count, timeout=limit)
        found = hesspec.spectrum(Slow(Ranks(dist.group.WORLD)), steps=STEPS, snapshot=folder, every=0)
        if rank == 0:
            # Renamed into place, so that what is there is whole.
            with result.with_suffix(".part").open("wb") as file:
                np.savez(file, ritz_values=found.ritz_values, sketches=found.eigenvector_sketches)
            result.with_suffix(".part").rename(result)
        os._exit(0)
    finally:
        os._exit(1)


def attempt(
    count: int, folder: Path | None, result: Path, kill_after: float | None = None, first: int = 0
) -> tuple[int, bool]:
    """Start all ranks, and kill them unless they are to go to their end; kills, and whether any failed unkilled."""
    with tempfile.TemporaryDirectory() as name:
        processes = []
        for rank in range(count):
            process = os.fork()
            if process == 0:
                child(rank, count, Path(name) / "meet", folder, result)
            processes.append(process)
        if kill_after is not None:
            time.sleep(kill_after)
            for process in [processes[first], *processes]:
                os.kill(process, signal.SIGKILL)
                time.sleep(0.02)
        ended = [os.waitpid(process, 0)[1] for process in processes]
    killed = any(os.WIFSIGNALED(status) for status in ended)
    failed = any(os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0 for status in ended)
    return int(killed), failed and not killed


def same(one: Path, other: Path) -> bool:
    with np.load(one) as left, np.load(other) as right:
        return all(np.array_equal(left[name], right[name]) for name in left)


def main(count: int, wanted: int) -> None:
    torch.set_num_threads(1)
    times = random.Random(0)  # noqa: S311 - of kills
    found = {"kills": 0, "wrong": 0, "failures": 0, "finished": 0}
    with tempfile.TemporaryDirectory() as name:
        expected = Path(name) / "expected"
        attempt(count, None, expected)
        while found["kills"] < wanted and not found["failures"]:
            folder, result = Path(name) / f"snapshot-{found['finished']}", Path(name) / f"result-{found['finished']}"
            while not result.exists() and not found["failures"]:
                # A run takes longer.
                wait = times.uniform(0, 1.5) if found["kills"] < wanted else None
                kills, failed = attempt(count, folder, result, wait, times.randrange(count))
                found["kills"] += kills
                # Neither killed nor well ended: it did not resume.
                found["failures"] += failed
            if result.exists():
                found["wrong"] += not same(result, expected)
                found["finished"] += 1
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
