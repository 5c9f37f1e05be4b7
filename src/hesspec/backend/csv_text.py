"""Tables as CSV, without cells that spreadsheets would run as formulas."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from typing import Final

__all__ = ["cell", "csv_text"]

# Characters that start a formula in spreadsheets, including full-width forms.
FORMULA: Final = tuple("=+-@＝＋－＠")
BREAKS: Final = tuple("\t\r\n")


def csv_text(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Format rows as CSV, with floats to all digits, and empty cells for missing values.

    A text that a spreadsheet would run as a formula is preceded by an apostrophe, which marks it as text.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(header)
    for row in rows:
        writer.writerow([cell(value) for value in row])
    return file.getvalue()


def cell(value: object) -> object:
    """Value of a cell: floats to all digits, nothing for what is missing or not finite, and no text that is run."""
    if isinstance(value, float):  # NumPy's float64 too
        return repr(float(value)) if math.isfinite(value) else ""
    if isinstance(value, str):
        return f"'{value}" if _runs(value) else value
    return "" if value is None else value


def _runs(text: str) -> bool:
    if text.startswith(BREAKS):
        return True
    return text.lstrip().startswith(FORMULA) and not _is_number(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
