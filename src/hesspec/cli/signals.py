"""Handling of Ctrl-C and SIGTERM: either ends a command as soon as possible, and no signal is lost."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Final

from hesspec.cli.launch import launched_ranks

__all__ = ["catch_signals", "end_if_asked", "ending_of", "was_asked"]

# First word of the message. The exit status is 128 + the number of the signal, by convention.
WORDS: Final = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}

_asked: list[int] = []


def catch_signals() -> None:
    """Install signal handlers that raise KeyboardInterrupt and record the signal.

    Python drops an exception that is raised in a finaliser or in a callback from C, and libraries replace it by one of
    their own: see `end_if_asked` and `was_asked`. A signal that the process was started to ignore stays ignored. Under
    `torchrun`, SIGTERM ends a rank at once: it may be waiting for other ranks in C code, where no exception can be
    raised.
    """
    numbers = (signal.SIGINT,) if launched_ranks() > 1 else tuple(WORDS)
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _note)


def _note(number: int, _frame: FrameType | None) -> None:
    _asked.append(number)
    raise KeyboardInterrupt


def was_asked() -> bool:
    """Whether this process has received a signal to end."""
    return bool(_asked)


def end_if_asked() -> None:
    """Raise KeyboardInterrupt again if an earlier one was dropped. Meant to be called often."""
    if _asked:
        raise KeyboardInterrupt


def ending_of() -> tuple[str, int]:
    """Message and exit status of a command that was ended by a signal."""
    number = signal.Signals(_asked[-1]) if _asked else signal.SIGINT
    return f"{WORDS[number]}. All files written so far are complete.", 128 + number
