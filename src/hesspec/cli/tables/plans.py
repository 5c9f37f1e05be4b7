"""Tables of plans and of costs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.table import Table

from hesspec.cli.tables.layout import table_of
from hesspec.matrices import symbol_of
from hesspec.measure.cost_result import Cost
from hesspec.measure.plan import Plan

__all__ = ["estimated", "planned"]


def planned(plans: Iterable[Plan]) -> Table:
    """Table with a column for each plan."""
    rows = [plan.summary() for plan in plans]
    return _columns(rows, [name for name in rows[0] if name != "matrix"])


def estimated(costs: Sequence[Cost]) -> Iterator[str | Table]:
    """Yield one line per infeasible case, a table of common values, and a table with a column for each cost."""
    for cost in costs:
        if cost.obstacle:
            yield f"{symbol_of(cost.matrix)} cannot be run. {cost.obstacle}"
    rows = [cost.summary() for cost in costs]
    names = [name for name in rows[0] if name != "matrix"]
    common = [name for name in names if len({row[name] for row in rows}) == 1] if len(rows) > 1 else []
    if common:
        table = table_of("", "all")
        table.columns[1].justify = "left"
        for name in common:
            table.add_row(name, rows[0][name])
        yield table
    yield _columns(rows, [name for name in names if name not in common])


def _columns(rows: Sequence[Mapping[str, str]], names: Iterable[str]) -> Table:
    table = table_of("", *(symbol_of(row["matrix"]) for row in rows))
    for name in names:
        table.add_row(name, *(row[name] for row in rows))
    return table
