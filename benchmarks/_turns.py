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

    Parameters
    ----------
    functions : mapping from str to callable
    least : int
        Turns that are made at least.
    seconds : float
        Turns are made until so many seconds are over.
    """
    calls = {}
    for name, function in functions.items():
        started = time.perf_counter()
        function()
        calls[name] = max(1, math.ceil(BURST / max(time.perf_counter() - started, 1e-9)))
    taken: dict[str, list[float]] = {name: [] for name in functions}
    begun, order = time.perf_counter(), list(functions)
    while len(taken[order[0]]) < least or time.perf_counter() - begun < seconds:
        for name in order:
            started = time.perf_counter()
            for _ in range(calls[name]):
                functions[name]()
            taken[name].append((time.perf_counter() - started) / calls[name])
        order.reverse()
    return taken
