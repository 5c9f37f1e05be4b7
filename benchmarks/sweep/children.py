"""A process for each case, so that what a case does to its process, or how that ends, is its own."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from zoo.case import Case

__all__ = ["run_each"]

# A child may use so much memory, and take so many times its CPU seconds by the clock.
MOST_BYTES = 6 * 2**30
PATIENCE = 5.0


@dataclass
class _Child:
    case: Case
    pid: int
    folder: tempfile.TemporaryDirectory[str]
    started: float

    @property
    def result(self) -> Path:
        return Path(self.folder.name) / "record.json"

    @property
    def printed(self) -> Path:
        return Path(self.folder.name) / "printed"


def run_each(
    cases: Iterable[Case], measure: Callable[[Case, Callable[[dict[str, Any]], None], Path], None], jobs: int
) -> Iterator[dict[str, Any]]:
    """Measure each case in a process forked from this one, and yield their records as they come.

    Parameters
    ----------
    cases : iterable of Case
    measure : callable
        `measure(case, save, printed)`; see `sweep.measure`.
    jobs : int
        Number of processes at a time.
    """
    waiting, running = list(cases), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(waiting.pop(0), measure))
            for child in list(running):
                end = _end(child)
                if end is not None:
                    running.remove(child)
                    yield _collect(child, end)
            time.sleep(0.05)
    finally:
        for child in running:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)


def _start(case: Case, measure: Callable[..., None]) -> _Child:
    folder = tempfile.TemporaryDirectory(prefix="hesspec-models-")
    sys.stdout.flush()
    pid = os.fork()
    child = _Child(case, pid, folder, time.monotonic())
    if pid:
        return child
    code = 1
    try:
        output = os.open(child.printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(case.limit), int(case.limit) + 5))
        measure(case, lambda record: _write(child.result, record), child.printed)
        code = 0
    except BaseException:  # noqa: BLE001 - the child has nobody to raise it to
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # Neither the parent's exit handlers nor its temporary folders are the child's.
        os._exit(code)


def _write(path: Path, record: dict[str, Any]) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(record))
    draft.replace(path)


def _end(child: _Child) -> str | None:
    """How a child ended: an empty string if well; None while it runs."""
    pid, status = os.waitpid(child.pid, os.WNOHANG)
    if pid:
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGXCPU:
                return f"took more than {child.case.limit:.0f} CPU seconds"
            return f"died of {signal.Signals(number).name}"
        return "" if os.WEXITSTATUS(status) == 0 else "ended with an exception of the sweep"
    reason = None
    if time.monotonic() - child.started > PATIENCE * child.case.limit:
        reason = f"took more than {PATIENCE * child.case.limit:.0f} s by the clock"
    elif psutil.Process(child.pid).memory_info().rss > MOST_BYTES:
        reason = f"took more than {MOST_BYTES / 2**30:.0f} GiB"
    if reason is not None:
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
    return reason


def _collect(child: _Child, end: str) -> dict[str, Any]:
    record = json.loads(child.result.read_text()) if child.result.exists() else {}
    record = {"name": child.case.name, "family": child.case.family, **record}
    if end:
        record["end"] = end
        record["log"] = child.printed.read_text(errors="replace")[-2000:] if child.printed.exists() else ""
    child.folder.cleanup()
    return record
