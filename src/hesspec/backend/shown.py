"""How results are shown: the same tables as text, in notebooks and on the command line."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from hesspec.backend.text import in_rows, printable

__all__ = ["Shown", "TextTable", "capped", "contents"]

# Rows of a table that are shown in a notebook or as text; the command line shows all.
MOST_ROWS = 20


@dataclass(frozen=True)
class TextTable:
    """Table of texts.

    Attributes
    ----------
    title : str
        Printed above the table; may be empty.
    columns : sequence of str
        Headings. The first column is aligned to the left, others to the right.
    rows : sequence of sequence of str
        Texts, as many in each row as there are headings.
    notes : sequence of str
        Sentences below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def as_text(self) -> str:
        """Lines of aligned columns."""
        rows = [tuple(map(printable, row)) for row in (self.columns, *self.rows)]
        widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
        lines = [
            "  ".join(
                [f"{row[0]:<{widths[0]}}", *(f"{text:>{w}}" for text, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in rows
        ]
        return "\n".join([*([printable(self.title)] if self.title else []), *map(str.rstrip, lines), *self.notes])

    def as_html(self) -> str:
        """Table for a notebook."""
        rows = [_html_row("th", self.columns), *(_html_row("td", row) for row in self.rows)]
        caption = _caption(self.title) if self.title else ""
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table>{caption}{''.join(rows)}</table>{notes}"


def _caption(title: str) -> str:
    return f"<caption style='text-align:left;font-weight:bold;white-space:nowrap'>{html.escape(title)}</caption>"


def _html_row(tag: str, texts: Sequence[str]) -> str:
    cells = (
        f"<{tag} style='text-align:{'right' if place else 'left'}'>{html.escape(text)}</{tag}>"
        for place, text in enumerate(texts)
    )
    return f"<tr>{''.join(cells)}</tr>"


def capped(table: TextTable) -> TextTable:
    """Return the table with its first `MOST_ROWS` rows, and a note of how many were left out."""
    if len(table.rows) <= MOST_ROWS:
        return table
    left = f"and {len(table.rows) - MOST_ROWS:,} more rows"
    return TextTable(table.title, table.columns, table.rows[:MOST_ROWS], (left, *table.notes))


def contents(result: Shown) -> tuple[dict[str, str], list[TextTable]]:
    """Return the summary and the tables of a result that may be from a file of others.

    Raises
    ------
    ValueError
        If they cannot be made, as of values that contradict one another.
    """
    try:
        return result.summary(), result.tables()
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"It cannot be shown, as its values contradict one another ({reason}).") from error


class Shown:
    """Base class of results that are shown as tables, by `repr`, in notebooks and by `hesspec show`."""

    def summary(self) -> dict[str, str]:
        """Names and values, as text."""
        raise NotImplementedError

    def tables(self) -> list[TextTable]:
        """Tables of what the result holds in addition to its summary; none by default."""
        return []

    def __repr__(self) -> str:
        """Summary, a line each, and tables."""
        shown = [in_rows(type(self).__name__, self.summary())]
        return "\n\n".join([*shown, *(capped(table).as_text() for table in self.tables())])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self.summary().items()
        )
        shown = [f"<table>{_caption(type(self).__name__)}{rows}</table>"]
        return "".join([*shown, *(capped(table).as_html() for table in self.tables())])
