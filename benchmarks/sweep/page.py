"""docs/supported.md, from the records and from what it says of cases that have none."""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from _tables import ROOT, Block, markdown, processor
from sweep.judge import LARGEST_ERROR, Verdict, judge
from sweep.measure import MATRICES
from sweep.records import latest
from zoo.case import Case

__all__ = ["write_page"]

PAGE = ROOT / "docs" / "supported.md"
PACKAGES = ("hesspec", "torch", "torchvision", "timm", "transformers")
GOOD = ("right", "stated", "rounded", "refused")
SMALLEST_RATIO = 0.8
ERRORS = dict(zip(("Hess", "G", "H"), MATRICES, strict=True))
COLUMNS = ("model", "parameters", "way", *ERRORS, "first, s", "later, ms", "plain, ms", "times", "verdict")
# Between cells of a row; a bar within one is escaped.
SEPARATOR = re.compile(r"(?<!\\)\|")

ABOUT = """# What is supported

Networks of all kinds, each with its natural loss and data, in float32 against a truth in float64; `python
benchmarks/models.py` measures, `--table` writes this page.

- **Way**: how products are computed (T: traced; D: double backward; other ways by their name). Where a trace is
  possible but does not pay at this size, the case is measured a second time with the trace forced, as it is chosen
  where there is more data: "D, T".
- **Hess, G, H**: |M v - truth| for one random vector, relative to the largest of |Hess v|, |G v| and |H v|; the larger
  error of the two ways. Asked for is {largest:.0e}, unless the operator states that it is less exact.
- **First, later**: CPU seconds from the model to the first product with the Hessian, and milliseconds by the clock of
  every further one.
- **Plain**: milliseconds of a product by a double-backward graph of plain PyTorch that is built once and kept, in turn
  with hesspec's, a fiftieth of a second each; **times**: how many times as fast hesspec is, the median of the turns'
  ratios.
- **Verdict**: *right*; *stated*: less exact, and the operator says by how much; *rounded*: plain double backward in
  float32 is as far from float64 (mostly a unit on the other side of its kink); *refused*: with a sentence, where there
  is nothing to compute. Anything else is a fault, listed below.

The truth shares no code with hesspec. The product with the Hessian is double backward over all data in float64,
confirmed by central differences of `loss.backward()` with two displacements; where PyTorch has no second derivative, or
a wrong one, it is the differences, which must agree with one another. G is J^T A J, each factor computed in two ways
likewise; H = Hess - G. After each product the model, its loss, its data and the state of the process are compared with
what they were before.
"""


@dataclass(frozen=True)
class Row:
    """One case on the page.

    Attributes
    ----------
    family : str
    cells : dict of str
        By column; the verdict is in bold where it is a fault.
    notes : tuple of str
        Lines on the case below the tables: what it is refused with, what is at fault.
    """

    family: str
    cells: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """Verdict in one word."""
        return self.cells["verdict"].strip("*")

    @property
    def ratio(self) -> float | None:
        """How many times as fast as a plain retained graph."""
        return float(self.cells["times"]) if self.cells["times"] else None

    @property
    def errors(self) -> list[float]:
        """Errors of the products, with one digit."""
        return [float(self.cells[symbol]) for symbol in ERRORS if self.cells[symbol]]


def write_page(cases: Sequence[Case]) -> None:
    """Judge the last record of each case and write the page; cases without a record keep what the page says of them.

    Parameters
    ----------
    cases : sequence of Case
        All there are, in the order of the page.
    """
    rows, new = _read(), {record["name"]: record for record in latest()}
    for name, record in new.items():
        rows[name] = _retimed(rows[name], record) if record.get("times_only") else _row(record, judge(record))
    mine = [rows[case.name] for case in cases if case.name in rows]
    absent = [case.name for case in cases if case.name not in rows]
    parts = [ABOUT.format(largest=LARGEST_ERROR), _conditions(len(new), len(mine)), _summary(mine, absent)]
    parts += [markdown(_overview(mine))]
    for family in dict.fromkeys(row.family for row in mine):
        parts.append(markdown(Block(family, "", COLUMNS, [_cells(row) for row in mine if row.family == family])))
    refused = [note for row in mine if row.word == "refused" for note in row.notes]
    faults = [note for row in mine if row.word not in GOOD for note in row.notes]
    parts += [_section("What is refused, and with what words", refused), _section("Faults", faults)]
    PAGE.write_text("\n".join(part.rstrip() + "\n" for part in parts if part))
    print(f"{len(mine)} of {len(cases)} cases are in {PAGE.relative_to(ROOT)}, {len(new)} of them measured again.")


def _read() -> dict[str, Row]:
    """Rows of the page as it is, by the names of the cases."""
    rows: dict[str, Row] = {}
    family, lines = "", PAGE.read_text().splitlines() if PAGE.exists() else []
    for line in lines:
        if line.startswith("#### "):
            family = line.removeprefix("#### ")
        cells = [cell.strip().replace("\\|", "|") for cell in SEPARATOR.split(line)[1:-1]]
        if len(cells) == len(COLUMNS) and cells[0] != COLUMNS[0] and not cells[0].startswith("---"):
            rows[cells[0]] = Row(family, dict(zip(COLUMNS, cells, strict=True)))
    for line in lines:
        # Of several names that a note may begin with, the longest one.
        names = [name for name in rows if line.startswith(f"- {name} (")]
        if names:
            name = max(names, key=len)
            rows[name] = replace(rows[name], notes=(*rows[name].notes, line))
    return rows


def _retimed(row: Row, record: dict[str, Any]) -> Row:
    return replace(row, cells={**row.cells, **_times(record)})


def _row(record: dict[str, Any], verdict: Verdict) -> Row:
    cells = {
        "model": record["name"],
        "parameters": f"{record['parameters']:,}" if "parameters" in record else "",
        "way": _ways(record),
        **{symbol: _number(_worst(record, matrix)) for symbol, matrix in ERRORS.items()},
        **_times(record),
        "verdict": verdict.word if not verdict.faults else f"**{verdict.word}**",
    }
    return Row(record["family"], cells, tuple(_notes(record, verdict)))


def _times(record: dict[str, Any]) -> dict[str, str]:
    hessian = record.get("chosen", {}).get("Hessian", {})
    first, times = hessian.get("first"), hessian.get("times")
    return {
        "first, s": f"{first:.2f}" if "error" not in hessian and first is not None else "",
        "later, ms": _milliseconds(hessian.get("later")),
        "plain, ms": _milliseconds(record.get("plain", {}).get("later")),
        "times": "" if times is None else f"{times:.2f}",
    }


def _notes(record: dict[str, Any], verdict: Verdict) -> Iterator[str]:
    if verdict.word == "refused":
        told = next(result["error"] for result in record["chosen"].values() if "error" in result)
        why = record["sentence"] or "a part of the gradient is held constant"
        yield f"- {record['name']} ({why}): {told['type']}: {' '.join(told['text'].split())}"
    if verdict.faults:
        told = "; ".join(f"{word}: {' '.join(sentence.split())}" for word, sentence in verdict.faults[:4])
        yield f"- {record['name']} ({record['family']}): {told}"


def _cells(row: Row) -> tuple[str, ...]:
    return tuple(row.cells[column] for column in COLUMNS)


def _conditions(measured: int, count: int) -> str:
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    earlier = f" Of {count} models {measured} were measured then, the others before." if measured < count else ""
    return (
        f"One thread of {processor()}, {platform.system()}, Python {platform.python_version()}, "
        f"{versions}; {time.strftime('%Y-%m-%d')}.{earlier} First products are in CPU seconds.\n"
    )


def _summary(rows: Sequence[Row], absent: Sequence[str]) -> str:
    count = Counter(row.word for row in rows)
    errors = [error for row in rows if row.word in GOOD for error in row.errors]
    ratios = [row.ratio for row in rows if row.ratio is not None]
    lines = [
        f"**{len(rows)} models**: "
        + ", ".join(f"{count[word]} {word}" for word in (*GOOD, *sorted(count.keys() - GOOD)) if count[word])
    ]
    if errors:
        lines.append(
            f"Largest error of those without fault: {max(errors):.0e}; median {statistics.median(errors):.0e}."
        )
    if ratios:
        slow = sum(ratio < SMALLEST_RATIO for ratio in ratios)
        lines.append(
            f"Products against a plain retained graph: {statistics.median(ratios):.2f} times as fast in the median, "
            f"{min(ratios):.2f} at least; {slow} of {len(ratios)} below {SMALLEST_RATIO}."
        )
    if absent:
        lines.append(f"Not measured: {', '.join(absent)}.")
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _overview(rows: Sequence[Row]) -> Block:
    table = []
    for family in dict.fromkeys(row.family for row in rows):
        mine = [row for row in rows if row.family == family]
        words = Counter(row.word for row in mine)
        errors = [error for row in mine for error in row.errors]
        ratios = [row.ratio for row in mine if row.ratio is not None]
        table.append(
            (
                family,
                str(len(mine)),
                *(str(words[word] or "") for word in GOOD),
                str(sum(words.values()) - sum(words[word] for word in GOOD) or ""),
                _number(max(errors, default=None)),
                f"{statistics.median(ratios):.2f}" if ratios else "",
            )
        )
    return Block("By family", "", ("family", "models", *GOOD, "at fault", "largest error", "median times"), table)


def _ways(record: dict[str, Any]) -> str:
    modes = [record.get(kind, {}).get("Hessian", {}).get("mode", "") for kind in ("chosen", "forced")]
    short = {"traced": "T", "double backward": "D"}
    return ", ".join(dict.fromkeys(short.get(mode, mode) for mode in modes if mode))


def _worst(record: dict[str, Any], matrix: str) -> float | None:
    found = (record.get(kind, {}).get(matrix, {}).get("deviation") for kind in ("chosen", "forced"))
    return max((error for error in found if error is not None), default=None)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}" if value else "0"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.2g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def _section(title: str, notes: Sequence[str]) -> str:
    return f"## {title}\n\n" + "\n".join(notes) + "\n" if notes else ""
