"""Times of functions that are called in turn, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

__all__ = ["in_turn"]

# A turn is as many calls as take so many seconds: the clock of the processor moves in steps of milliseconds on some
# machines, and a single short call is as likely an interruption as a product.
BURST = 0.02


def in_turn(functions: Mapping[str, Callable[[], object]], least: int, seconds: float) -> dict[str, list[float]]:
    """Seconds by the clock of one call of each function, one number a turn.

    What else the machine does comes and goes within seconds, and mostly adds time: ratios are best taken within a turn,
    in which functions run within a fraction of a second of one another, and their median ignores turns in which one of
    them was interrupted.

    Parameters
    ----------
    functions : mapping from str to callable
    least : int
        Turns that are made at least.
    seconds : float
        Turns are made until so many seconds are over.
    """
    calls = {name: _calls(function) for name, function in functions.items()}
    taken: dict[str, list[float]] = {name: [] for name in functions}
    begun, order = time.perf_counter(), list(functions)
    while len(taken[order[0]]) < least or time.perf_counter() - begun < seconds:
        for name in order:
            taken[name].append(_seconds(functions[name], calls[name]) / calls[name])
        order.reverse()
    return taken


def _calls(function: Callable[[], object]) -> int:
    """Number of calls that take a turn; first calls are slower, and a single one may be interrupted."""
    calls, taken = 1, _seconds(function, 1)
    while taken < BURST:
        # No more than four times as many at once, as the last number may have been that of an interruption.
        calls = min(4 * calls, math.ceil(1.1 * calls * BURST / max(taken, 1e-9)))
        taken = _seconds(function, calls)
    return calls


def _seconds(function: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return time.perf_counter() - started
