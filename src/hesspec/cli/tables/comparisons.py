"""Tables of comparisons."""

from collections.abc import Iterator

from rich.table import Table

from hesspec.applications.comparison.record import Comparison
from hesspec.backend.text import printable
from hesspec.cli.tables.layout import rich_table, table_of

__all__ = ["compared"]


def compared(comparison: Comparison) -> Iterator[Table]:
    """Tables of the differences of each run from the first, one for each place and run, or an overview of many."""
    if comparison.is_long:
        yield rich_table(comparison.overview())
        return
    reference = str(comparison.runs[0])
    tables: dict[tuple[str, str], Table] = {}
    for each in comparison.shown():
        key = (each.place, each.run)
        if key not in tables:
            title = f"{each.place}: {each.run} compared with {reference}".removeprefix(": ")
            tables[key] = table_of(
                "", printable(reference), printable(each.run), "difference", "", title=printable(title)
            )
            # An interval that is broken in two is hard to read.
            tables[key].columns[0].no_wrap, tables[key].columns[3].no_wrap = False, True
        tables[key].add_row(each.quantity, *each.pair, each.text, each.verdict)
    yield from tables.values()
