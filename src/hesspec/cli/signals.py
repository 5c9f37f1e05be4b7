"""Ctrl-C and SIGTERM: either ends a command as soon as it can be ended, and none is lost."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Final

from hesspec.cli.launch import launched_ranks

__all__ = ["catch_signals", "end_if_asked", "ending_of", "was_asked"]

# Words for what has happened; the status is 128 + the number of the signal, by convention.
WORDS: Final = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}

_asked: list[int] = []


def catch_signals() -> None:
    """From now on a signal raises KeyboardInterrupt, and is remembered.

    Python drops an exception that is raised in a finaliser or in a callback from C, and libraries give it as one of
    their own: see `end_if_asked` and `was_asked`. A signal that the process was started to ignore is ignored. Under
    `torchrun`, SIGTERM ends a rank at once: it may wait for others in C, where no exception arises.
    """
    numbers = (signal.SIGINT,) if launched_ranks() > 1 else tuple(WORDS)
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _note)


def _note(number: int, _frame: FrameType | None) -> None:
    _asked.append(number)
    raise KeyboardInterrupt


def was_asked() -> bool:
    """Whether a signal has asked this process to end."""
    return bool(_asked)


def end_if_asked() -> None:
    """Raise KeyboardInterrupt again where an earlier one was dropped; to be called often."""
    if _asked:
        raise KeyboardInterrupt


def ending_of() -> tuple[str, int]:
    """Sentence and status of a command that a signal ends."""
    number = signal.Signals(_asked[-1]) if _asked else signal.SIGINT
    return f"{WORDS[number]}; every file that is there is whole.", 128 + number
