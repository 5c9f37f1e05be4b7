"""A run with snapshots that is killed with SIGKILL at random times, in steps and in writes, so many times."""

import json
import os
import pickle
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import hesspec

KILLS = 50
STEPS = 24
SIZE = 60_000
LONGEST = 0.4  # seconds; a run takes longer


class Slow:
    """A diagonal operator whose products take a while, so that kills fall into them, too."""

    shape, dtype, device = (SIZE, SIZE), torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        outer = torch.tensor([3.0, 4.0, 5.0, 7.0])
        self._diagonal = torch.cat([torch.linspace(-0.1, 0.1, SIZE - 4), outer])

    def __matmul__(self, vector: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return self._diagonal * vector

    def identity(self) -> dict[str, str]:
        return {}


def measure(folder: Path | None) -> hesspec.Spectrum:
    return hesspec.spectrum(Slow(), steps=STEPS, basis=sys.argv[1], snapshot=folder, every=0)


def child(folder: Path, result: Path) -> None:
    try:
        found = measure(folder)
        # Renamed into place, so that what is there is whole.
        result.with_suffix(".part").write_bytes(pickle.dumps((found.ritz_values, found.eigenvector_sketches)))
        result.with_suffix(".part").rename(result)
        os._exit(0)
    finally:
        os._exit(1)


def main() -> None:
    torch.set_num_threads(1)
    times = random.Random(0)  # noqa: S311 - of kills
    whole = measure(None)
    kills, wrong, failures, finished = 0, 0, 0, 0
    while kills < KILLS:
        with tempfile.TemporaryDirectory() as name:
            folder, result = Path(name) / "snapshot", Path(name) / "result"
            while not result.exists():
                process = os.fork()
                if process == 0:
                    child(folder, result)
                if kills < KILLS:
                    time.sleep(times.uniform(0, LONGEST))
                    os.kill(process, signal.SIGKILL)
                _, status = os.waitpid(process, 0)
                kills += os.WIFSIGNALED(status)
                # Neither killed nor well ended: it did not go on.
                failures += os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0
                if failures:
                    break
            if result.exists():
                ritz, sketches = pickle.loads(result.read_bytes())  # noqa: S301 - written above
                wrong += not (
                    np.array_equal(ritz, whole.ritz_values) and np.array_equal(sketches, whole.eigenvector_sketches)
                )
                finished += 1
            if failures:
                break
    print(json.dumps({"kills": kills, "wrong": wrong, "failures": failures, "finished": finished}))  # noqa: T201


if __name__ == "__main__":
    main()
