"""Small JSON files of a study, validated when read: each may be damaged, foreign, or from a later version."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from hesspec.backend import json_files
from hesspec.backend.files import write_bytes
from hesspec.study.training import EpochRecord

__all__ = ["read_history", "read_json", "write_json"]

AGAIN: Final = "Delete its folder to train and measure again."
NAMES: Final = tuple(item.name for item in fields(EpochRecord))


def read_json(file: Path, advice: str = AGAIN) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    file
    advice
        Sentence that says what to do about a damaged file.

    Raises
    ------
    ValueError
        As `hesspec.backend.json_files.read_json`; the message names the file.
    OSError
        If it cannot be read.
    """
    try:
        return json_files.read_json(file)
    except ValueError as error:
        raise _damaged(file, str(error), advice) from error


def write_json(file: Path, content: object) -> None:
    """Write a JSON file atomically; raises the OSError of `write_bytes`."""
    write_bytes(file, json.dumps(content, indent=1).encode())


def read_history(file: Path, epochs: int) -> list[EpochRecord]:
    """Read the records of a training with a number of epochs; empty if the file does not exist.

    Raises
    ------
    ValueError
        If they are not those of epochs 0, 1, ..., exceed the epochs of the training, or were written by a later version
        of hesspec; the message names the file.
    OSError
        If the file cannot be read.
    """
    if not file.is_file():
        return []
    content = read_json(file)
    if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
        raise _damaged(file, "it is not a list of records, one for each epoch")
    if len(content) > epochs + 1:
        raise _damaged(file, f"it has records of {len(content) - 1} epochs, but the training has {epochs}")
    return [_record(file, epoch, record) for epoch, record in enumerate(content)]


def _record(file: Path, epoch: int, record: dict[str, Any]) -> EpochRecord:
    further = [name for name in record if name not in NAMES]
    if further:
        raise ValueError(
            f"The file {str(file)!r} has {', '.join(map(repr, further[:3]))} in its records, which this version of "
            "hesspec does not know: a later version wrote it. Update hesspec."
        )
    missing = [name for name in NAMES if name not in record]
    if missing:
        raise _damaged(file, f"its record {epoch} has no {missing[0]!r}")
    for name, value in record.items():
        known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
        if not known or (name.endswith("_error") and value > 1) or (name == "epoch" and value != epoch):
            raise _damaged(file, f"its record {epoch} has {value!r} as its {name!r}")
    return EpochRecord(**record)


def _damaged(file: Path, reason: str, advice: str = AGAIN) -> ValueError:
    return ValueError(f"The file {str(file)!r} is damaged: {reason[:1].lower()}{reason[1:].rstrip('.')}. {advice}")
