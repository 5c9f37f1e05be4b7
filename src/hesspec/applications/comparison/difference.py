"""One number of a spectrum compared with that of another, and how it is written."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from hesspec.backend.number_text import MINUS, plus_minus, three_digits

__all__ = ["DISTANCE", "NONE", "OVERLAP", "Difference", "distance_text"]

NONE: Final = "\N{EN DASH}"
# Largest relative difference of the two halves of an interval that is written as value ± error.
SYMMETRIC: Final = 0.1
# Largest error, relative to the difference, below which both ends of an interval have the same first digits.
SMALL: Final = 0.01
DISTANCE: Final = "Wasserstein-1 distance"
OVERLAP: Final = "overlap of eigenspaces"


class Difference(NamedTuple):
    """One number of a spectrum, compared with that of the first.

    Attributes
    ----------
    place : str
        What the spectra are of.
    quantity : str
    run : str
        Name of the spectrum that is compared with the first.
    first, second : float
        Numbers of the first spectrum and of this one; NaN for a distance and an overlap, which belong to both.
    difference, lower, upper : float
        Second minus first, or the distance or overlap itself, and its interval; NaN where no error is known.
    exceeds_error : bool or None
        Whether zero is outside the interval; None for an overlap, and where no error is known.
    """

    place: str
    quantity: str
    run: str
    first: float
    second: float
    difference: float
    lower: float
    upper: float
    exceeds_error: bool | None

    @property
    def text(self) -> str:
        """The difference with its error, or with its interval if that is not symmetric."""
        if not np.isfinite(self.difference):
            return NONE
        if not np.isfinite([self.lower, self.upper]).all():
            return self._number(self.difference)
        below, above = self.difference - self.lower, self.upper - self.difference
        if abs(above - below) <= SYMMETRIC * max(above, below) or max(above, below) <= SMALL * abs(self.difference):
            return (
                plus_minus(self.difference, max(above, below))
                if max(above, below) > 0
                else three_digits(self.difference)
            )
        return f"{three_digits(self.difference)} ({three_digits(self.lower)} to {three_digits(self.upper)})"

    @property
    def pair(self) -> tuple[str, str]:
        """Both numbers as text; empty for a distance and an overlap."""
        return (
            ("", "")
            if self.quantity == DISTANCE or self.quantity.startswith(OVERLAP)
            else (
                self._number(self.first),
                self._number(self.second),
            )
        )

    def _number(self, value: float) -> str:
        if not np.isfinite(value):
            return NONE
        return f"{value:,.0f}".replace("-", MINUS) if self.quantity == "outliers" else three_digits(value)

    @property
    def verdict(self) -> str:
        """Whether the difference exceeds its error, as text."""
        return "" if self.exceeds_error is None else "differs" if self.exceeds_error else "within error"

    @property
    def is_known(self) -> bool:
        """Whether the interval says something: zero is outside, or it is shorter than twice the larger number.

        Always for a distance and an overlap, and where no error is known.
        """
        if self.exceeds_error in (None, True) or self.quantity == DISTANCE:
            return True
        width = self.upper - self.lower
        return width == 0 or width < 2 * max(abs(self.first), abs(self.second))


def distance_text(distance: float, bound: float) -> str:
    """Return a distance with its error, or the largest it can be if zero is not ruled out."""
    return plus_minus(distance, bound) if bound < distance else f"at most {three_digits(distance + bound)}"
