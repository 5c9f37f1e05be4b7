"""Layout of all tables."""

from rich import box
from rich.table import Table

from hesspec.backend.shown import TextTable

__all__ = ["rich_table", "table_of"]


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
