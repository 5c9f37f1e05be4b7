"""Tables of studies: forecast and progress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from hesspec.backend.memory import in_words
from hesspec.backend.number_text import duration
from hesspec.cli.tables.layout import table_of
from hesspec.study.config import StudyConfig
from hesspec.study.forecasting import TaskForecast
from hesspec.study.store import tasks_of

__all__ = ["forecast_table", "progress_table"]

# Most tasks that are listed one by one; larger studies are summed over sample sizes and seeds.
MOST_ROWS = 40


def forecast_table(forecasts: Sequence[TaskForecast]) -> list[Table | str]:
    """Table with a row for each task, or for each network and data set of a large study; and the total."""
    alone = len(forecasts) <= MOST_ROWS
    table = table_of("network on data set", "n", "epochs", "spectra", "training", "measuring", "memory")
    groups: dict[tuple[str, ...], list[TaskForecast]] = {}
    for index, item in enumerate(forecasts):
        run = item.task.runs[0]
        key = (run.data.name, run.network, run.settings.optimizer, run.start_name, *([str(index)] if alone else []))
        groups.setdefault(key, []).append(item)
    for group in groups.values():
        run = group[0].task.runs[0]
        counts = sorted({item.task.runs[0].samples_per_class for item in group})
        table.add_row(
            run.what,
            str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}",
            f"{sum(item.epochs for item in group):,}",
            f"{sum(item.measurements for item in group):,}",
            _time([item.training_seconds for item in group]),
            _time([item.measuring_seconds for item in group]),
            in_words(peak) if (peak := max(item.peak_bytes for item in group)) else "–",
        )
    known = [seconds for item in forecasts if not math.isnan(seconds := item.training_seconds + item.measuring_seconds)]
    left = sum(item.measurements for item in forecasts)
    unknown = len(forecasts) - len(known)
    without = f", without {unknown} of the {len(forecasts)} tasks, which cannot be run" if unknown else ""
    total = (
        f"Left to do: {sum(item.epochs for item in forecasts):,} epochs of training and {left:,} measurements, about "
        f"{duration(sum(known))} in one process on this machine{without}."
    )
    return [table, total]


def _time(seconds: Sequence[float]) -> str:
    """Sum of the known times."""
    known = [value for value in seconds if not math.isnan(value)]
    return duration(sum(known)) if known else "–"


def progress_table(config: StudyConfig, folder: Path) -> Table:
    """Table with a row for each task: selected learning rate, final loss and error, number of measurements."""
    table = table_of("network on data set", "n", "seed", "rate", "train loss", "test error", "measured")
    for task in tasks_of(config, folder):
        run = task.runs[0]
        what = (run.what, str(run.samples_per_class), str(run.settings.seed))
        if task.unreadable is not None:
            table.add_row(*what, "–", "–", "–", "cannot be read")
            continue
        best = task.best
        found = len(task.measurements) - len(task.missing)
        last = None if best is None else best.history[-1]
        table.add_row(
            *what,
            "–" if best is None else f"{best.settings.learning_rate:g}",
            "–" if last is None else f"{last.train_loss:.3g}",
            "–" if last is None else f"{last.test_error:.1%}",
            f"{found} of {len(task.measurements)}",
        )
    return table
