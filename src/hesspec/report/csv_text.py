"""Tables as CSV, in which no cell is a formula."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from typing import Final

__all__ = ["csv_text"]

# What spreadsheets take for the begin of a formula, wide forms included.
FORMULA: Final = tuple("=+-@＝＋－＠")
BREAKS: Final = tuple("\t\r\n")


def csv_text(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """CSV, with floats to all of their digits, and nothing for what is not known.

    A text that a spreadsheet would run as a formula has an apostrophe in front, which spreadsheets take for the mark of
    a text.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(header)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    return file.getvalue()


def _cell(value: object) -> object:
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
