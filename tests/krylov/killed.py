"""A run with snapshots that is killed with SIGKILL at random times, in steps and in writes, so many times.

    python killed.py BASIS [RANKS [PARTIAL_FROM]]

From PARTIAL_FROM parameters on, reorthogonalisation is partial. Of several ranks one is killed first, at random, and
then the others, as a launcher does.
"""

import datetime
import json
import os
import pickle
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
import torch.distributed.checkpoint  # before processes are forked, each of which would import it
import torch.distributed.tensor

import hesspec
from hesspec import run
from hesspec._ranks import ALONE, Ranks

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


def child(rank: int, count: int, basis: str, meeting: Path, folder: Path | None, result: Path) -> NoReturn:
    """Measure as one of the ranks, and leave the result where the first one has it."""
    try:
        ranks = ALONE
        if count > 1:
            limit = datetime.timedelta(seconds=60)
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count, timeout=limit)
            ranks = Ranks(dist.group.WORLD)
        found = hesspec.spectrum(Slow(ranks), steps=STEPS, basis=basis, snapshot=folder, every=0)
        if rank == 0:
            # Renamed into place, so that what is there is whole.
            result.with_suffix(".part").write_bytes(pickle.dumps((found.ritz_values, found.eigenvector_sketches)))
            result.with_suffix(".part").rename(result)
        os._exit(0)
    finally:
        os._exit(1)


def attempt(
    count: int, basis: str, folder: Path | None, result: Path, kill_after: float | None = None, first: int = 0
) -> tuple[int, bool]:
    """Start all ranks, and kill them unless they are to go to their end; kills, and whether any failed unkilled."""
    with tempfile.TemporaryDirectory() as name:
        processes = []
        for rank in range(count):
            process = os.fork()
            if process == 0:
                child(rank, count, basis, Path(name) / "meet", folder, result)
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


def main(basis: str, count: int = 1, partial_from: int = run.PARTIAL_FROM) -> None:
    torch.set_num_threads(1)
    run.PARTIAL_FROM = partial_from
    wanted = 50 if count == 1 else 30
    # Seconds until a kill; a run takes longer.
    longest = 0.4 if count == 1 else 1.5
    times = random.Random(0)  # noqa: S311 - of kills
    found = {"kills": 0, "wrong": 0, "failures": 0, "finished": 0}
    with tempfile.TemporaryDirectory() as name:
        attempt(count, basis, None, Path(name) / "result")
        expected = pickle.loads((Path(name) / "result").read_bytes())  # noqa: S301 - written above
    while found["kills"] < wanted and not found["failures"]:
        with tempfile.TemporaryDirectory() as name:
            folder, result = Path(name) / "snapshot", Path(name) / "result"
            while not result.exists() and not found["failures"]:
                wait = times.uniform(0, longest) if found["kills"] < wanted else None
                kills, failed = attempt(count, basis, folder, result, wait, times.randrange(count))
                found["kills"] += kills
                # Neither killed nor well ended: it did not go on.
                found["failures"] += failed
            if result.exists():
                got = pickle.loads(result.read_bytes())  # noqa: S301 - written above
                found["wrong"] += not all(map(np.array_equal, got, expected))
                found["finished"] += 1
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
