"""Numbers as text, with no more digits than are known or than a label has room for."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal

__all__ = ["MINUS", "duration", "exponent_text", "percent", "plus_minus", "three_digits", "with_bound"]

MINUS = "\N{MINUS SIGN}"
NOT_FINITE = "not finite"
MAX_DIGITS = 10


def with_bound(value: float, bound: float) -> tuple[str, str]:
    """Format a value and its error bound, with the digits of the value that are known.

    Parameters
    ----------
    value, bound : float
        Value and error bound, |true - value| <= bound, in the same units.

    Returns
    -------
    value, bound : str
        The bound to two significant digits; the value to the same decimal place, at most ten significant digits. The
        bound is rounded up and includes the rounding of the value, so that it holds for the formatted value.

    Examples
    --------
    >>> with_bound(12.30001234, 1.04e-5)
    ('12.300012', '1.1e−5')
    >>> with_bound(0.01234, 0.00123)
    ('0.0123', '0.0013')
    """
    if not math.isfinite(value):
        return NOT_FINITE, "unknown"
    known = math.isfinite(bound)
    exact, error = Decimal(value), Decimal(abs(bound) if known else 0.0)
    place = exact.adjusted() - MAX_DIGITS + 1 if exact else -MAX_DIGITS
    if error:
        place = max(place, error.adjusted() - 1)
    unit = Decimal(1).scaleb(place)
    shown = exact.quantize(unit)
    rounded = (error + abs(exact - shown)).quantize(unit, rounding=ROUND_CEILING)
    return _value_text(shown, place), _bound_text(rounded) if known else "unknown"


def plus_minus(value: float, bound: float) -> str:
    """Value ± bound, as `with_bound`.

    Examples
    --------
    >>> plus_minus(0.01234, 0.00123)
    '0.0123 ± 0.0013'
    """
    return " ± ".join(with_bound(float(value), float(bound)))


def three_digits(value: float) -> str:
    """Value to three significant digits with a true minus sign, for labels in figures."""
    if not math.isfinite(value):
        return NOT_FINITE
    size = abs(value)
    if size == 0 or 1e-3 <= size < 999.5:
        text = f"{value:#.3g}".rstrip(".") if size else "0"
    elif 999.5 <= size < 1e5:
        text = f"{value:.0f}"
    else:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", MINUS)


def exponent_text(value: float, lower: float, upper: float) -> str:
    """An exponent with its interval, to two decimals, with true minus signs."""
    return f"{value:.2f} ({lower:.2f} to {upper:.2f})".replace("-", MINUS)


def percent(share: float) -> str:
    """A share in percent, to one decimal, with a true minus sign."""
    if not math.isfinite(share):
        return NOT_FINITE
    # Rounded before it is written, so that there is no minus sign before 0, and with a true one elsewhere.
    return f"{round(1000 * share) / 10 + 0.0:.1f}%".replace("-", MINUS)


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them, to three digits.

    Examples
    --------
    >>> [duration(seconds) for seconds in (0.0213, 90, 600, 40_000, 1e7)]
    ['21.3 ms', '90 s', '10 min', '11.1 h', '116 days']
    """
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.3g} min"
    hours = seconds / 3600
    return f"{hours:.3g} h" if hours < 72 else f"{hours / 24:,.0f} days"


def _value_text(shown: Decimal, place: int) -> str:
    if not shown or -4 <= shown.adjusted() < 7:
        text = f"{abs(shown):f}"
    else:
        power = shown.adjusted()
        text = f"{abs(shown).scaleb(-power):.{max(power - place, 0)}f}{_exponent(power)}"
    return MINUS + text if shown < 0 else text


def _bound_text(bound: Decimal) -> str:
    if not bound:
        return "0"
    # Rounding up turns 9.96 into 10.0, with a third digit, which must be rounded up again.
    bound = bound.quantize(Decimal(1).scaleb(max(bound.adjusted() - 1, int(bound.as_tuple().exponent))), ROUND_CEILING)
    power = bound.adjusted()
    if -4 < power < 7:
        return f"{bound:f}"
    return f"{bound.scaleb(-power):.1f}{_exponent(power)}"


def _exponent(power: int) -> str:
    return f"e{power}".replace("-", MINUS)
