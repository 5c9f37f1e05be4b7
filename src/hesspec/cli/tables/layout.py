"""Layout of all tables."""

from rich import box
from rich.table import Table

__all__ = ["table_of"]


def table_of(first: str, *others: str, title: str | None = None) -> Table:
    """Create an empty table with a left-aligned first column; the other columns are right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, title=title)
    table.title_justify, table.title_style = "left", "bold"
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", overflow="fold")
    return table
