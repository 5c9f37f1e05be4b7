"""Runs with snapshots that are killed, in products, between calls to the file system and in writes, and resumed.

    python killed_runs.py every CASE
    python killed_runs.py random KILLS SEED CASE...

`every` kills a run at each of its calls to the file system in turn, and resumes it each time; `random` kills and
resumes runs, at random, until there were so many kills. Both print what they found as JSON: kills, runs that ended, and
what was wrong.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

import hesspec
from hesspec.krylov import run
from hesspec.krylov.snapshot import STATE
from hesspec.krylov.snapshot_files import read_record

# Calls of Python to the file system that change something, by the names of their audit events.
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
BASES = ("full", "half", "full on host", "half on host", "full on disk", "half on disk", "restarted")


@dataclasses.dataclass(frozen=True)
class Case:
    """An operator and how it is measured."""

    operator: Callable[[torch.dtype], Any]
    dtype: torch.dtype
    options: dict[str, Any]
    partial: bool = False

    def measure(self, operator: Any, **options: Any) -> hesspec.Spectrum:
        run.PARTIAL_FROM = 1 if self.partial else 1 << 30
        given = {**self.options, **options}
        if given.get("basis") == "restarted":
            given["memory"] = 24 * self.dtype.itemsize * operator.shape[0]
        return hesspec.spectrum(operator, **given)


def dense(dtype: torch.dtype) -> torch.Tensor:
    """A matrix of whose eigenvalues more and more are resolved."""
    generator = torch.Generator().manual_seed(3)
    q, _ = torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=torch.float64))
    values = 9 * torch.logspace(0, -3, 200, dtype=torch.float64)
    values[1::2] *= -1
    found = (q * values) @ q.T
    return ((found + found.T) / 2).to(dtype)


def network(dtype: torch.dtype) -> hesspec.Hessian:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5)).eval().to(dtype)
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(40, 12, generator=generator), torch.randint(5, (40,), generator=generator)) for _ in range(3)]
    return hesspec.Hessian(model, nn.CrossEntropyLoss(), data)


def cases() -> dict[str, Case]:
    """All cases, by their names."""
    found = {}
    for (kind, operator), dtype, basis, probes, partial in itertools.product(
        (("dense", dense), ("network", network)), (torch.float32, torch.float64), BASES, (1, 3), (False, True)
    ):
        steps = 40 if basis == "restarted" else 20
        name = f"{kind}, {str(dtype)[6:]}, {basis}, {probes} probes{', partial' if partial else ''}"
        width, _, place = basis.partition(" on ")
        options = {"steps": steps, "probes": probes, "basis": width, "offload": place or None}
        found[name] = Case(operator, dtype, options, partial)
    auto = {"steps": "auto", "tolerance": 0.02, "probes": 2}
    return {**found, "network, float32, auto": Case(network, torch.float32, auto)}


class Counted:
    """An operator that kills the process in a product."""

    def __init__(self, operator: Any, deadly: int | None) -> None:
        self._operator, self._left = operator, deadly
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device

    def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                die()
        product: torch.Tensor = self._operator @ vectors
        return product


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclasses.dataclass(frozen=True)
class Kill:
    """When a process is killed: in a product, at a call to the file system, or beyond so many bytes of a file."""

    product: int | None = None
    call: int | None = None
    size: int | None = None

    def prepare(self, folder: Path) -> None:
        if self.call is not None:
            left = self.call

            def hook(event: str, arguments: tuple[Any, ...]) -> None:
                nonlocal left
                if event in CHANGES and any(str(folder) in str(argument) for argument in arguments):
                    left -= 1
                    if left < 0:
                        die()

            sys.addaudithook(hook)
        if self.size is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            limit_files(self.size)


def limit_files(size: int | None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def digests(found: hesspec.Spectrum) -> dict[str, str]:
    """Every field of a spectrum, as a digest of its bits."""
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    attributes = fields.pop("attributes")
    fields |= {name: attributes[name] for name in ("basis", "reorthogonalised_steps")}
    return {
        name: hashlib.sha256(value.tobytes() if isinstance(value, np.ndarray) else f"{value!r}".encode()).hexdigest()
        for name, value in fields.items()
    }


def measure(case: Case, folder: Path | None, result: Path, kill: Kill) -> None:
    """Measure, and leave the digests of the result."""
    operator = Counted(case.operator(case.dtype), kill.product)
    if folder is None:
        found = case.measure(operator)
    else:
        kill.prepare(folder)
        found = case.measure(operator, snapshot=folder, every=0)
        limit_files(None)
    result.write_text(json.dumps(digests(found)))


def child(work: Callable[[], object]) -> NoReturn:
    """Work until it is done or killed; errors are printed."""
    try:
        work()
        os._exit(0)
    except BaseException:  # noqa: BLE001 - of a child, which ends here
        traceback.print_exc()
    finally:
        os._exit(1)


def done_by_child(work: Callable[[], object]) -> bool:
    """Whether a child process did its work to the end; False if it was killed.

    Raises
    ------
    RuntimeError
        If it ended with an error.
    """
    process = os.fork()
    if process == 0:
        child(work)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status not in (0, -signal.SIGKILL, -signal.SIGXFSZ, -signal.SIGALRM):
        raise RuntimeError(f"a process ended with the status {status}: it did not resume")
    return status == 0


def leftovers(folder: Path) -> list[str]:
    """Files in a folder that its snapshot does not list."""
    there = {path.name for path in folder.iterdir()}
    return sorted(there - {STATE} - read_record(folder).files)


class Campaign:
    """Kills of runs of cases, and what came of them."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {"kills": 0, "finished": 0, "different": [], "left": []}

    def run(self, name: str, kills: Callable[[], Kill]) -> None:
        """Kill and resume a case's run, as is said, until it has ended."""
        case = cases()[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder, result = Path(temporary) / "snapshot", Path(temporary) / "result"
            done_by_child(functools.partial(measure, case, None, result, Kill()))
            expected = json.loads(result.read_text())
            while not done_by_child(functools.partial(measure, case, folder, result, kills())):
                self.found["kills"] += 1
            got = json.loads(result.read_text())
            self.found["finished"] += 1
            different = [field for field in expected if got[field] != expected[field]]
            self.found["different"] += [f"{name}: {field}" for field in different]
            self.found["left"] += [f"{name}: {file}" for file in leftovers(folder)]


def main() -> None:
    torch.set_num_threads(1)
    campaign = Campaign()
    if sys.argv[1] == "every":
        calls = itertools.count()
        campaign.run(sys.argv[2], lambda: Kill(call=next(calls)))
    else:
        wanted, seed, names = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] or list(cases())
        choice = random.Random(seed)  # noqa: S311 - of kills

        def any_kill() -> Kill:
            if campaign.found["kills"] >= wanted:
                return Kill()
            kinds = (
                Kill(product=choice.randrange(12)),
                Kill(call=choice.randrange(60)),
                Kill(size=choice.randrange(40_000)),
            )
            return choice.choice(kinds)

        for name in itertools.cycle(names):
            campaign.run(name, any_kill)
            if campaign.found["kills"] >= wanted:
                break
    print(json.dumps(campaign.found))  # noqa: T201


if __name__ == "__main__":
    main()
