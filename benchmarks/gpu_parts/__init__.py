"""What `benchmarks/gpu.py` runs, one module a part; each part is a process of its own and keeps what it finds at once.

Every module has `run(given)`, which measures and passes each row to `given.keep` at once, and the `TITLE`, `NOTE` and
`COLUMNS` of its table.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["PARTS", "Given", "seconds_of", "synchronised"]

# Most important first: what there is time for counts.
PARTS = ("ceilings", "correctness", "products", "runs", "precision", "graphs", "kernels", "bases", "variants")


@dataclass(frozen=True)
class Given:
    """What a part runs on.

    Attributes
    ----------
    device : torch.device
    quick : bool
        Whether problems are small, for a try on a CPU.
    until : float
        `time.time()` at which the part should have ended.
    journal : Path
        File of rows, one JSON object a line.
    part : str
    """

    device: torch.device
    quick: bool
    until: float
    journal: Path
    part: str

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.until - time.time()

    def keep(self, *row: object, failed: bool = False) -> None:
        """Append a row to the journal, and have it on the disk before anything else is tried."""
        line = json.dumps({"part": self.part, "row": [str(entry) for entry in row], "failed": failed})
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(f"{self.part}: {' | '.join(str(entry) for entry in row)}", flush=True)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Record an exception in this step as a row, and continue."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a failure is what such a run is to find
            traceback.print_exc()
            sentence = " ".join(str(error).split())[:300]
            self.keep(name, f"{type(error).__name__}: {sentence}", failed=True)


def synchronised(function: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """Return a function that also waits for the device."""

    def call() -> None:
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    call = synchronised(function, device)
    synchronised(lambda: None, device)()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
