"""docs/supported.md, from the records."""

from __future__ import annotations

import platform
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
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
  with hesspec's; **times**: how many times as fast hesspec is, of medians.
- **Verdict**: *right*; *stated*: less exact, and the operator says by how much; *rounded*: plain double backward in
  float32 is as far from float64 (mostly a unit on the other side of its kink); *refused*: with a sentence, where there
  is nothing to compute. Anything else is a fault, listed below.

The truth shares no code with hesspec. The product with the Hessian is double backward over all data in float64,
confirmed by central differences of `loss.backward()` with two displacements; where PyTorch has no second derivative, or
a wrong one, it is the differences, which must agree with one another. G is J^T A J, each factor computed in two ways
likewise; H = Hess - G. After each product the model, its loss, its data and the state of the process are compared with
what they were before.
"""


def write_page(cases: Sequence[Case]) -> None:
    """Judge the last record of each case and write the page.

    Parameters
    ----------
    cases : sequence of Case
        All there are, in the order of the page.
    """
    known = {record["name"]: record for record in latest()}
    records = [known[case.name] for case in cases if case.name in known]
    judged = [(record, judge(record)) for record in records]
    absent = [case.name for case in cases if case.name not in known]
    families = dict.fromkeys(record["family"] for record in records)
    parts = [ABOUT.format(largest=LARGEST_ERROR), _conditions(), _summary(judged, absent), markdown(_overview(judged))]
    parts += [
        markdown(_family(family, [pair for pair in judged if pair[0]["family"] == family])) for family in families
    ]
    parts += [_refusals(judged), _faults(judged)]
    PAGE.write_text("\n".join(part.rstrip() + "\n" for part in parts if part))
    print(f"{len(records)} of {len(cases)} cases are in {PAGE.relative_to(ROOT)}.")


def _conditions() -> str:
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return (
        f"One thread of {processor()}, {platform.system()}, Python {platform.python_version()}, "
        f"{versions}; {time.strftime('%Y-%m-%d')}. First products are in CPU seconds.\n"
    )


def _summary(judged: Sequence[tuple[dict[str, Any], Verdict]], absent: Sequence[str]) -> str:
    count = Counter(verdict.word for _, verdict in judged)
    errors = [error for record, verdict in judged if not verdict.faults for error in _deviations(record)]
    ratios = [ratio for record, _ in judged if (ratio := _ratio(record)) is not None]
    lines = [
        f"**{len(judged)} models**: "
        + ", ".join(f"{count[word]} {word}" for word in (*GOOD, *sorted(count.keys() - GOOD)) if count[word])
    ]
    if errors:
        lines.append(
            f"Largest error of those without fault: {max(errors):.1e}; median {statistics.median(errors):.1e}."
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


def _overview(judged: Sequence[tuple[dict[str, Any], Verdict]]) -> Block:
    rows = []
    for family in dict.fromkeys(record["family"] for record, _ in judged):
        mine = [(record, verdict) for record, verdict in judged if record["family"] == family]
        words = Counter(verdict.word for _, verdict in mine)
        errors = [error for record, _ in mine for error in _deviations(record)]
        ratios = [ratio for record, _ in mine if (ratio := _ratio(record)) is not None]
        rows.append(
            (
                family,
                str(len(mine)),
                *(str(words[word] or "") for word in GOOD),
                str(sum(words.values()) - sum(words[word] for word in GOOD) or ""),
                _number(max(errors, default=None)),
                f"{statistics.median(ratios):.2f}" if ratios else "",
            )
        )
    return Block("By family", "", ("family", "models", *GOOD, "at fault", "largest error", "median times"), rows)


def _family(family: str, judged: Sequence[tuple[dict[str, Any], Verdict]]) -> Block:
    columns = ("model", "parameters", "way", "Hess", "G", "H", "first, s", "later, ms", "plain, ms", "times", "verdict")
    return Block(family, "", columns, [_row(record, verdict) for record, verdict in judged])


def _row(record: dict[str, Any], verdict: Verdict) -> tuple[str, ...]:
    hessian = record.get("chosen", {}).get("Hessian", {})
    ratio = _ratio(record)
    return (
        record["name"],
        f"{record['parameters']:,}" if "parameters" in record else "",
        _ways(record),
        *(_number(_worst(record, matrix)) for matrix in MATRICES),
        f"{hessian['first']:.2f}" if "error" not in hessian and "first" in hessian else "",
        _milliseconds(hessian.get("later")),
        _milliseconds(record.get("plain", {}).get("later")),
        "" if ratio is None else f"{ratio:.2f}",
        verdict.word if not verdict.faults else f"**{verdict.word}**",
    )


def _ways(record: dict[str, Any]) -> str:
    modes = [record.get(kind, {}).get("Hessian", {}).get("mode", "") for kind in ("chosen", "forced")]
    short = {"traced": "T", "double backward": "D"}
    return ", ".join(dict.fromkeys(short.get(mode, mode) for mode in modes if mode))


def _worst(record: dict[str, Any], matrix: str) -> float | None:
    found = (record.get(kind, {}).get(matrix, {}).get("deviation") for kind in ("chosen", "forced"))
    return max((error for error in found if error is not None), default=None)


def _deviations(record: dict[str, Any]) -> list[float]:
    return [error for matrix in MATRICES if (error := _worst(record, matrix)) is not None]


def _ratio(record: dict[str, Any]) -> float | None:
    ours, plain = record.get("chosen", {}).get("Hessian", {}).get("later"), record.get("plain", {}).get("later")
    return plain / ours if ours and plain else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}" if value else "0"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.2g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def _refusals(judged: Iterable[tuple[dict[str, Any], Verdict]]) -> str:
    lines = []
    for record, verdict in judged:
        if verdict.word == "refused":
            told = next(result["error"] for result in record["chosen"].values() if "error" in result)
            why = record["sentence"] or "a part of the gradient is held constant"
            lines.append(f"- {record['name']} ({why}): {told['type']}: {' '.join(told['text'].split())}")
    return "## What is refused, and with what words\n\n" + "\n".join(lines) + "\n" if lines else ""


def _faults(judged: Iterable[tuple[dict[str, Any], Verdict]]) -> str:
    lines = []
    for record, verdict in judged:
        told = "; ".join(f"{word}: {' '.join(sentence.split())}" for word, sentence in verdict.faults[:4])
        if told:
            lines.append(f"- {record['name']} ({record['family']}): {told}")
    return "## Faults\n\n" + "\n".join(lines) + "\n" if lines else ""
