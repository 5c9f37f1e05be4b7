"""The study of a folder: its file, and the digests of code that its results belong to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import yaml

from hesspec.backend.files import write_bytes
from hesspec.spectra.study_names import REQUESTED_FILE, STUDY_FILE
from hesspec.study.config import StudyConfig
from hesspec.study.folders import RUNS, hold, remove_left, without_links
from hesspec.study.json_files import read_json, write_json
from hesspec.study.requested import requested
from hesspec.study.study_file import parse_study, study_text

__all__ = ["read_code", "read_study", "write_study"]

CODE: Final = "code.json"
STUDY_LOCK: Final = ".study.lock"
WRITTEN_AGAIN: Final = "The study writes it again."


def write_study(config: StudyConfig, folder: Path, code: Mapping[str, str]) -> None:
    """Write the study file, what it requests and the digests of code next to the results, replacing earlier ones.

    An equivalent file is left unchanged: it may be the user's own, with comments.

    Raises
    ------
    NotADirectoryError
        If the folder is a file, or has a symbolic link instead of a folder.
    OSError
        If a file cannot be written.
    """
    if folder.is_file():
        raise NotADirectoryError(
            f"The results would be written to a folder {str(folder)!r}, but that is a file; use another one."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with hold(without_links(folder, folder / RUNS) / STUDY_LOCK, wait=True):
        remove_left(folder)
        if code or (folder / CODE).is_file():
            write_json(folder / CODE, code)
        _write_requested(config, folder / REQUESTED_FILE)
        if (folder / STUDY_FILE).is_file() and _says(folder / STUDY_FILE, config):
            return
        content = config.model_dump(mode="json", exclude_none=True)
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
        write_bytes(folder / STUDY_FILE, text.encode())


def _write_requested(config: StudyConfig, file: Path) -> None:
    content = requested(config)
    with contextlib.suppress(ValueError):  # damaged, or of another version
        if file.is_file() and read_json(file, WRITTEN_AGAIN) == content:
            return
    write_json(file, content)


def _says(file: Path, config: StudyConfig) -> bool:
    try:
        return parse_study(study_text(file), str(file)) == config
    except ValueError:
        return False  # of another version, or damaged


def read_code(folder: Path) -> dict[str, str]:
    """Read the digests of code that the results in a folder belong to; raises ValueError if the file is damaged."""
    file = folder / CODE
    if not file.is_file():
        return {}
    content = read_json(file, WRITTEN_AGAIN)
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ValueError(f"The file {str(file)!r} is damaged: it has no digests of code. {WRITTEN_AGAIN}")
    return content


def read_study(folder: str | os.PathLike[str]) -> StudyConfig:
    """Read the study in a folder.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If its file is not valid.
    """
    file = Path(folder) / STUDY_FILE
    if not file.is_file():
        raise FileNotFoundError(f"There is no study in {str(folder)!r}: it has no {STUDY_FILE}.")
    return parse_study(study_text(file), str(file))
