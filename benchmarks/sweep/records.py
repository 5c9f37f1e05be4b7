"""Records on disk: one line of JSON a case, the last one of a name counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["RECORDS", "append", "latest"]

RECORDS = Path(__file__).parents[1] / "models.jsonl"


def append(record: dict[str, Any]) -> None:
    """Add a record."""
    with RECORDS.open("a") as file:
        file.write(json.dumps(record) + "\n")


def latest() -> list[dict[str, Any]]:
    """The last record of each case, in the order in which cases were first measured."""
    if not RECORDS.exists():
        return []
    found = {record["name"]: record for record in map(json.loads, RECORDS.read_text().splitlines())}
    return list(found.values())
