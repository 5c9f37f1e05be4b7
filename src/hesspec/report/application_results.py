"""Section of the page for results of applications: each with its own figure, summary and tables."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

from hesspec.backend.shown import capped, contents
from hesspec.spectra.record import Record

__all__ = ["ApplicationResult", "result_sections"]

# Further results are listed without their figures, of some 50 kB each.
MOST_FIGURES: Final = 24
PLACE: Final = (
    ("dataset", ""),
    ("network", ""),
    ("optimizer", ""),
    ("start", "from "),
    ("train_samples_per_class", "n = "),
    ("training_seed", "seed "),
    ("learning_rate", "learning rate "),
    ("split", ""),
    ("epoch", "epoch "),
)


@dataclass(frozen=True, kw_only=True)
class ApplicationResult:
    """Result of an application with its place in the report.

    Parameters
    ----------
    path : Path
        File, relative to the folder of the report.
    record : Record
        The result.
    """

    path: Path
    record: Record

    @property
    def title(self) -> str:
        """Kind of result and what it is of, in one line."""
        attributes = self.record.attributes
        place = [f"{word}{_text(attributes[name])}" for name, word in PLACE if name in attributes]
        kind = self.record.KIND
        return " · ".join([f"{kind[:1].upper()}{kind[1:]}", *place])


def result_sections(results: Sequence[ApplicationResult]) -> list[dict[str, Any]]:
    """Return the values of the template for each result: title, file, summary, tables and figure."""
    return [
        {
            "title": result.title,
            "file": result.path.as_posix(),
            **_shown(result.record, drawn=index < MOST_FIGURES),
        }
        for index, result in enumerate(results)
    ]


def _shown(record: Record, *, drawn: bool) -> dict[str, Any]:
    try:
        summary, tables = contents(record)
    except ValueError as error:
        return {"summary": [], "tables": [], "figure": "", "without": str(error)}
    return {
        "summary": list(summary.items()),
        "tables": [capped(table) for table in tables],
        **_drawn(record, wanted=drawn),
    }


def _drawn(record: Record, *, wanted: bool) -> dict[str, str]:
    """Figure of a result (SVG as base64), or else a sentence that says why it has none."""
    plot = getattr(record, "plot", None)
    if plot is None:
        return {"figure": "", "without": ""}
    if not wanted:
        return {
            "figure": "",
            "without": f"Only the first {MOST_FIGURES} results are drawn; hesspec show draws this one.",
        }
    file = io.BytesIO()
    # The same result gives the same page: names of clipping paths are random otherwise, and the file has its date.
    with mpl.rc_context({"svg.hashsalt": "hesspec"}), warnings.catch_warnings():
        # Letters that the font lacks are drawn as boxes, and names may leave a panel little room.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font|constrained_layout not applied")
        try:
            plot().savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
        except ValueError as error:  # of a result that holds no measurements
            return {"figure": "", "without": str(error)}
        except Exception as error:  # noqa: BLE001 - of values that contradict one another, in files from others
            return {"figure": "", "without": f"It cannot be drawn ({type(error).__name__}: {error})."}
    return {"figure": base64.b64encode(file.getvalue()).decode(), "without": ""}


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
