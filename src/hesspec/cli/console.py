"""Output of the command line: results on standard output; progress, notes and errors on standard error."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from hesspec.backend.bars import no_bars
from hesspec.backend.text import printable
from hesspec.cli.signals import end_if_asked

__all__ = ["next_step", "notes", "output", "progress", "say", "warn", "warnings_in_a_line"]


class _Console(Console):
    """Console that escapes control characters in what it prints, such as names read from files."""

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, keep="\n"), segment.style)


# Brackets and colons in the names of files and networks are not markup.
output = _Console(highlight=False, markup=False, emoji=False)
notes = _Console(highlight=False, markup=False, emoji=False, stderr=True)


def say(text: str, style: str = "") -> None:
    """Print a line on standard error."""
    # Not wrapped at the width of the terminal, so that programs that read it get one line.
    notes.print(Text(printable(text), style=style), soft_wrap=True)


def next_step(command: str, purpose: str) -> None:
    """Print on standard error what to do next: a command, and what it does."""
    say(f"Next: {command} {purpose}.", "dim")


def warn(text: object) -> None:
    """Print a warning in one line on standard error."""
    say(f"Warning: {' '.join(str(text).split())}", "yellow")


class _InALine(logging.Handler):
    """Log handler that prints each warning in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Print each warning in one line, whether it is issued by `warnings` or by hesspec's logger."""
    handler, logger = _InALine(logging.WARNING), logging.getLogger("hesspec")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: warn(message)
            yield
    finally:
        logger.removeHandler(handler)


class _TimeLeft(ProgressColumn):
    """Time left, or time passed if the total is unknown."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        seconds, word = (task.elapsed or 0, "passed") if left is None else (left, "left")
        minutes, seconds = divmod(int(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
        return Text(f"{clock} {word}")


@contextmanager
def progress() -> Iterator[Callable[[str, float, float | None], None]]:
    """Yield a function that shows progress: as a bar on a terminal, otherwise as one line per activity."""
    with no_bars():
        yield from _progress()


def _progress() -> Iterator[Callable[[str, float, float | None], None]]:
    if not notes.is_terminal:
        shown = ""

        def line(what: str, _done: float, _total: float | None) -> None:
            nonlocal shown
            end_if_asked()
            if what != shown:
                say(f"{what} ...")
                shown = what

        yield line
        return
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(min_width=31, no_wrap=True)),
        BarColumn(24),
        TaskProgressColumn(),
        _TimeLeft(),
    )
    with Progress(*columns, console=notes, transient=True) as bars:
        task = bars.add_task("", total=None)

        def bar(what: str, done: float, total: float | None) -> None:
            end_if_asked()
            bars.update(task, description=what, completed=done, total=total)

        yield bar
