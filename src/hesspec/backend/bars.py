"""Progress bars of functions that are called from Python: in a terminal and in notebooks, after two seconds."""

from __future__ import annotations

import html
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from hesspec.backend.progress import OnStep, Progress

__all__ = ["bar_of", "no_bars", "phase", "steps_of"]

DELAY: Final = 2.0  # seconds before a bar is shown
PAUSE: Final = 0.2  # seconds between two updates in a notebook

# What receives the phases of the work in progress, and whether something else shows progress already.
_listener: ContextVar[Callable[[str], None] | None] = ContextVar("_listener", default=None)
_taken: ContextVar[bool] = ContextVar("_taken", default=False)


class _Bar(Protocol):
    def update(self, what: str, done: float, total: float | None) -> None: ...

    def close(self) -> None: ...


def phase(name: str) -> None:
    """Name the phase of the work in progress, such as "tracing", for the bar that shows it."""
    tell = _listener.get()
    if tell is not None:
        tell(name)


@contextmanager
def no_bars() -> Iterator[None]:
    """Show no bars inside: the caller shows progress itself."""
    token = _taken.set(True)
    try:
        yield
    finally:
        _taken.reset(token)


@contextmanager
def bar_of(what: str, *, wanted: bool) -> Iterator[Progress | None]:
    """Yield a function that shows progress in a bar, or None if none is to be shown.

    A bar is shown if it is wanted, the work takes longer than two seconds, no bar is shown already, and standard error
    is a terminal, or the caller is a notebook. It is removed at the end.

    Parameters
    ----------
    what : str
        What is being done; phases and activities follow after a colon.
    wanted : bool
        False shows nothing.
    """
    kind = _kind() if wanted and not _taken.get() else None
    if kind is None:
        yield None
        return
    bar, state = kind(), {"done": 0.0, "total": None}

    def show(activity: str, done: float, total: float | None) -> None:
        state.update(done=done, total=total)
        bar.update(f"{what}: {activity}" if activity else what, done, total)

    heard = _listener.set(lambda name: show(name, state["done"] or 0.0, state["total"]))
    taken = _taken.set(True)
    try:
        show("", 0.0, None)
        yield show
    finally:
        _taken.reset(taken)
        _listener.reset(heard)
        bar.close()


@contextmanager
def steps_of(what: str, on_step: OnStep | None, *, wanted: bool, unit: str = "step") -> Iterator[OnStep | None]:
    """Yield the function to call after each step: that of the caller, or one that moves a bar with these units."""
    with bar_of(what, wanted=wanted and on_step is None) as show:
        if show is None:
            yield on_step
        else:
            yield lambda done, total: show(f"{unit} {done:,}" + (f" of {total:,}" if total else ""), done, total)


def _kind() -> Callable[[], _Bar] | None:
    """Kind of the bar that can be seen here."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None and hasattr(shell, "kernel"):
        return _NotebookBar
    return _TerminalBar if sys.stderr is not None and sys.stderr.isatty() else None


class _TerminalBar:
    """Bar of rich on standard error, which a timer shows even if nothing is reported meanwhile."""

    def __init__(self) -> None:
        self._lock, self._closed = threading.Lock(), False
        self._last: tuple[str, float, float | None] = ("", 0.0, None)
        self._bars: Any = None
        self._task: Any = None
        self._timer = threading.Timer(DELAY, self._show)
        self._timer.daemon = True
        self._timer.start()

    def _show(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - slow to import, and only needed for long work
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        with self._lock:
            if self._closed:
                return
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(24),
                TaskProgressColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
            )
            self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bars.start()
            what, done, total = self._last
            self._task = self._bars.add_task(what, completed=done, total=total)

    def update(self, what: str, done: float, total: float | None) -> None:
        """Show what is being done, and how much of it is done."""
        with self._lock:
            self._last = (what, done, total)
            if self._bars is not None:
                self._bars.update(self._task, description=what, completed=done, total=total)

    def close(self) -> None:
        """Remove the bar."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._bars is not None:
                self._bars.stop()


class _NotebookBar:
    """Bar in the output of a notebook's cell."""

    def __init__(self) -> None:
        self._begin, self._before = time.monotonic(), 0.0
        self._display: Any = import_module("IPython.display")  # which every notebook has
        self._handle: Any = None

    def update(self, what: str, done: float, total: float | None) -> None:
        """Show what is being done, and how much of it is done."""
        now = time.monotonic()
        if now < self._begin + DELAY or now < self._before + PAUSE:
            return

        self._before = now
        value = f" value='{done:g}' max='{total:g}'" if total else ""
        shown = self._display.HTML(f"<progress{value}></progress> {html.escape(what)}")
        if self._handle is None:
            self._handle = self._display.display(shown, display_id=True)
        else:
            self._handle.update(shown)

    def close(self) -> None:
        """Remove the bar."""
        if self._handle is not None:
            self._handle.update(self._display.HTML(""))
