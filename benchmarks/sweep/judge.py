"""What a record means: right, refused for a reason, or at fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sweep.measure import MATRICES

__all__ = ["LARGEST_ERROR", "Verdict", "judge"]

# Relative to the largest of |Hess v|, |G v| and |H v|, what products in float32 may be off by without saying so.
LARGEST_ERROR = 1e-5

ORDER = ("wrong", "error", "silent", "touched", "printed", "unknown")

# How many times as far from float64 as plain double backward in float32 is as exact as that, and how far at most.
FLOAT32, MOST_OF_FLOAT32 = 1.5, 1e-3
# Smallest normal number over the precision: below it, products lose factors.
FLOAT32_UNDERFLOWS = 1e-31

SYMBOLS = dict(zip(MATRICES, ("Hess", "G", "H"), strict=True))


@dataclass(frozen=True)
class Verdict:
    """A verdict in one word, and what it rests on.

    Attributes
    ----------
    word : str
        "right"; "stated", where products are less exact and the operator says by how much; "rounded", where plain
        double backward in float32 is as far from the truth in float64 (a unit near its kink is on its other side);
        "refused", where nothing else was possible; or the first fault, one of `ORDER`.
    faults : tuple of (str, str)
        Word and sentence of each.
    """

    word: str
    faults: tuple[tuple[str, str], ...] = ()


def judge(record: dict[str, Any]) -> Verdict:
    """Judge a record."""
    if "build_error" in record:
        return Verdict("unknown", (("unknown", f"the case was not built: {record['build_error'][-200:]}"),))
    faults = sorted(_all_faults(record), key=lambda fault: ORDER.index(fault[0]))
    if faults:
        return Verdict(faults[0][0], tuple(faults))
    results = record["chosen"].values()
    if any("error" in result for result in results):
        return Verdict("refused")
    inexact = [result for result in results if result.get("deviation", 0) > LARGEST_ERROR]
    if not inexact:
        return Verdict("right")
    return Verdict("stated" if all(result.get("stated", 0) >= result["deviation"] for result in inexact) else "rounded")


def _all_faults(record: dict[str, Any]) -> list[tuple[str, str]]:
    faults: list[tuple[str, str]] = []
    if "end" in record:
        faults.append(("error", f"the process {record['end']} (in: {record.get('stage', 'start')})"))
    for kind, name in (("chosen", ""), ("forced", "traced ")):
        for matrix, result in record.get(kind, {}).items():
            faults += _faults(record, name + SYMBOLS[matrix], matrix, result)
    truth, newton = record.get("truth", {}), record.get("chosen", {}).get("GaussNewton", {})
    if "error" in truth:
        faults.append(("unknown", f"no truth: {truth['error'][-200:]}"))
    norms = truth.get("norms", [0.0, 0.0])
    # G of samples whose softmax is saturated is there, and underflows.
    underflows = 0 < norms[1] < FLOAT32_UNDERFLOWS
    if newton.get("zero") and not _said_linear(newton) and norms[0] > 0 and not underflows:
        faults.append(("silent", "G is zero, as the loss is linear in what the model returns, and nothing is said"))
    return faults + [("touched", sentence) for sentence in record.get("touched", [])]


def _faults(record: dict[str, Any], what: str, matrix: str, result: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    truth = record.get("truth", {})
    refused = record["sentence"] or (record.get("unsplit", "") if matrix != "Hessian" else "")
    may_refuse = refused or truth.get("constants") or truth.get("exists") is False
    if "printed" in result:
        found.append(("printed", f"{what}: {result['printed'].count(chr(10))} lines: {result['printed'][:150]}"))
    if "error" in result:
        error = result["error"]
        if not (may_refuse and error["ours"]):
            whose = "" if error["ours"] else " (raw)"
            found.append(("error", f"{what}{whose}: {error['type']}: {error['text'][:300]}"))
        return found
    if refused:
        found.append(("wrong", f"{what}: a product, though {refused}"))
    elif truth.get("exists") is False:
        found.append(("wrong", f"{what}: a product of a matrix that is not symmetric"))
    deviation = result.get("deviation")
    allowed = max(LARGEST_ERROR, result.get("stated", 0.0), _of_float32(record))
    if deviation is not None and not deviation <= allowed:
        if matrix != "Hessian" and _said_linear(result):
            return found
        stated = f", stated {result['stated']:.1e}" if result.get("stated") else ""
        zero = ", G is zero" if matrix == "GaussNewton" and result.get("zero") else ""
        found.append(("wrong", f"{what} is off by {deviation:.1e}{stated}{zero}"))
    return found


def _of_float32(record: dict[str, Any]) -> float:
    """What float32 alone makes of products, by double backward where that is right in float64."""
    if not record.get("truth", {}).get("way", "").startswith("double backward, confirmed"):
        return 0.0
    return min(FLOAT32 * record.get("plain", {}).get("deviation", 0.0), MOST_OF_FLOAT32)


def _said_linear(result: dict[str, Any]) -> bool:
    """Whether a warning says that the loss is linear in what the model returns, and so what G is of."""
    return any("linear" in warning for warning in result.get("warnings", []))
