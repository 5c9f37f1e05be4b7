"""Progress of long work: what is being done, and how much of it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Meter", "OnStep", "Progress"]

OnStep = Callable[[int, int | None], None]
"""Called after each step with the number of completed steps and their total, None where it is not known."""

Progress = Callable[[str, float, float | None], None]
"""Called with a description of the current activity, the work done, and the total work, None where it is not known."""


@dataclass
class Meter:
    """Sum of the work on several things, which need not cost the same.

    Attributes
    ----------
    on_progress : callable or None
        See `Progress`.
    total, done : float
        Work in all, and work so far, in a unit of the caller's.
    """

    on_progress: Progress | None
    total: float | None
    done: float = 0.0

    def report(self, what: str, partial: float = 0.0) -> None:
        """Report the current activity; `partial` is work on it that is not yet in `done`."""
        if self.on_progress is not None:
            self.on_progress(what, self.done + partial, self.total)

    def of_steps(self, what: str, cost: float) -> Callable[[int, int | None], None]:
        """Report the start of an activity, and return the function to call after each of its steps of this cost."""
        before = self.done

        def on_step(steps: int, of: int | None) -> None:  # noqa: ARG001 - the total of all activities is known instead
            self.done = before + cost * steps
            self.report(what)

        on_step(0, None)
        return on_step
