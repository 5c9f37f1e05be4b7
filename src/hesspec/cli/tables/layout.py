"""Layout of all tables, and of the end of commands that measure."""

import shlex
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.table import Table

from hesspec.backend.shown import TextTable
from hesspec.cli import console

__all__ = ["print_results", "rich_table", "table_of"]


def table_of(first: str, *others: str, title: str | None = None) -> Table:
    """Create an empty table with a left-aligned first column; the other columns are right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, title=title)
    table.title_justify, table.title_style = "left", "bold"
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def rich_table(table: TextTable) -> Table:
    """Table for the terminal from the texts of a result."""
    found = table_of(*table.columns, title=table.title or None)
    for row in table.rows:
        found.add_row(*row)
    found.caption, found.caption_justify = "\n".join(table.notes) or None, "left"
    return found


def print_results(tables: Iterable[Table], saved: Iterable[Path], folder: Path) -> None:
    """Print tables and the files that were written, and what can be done with the folder next."""
    for table in tables:
        console.output.print(table, "")
    for file in saved:
        console.output.print(f"Saved {file}", soft_wrap=True)
    console.next_step(f"hesspec report {shlex.quote(str(folder))}", "makes a page of all results there")
