"""Errors of tasks in a study, and the error that reports all of them at the end."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import torch

from hesspec.backend.memory import in_a_line, is_out_of_memory
from hesspec.errors import NonFiniteError

__all__ = ["TASK_ERRORS", "StudyError", "is_task_error", "noted", "raise_failures", "refuse_faults"]

TASK_ERRORS: Final = (ValueError, NonFiniteError, MemoryError, torch.OutOfMemoryError, OSError, ModuleNotFoundError)


def is_task_error(error: BaseException) -> bool:
    """Whether the other tasks continue after this error of a task.

    They do for errors of its data, network, learning rates, size, or a file. A file system that is briefly unavailable
    ends one task and not the rest of the week; if it is full, the others fail, too, each at its first write. Any other
    error is a fault of the program or of the user's code, and ends the study.
    """
    return isinstance(error, TASK_ERRORS) or is_out_of_memory(error)


@contextmanager
def noted(names: Iterable[str], failures: dict[str, Exception]) -> Iterator[None]:
    """Note an error of this block, after which other tasks continue, by the names of the tasks that it ends.

    Objects in the frames of the error, such as a network that did not fit into memory, are released.
    """
    try:
        yield
    except Exception as error:
        if not is_task_error(error):
            raise
        _let_go(error)
        failures.update(dict.fromkeys(names, error))


class StudyError(RuntimeError):
    """Tasks of a study that cannot be run or that failed; the message names each with its reason.

    Parameters
    ----------
    summary : str
        Sentence about the state of the study.
    failures : mapping of str to Exception
        Errors by the names of the tasks.

    Attributes
    ----------
    failures : dict of str to Exception
        Errors by the names of the tasks.
    """

    def __init__(self, summary: str, failures: Mapping[str, Exception]) -> None:
        self.summary, self.failures = summary, dict(failures)
        super().__init__(" ".join([summary, *self.sentences]))

    @property
    def sentences(self) -> list[str]:
        """Return one sentence for each reason, starting with the task, or the first of several."""
        tasks: dict[str, list[str]] = {}
        for name, error in self.failures.items():
            tasks.setdefault(in_a_line(error), []).append(name)
        return [f"{names[0]}{_others(len(names) - 1)}: {reason}" for reason, names in tasks.items()]


def _others(count: int) -> str:
    return f" (and {count} other task{'s' * (count > 1)})" if count else ""


def refuse_faults(faults: Mapping[str, Exception], tasks: int) -> None:
    """Raise StudyError if some tasks have faults that are known before anything is run."""
    if faults:
        raise StudyError(f"{len(faults)} of {tasks} tasks cannot be run, so nothing was started.", faults)


def raise_failures(failures: Mapping[str, Exception], tasks: int) -> None:
    """Raise StudyError if some tasks have failed after all others are done."""
    if failures:
        raise StudyError(f"{len(failures)} of {tasks} tasks failed; completed results are kept.", failures)


def _let_go(error: BaseException | None) -> None:
    """Release objects in the frames of an error; keep its traceback."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
