"""Locks of tasks, so that several processes run a study together, and notes in their files."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from hesspec.spectra.study_names import SGD
from hesspec.study.folders import RUNS, hold, without_links
from hesspec.study.store import Task, key_of

__all__ = ["lock", "note_memory", "noted_memory"]


@contextmanager
def lock(task: Task, *, wait: bool = False) -> Iterator[Literal[True] | None]:
    """Lock a task, so that no other process works on it; yields None if another one does, or waits for it.

    The lock ends with the process, for whatever reason.
    """
    path, folder = _lock_of(task), task.runs[0].folder
    folder.mkdir(parents=True, exist_ok=True)
    without_links(folder, path.parent)
    with hold(path, wait=wait) as held:
        yield True if held else None


def _lock_of(task: Task) -> Path:
    first = task.runs[0]
    name = "" if first.settings.optimizer == SGD else first.settings.optimizer
    of_task = {"settings": first.settings.seed, **({"optimizer": name} if name else {})}
    return first.folder / RUNS / f".{key_of({**first.identity, **of_task})}.lock"


def note_memory(task: Task) -> None:
    """Record the peak memory of this process so far, for a message if it is killed."""
    most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The task does not depend on it: it is used in one message only.
    with contextlib.suppress(OSError):
        _lock_of(task).write_text(str(most), encoding="ascii")


def noted_memory(task: Task) -> int | None:
    """Return the last value of `note_memory` in bytes; None if there is none."""
    try:
        return int(_lock_of(task).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
