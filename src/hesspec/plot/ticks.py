"""Ticks of logarithmic axes: 1, 2 and 5 of every decade as full numbers, as many as there is room for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import Formatter, Locator, MaxNLocator, NullFormatter

from hesspec.backend.number_text import MINUS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axis import Axis

__all__ = ["number_ticks"]

PITCH = 1.7  # smallest distance of ticks on a vertical axis, in heights of their labels
CHARACTER = 0.62  # width of a digit, in heights
GAP = 1.0  # between labels on a horizontal axis, in heights
FEWEST = 2  # ticks that tell the scale of an axis
# Numbers in this range are written in full; if one of an axis is outside, all are powers of ten.
PLAIN = (1e-3, 1e5)


def number_ticks(*axes: Axis) -> None:
    """Label logarithmic and symmetric logarithmic axes by full numbers of one size that do not overlap."""
    for axis in axes:
        axis.set_major_locator(DecadeLocator())
        axis.set_major_formatter(NumberFormatter())
        axis.set_minor_formatter(NullFormatter())


class DecadeLocator(Locator):
    """Ticks at 1, 2 and 5 of every decade, or at every power of ten, or every second one, whatever there is room for.

    On a symmetric logarithmic axis these have both signs, and 0 is the first to be labelled. An axis that has fewer
    than two such numbers, as it spans less than a factor of two, has evenly spaced ticks.
    """

    def __call__(self) -> Any:
        """Ticks in the view of the axis."""
        low, high = sorted(self.axis.get_view_interval())  # type: ignore[union-attr]
        return self.tick_values(low, high)

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Ticks between two values."""
        low, high = sorted((float(vmin), float(vmax)))
        if low > 0:
            found = next((ticks for ticks in self._even(low, high) if self._fit(ticks)), [])
        else:
            found = self._greedy(low, high)
        if len(found) < FEWEST:
            for count in (4, 3, 2, 1):
                places = MaxNLocator(count).tick_values(low, high)
                found = [float(x) for x in places if low <= x <= high and (x > 0 or low < 0)]
                if self._fit(found):
                    break
        return found

    @staticmethod
    def _even(low: float, high: float) -> Iterable[list[float]]:
        """Candidates with fewer and fewer ticks."""
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        # Multiples of powers of ten are hard to read: only if there would be no other tick.
        full = (PLAIN[0] <= low * 5 and high <= PLAIN[1] * 5) or last - first <= 1
        for digits, stride in (
            *([((1, 2, 5), 1)] if full else []),
            *(((1,), stride) for stride in (1, 2, 3, 4, 5, 10, 20, 50, 100)),
        ):
            numbers = (
                digit * 10.0**power for power in range(first, last + 1) if power % stride == 0 for digit in digits
            )
            yield [number for number in numbers if low <= number * (1 + 1e-9) and number <= high * (1 + 1e-9)]

    def _greedy(self, low: float, high: float) -> list[float]:
        """0, then powers of ten, the largest first, then 2 and 5 times these, unless they touch an earlier one."""
        size = max(-low, high)
        first = math.floor(math.log10(size)) if size > 0 else 0
        numbers = [0.0]
        for digits in ((1,), (5, 2)):
            for power in range(first, first - 8, -1):
                numbers += [sign * digit * 10.0**power for digit in digits for sign in (1, -1)]
        found: list[float] = []
        for number in numbers:
            if low <= number <= high and self._fit([*found, number]):
                found.append(number)
        return sorted(found)

    def _fit(self, ticks: Sequence[float]) -> bool:
        """Whether the labels of these ticks do not touch."""
        if len(ticks) < FEWEST:
            return True
        axis: Any = self.axis
        horizontal = axis.axis_name == "x"
        box, dpi = axis.axes.get_window_extent(), axis.get_figure(root=True).dpi
        length = (box.width if horizontal else box.height) * 72 / dpi
        ends = axis.get_transform().transform(np.array(axis.get_view_interval(), dtype=float))
        places = axis.get_transform().transform(np.sort(np.asarray(ticks, dtype=float)))
        places = np.abs(places - ends[0]) / max(abs(float(ends[1] - ends[0])), 1e-300) * length
        height = float(axis.get_major_ticks(1)[0].label1.get_fontsize())
        if not horizontal:
            return bool((np.abs(np.diff(places)) >= PITCH * height).all())
        texts = NumberFormatter().format_ticks(sorted(ticks))
        widths = np.array([CHARACTER * height * _length(text) for text in texts])
        return bool((np.abs(np.diff(places)) >= (widths[1:] + widths[:-1]) / 2 + GAP * height).all())


def _length(text: str) -> float:
    """Characters of a label; exponents are smaller."""
    if not text.startswith("$"):
        return len(text)
    mantissa, _, exponent = text.strip("$").partition("^")
    return len(mantissa.replace(r"\cdot", ".")) + 0.7 * len(exponent.strip("{}"))


class NumberFormatter(Formatter):
    """Numbers in full, or all as powers of ten if one of them is very small or very large."""

    def __call__(self, x: float, pos: int | None = None) -> str:  # noqa: ARG002 - of the base class
        """Text of a single number."""
        return f"{x:,.6g}".replace("-", MINUS)

    def format_ticks(self, values: Any) -> list[str]:
        """Texts of all ticks of an axis."""
        numbers = [float(value) for value in values]
        if all(PLAIN[0] <= abs(x) * (1 + 1e-9) and abs(x) <= PLAIN[1] for x in numbers if x):
            return [self(x) for x in numbers]
        return [_power(x) for x in numbers]


def _power(number: float) -> str:
    if not number:
        return "0"
    power = math.floor(math.log10(abs(number)) + 1e-9)
    digit = number / 10.0**power
    sign = "-" if digit < 0 else ""
    digits = f"{abs(digit):.3g}"
    return f"${sign}10^{{{power}}}$" if digits == "1" else rf"${sign}{digits}\cdot10^{{{power}}}$"
