"""Reading of JSON files that may be damaged or foreign."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, Final

from hesspec.backend.files import content_of

__all__ = ["read_json"]

# Bytes; the largest record of a study has a few megabytes.
LARGEST: Final = 1 << 26


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    ValueError
        If it is a pipe or a device, is larger than any that a study writes, or is not JSON. The message does not name
        the file.
    OSError
        If it cannot be read.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("It is not a file.")
    if status.st_size > LARGEST:
        raise ValueError(f"It has {status.st_size:,} bytes, more than any record of a study.")
    try:
        return json.loads(content_of(file).decode())
    except RecursionError as error:
        raise ValueError("It is nested too deeply.") from error
