"""Results as JSON and CSV on standard output, for other programs, and figures as files."""

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from hesspec.applications.comparison.record import Comparison
from hesspec.backend.csv_text import cell
from hesspec.backend.files import atomic_path
from hesspec.spectra.numbers import numbers_of
from hesspec.spectra.record import Record
from hesspec.spectra.spectrum import Spectrum

__all__ = ["as_csv", "as_json", "check_choice", "check_figure", "check_page", "differences_as_csv", "save_figure"]

FORMATS = (".pdf", ".svg", ".png")

# Attributes that say what a spectrum is of, in the order of the columns.
IDENTITY = (
    "matrix",
    "network",
    "dataset",
    "split",
    "checkpoint",
    "epoch",
    "samples_per_class",
    "samples",
    "risk",
    "seed",
)


def as_json(found: Mapping[Path, Record]) -> str:
    """List with an object for each file: its name, the kind of its result, attributes and numbers.

    Outliers, and other arrays of one dimension, are lists. Numbers that are not finite are null.
    """
    entries = [
        {
            "file": str(file),
            "kind": result.KIND,
            "attributes": dict(result.attributes),
            **(_of_spectrum(result) if isinstance(result, Spectrum) else _of_record(result)),
        }
        for file, result in found.items()
    ]
    return json.dumps(_plain(entries), indent=1, allow_nan=False)


def as_csv(spectra: Mapping[Path, Spectrum]) -> str:
    """Table with a row for each spectrum: file, what it is of, and its main numbers."""
    rows = [
        {
            "file": str(file),
            **{name: spectrum.attributes.get(name, "") for name in IDENTITY},
            **numbers_of(spectrum),
        }
        for file, spectrum in spectra.items()
    ]
    return _table(rows)


def differences_as_csv(found: Comparison) -> str:
    """Table with a row for each difference, see `Comparison.to_dataframe`."""
    return _table(found.to_dataframe().astype(object).to_dict("records"))


def check_choice(*, json: bool, csv: bool) -> None:
    """Raise ValueError if both formats are asked for."""
    if json and csv:
        raise ValueError("--json and --csv cannot be combined; choose one of them.")


def check_figure(file: Path | None) -> None:
    """Raise ValueError unless the name of a figure ends in a format that can be written."""
    if file is not None and file.suffix.lower() not in FORMATS:
        raise ValueError(f"--figure is {str(file)!r}; its name must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")


def check_page(file: Path | None) -> None:
    """Raise ValueError unless the name of a page ends in that of HTML."""
    if file is not None and file.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--page is {str(file)!r}; its name must end in .html.")


def save_figure(figure: Any, file: Path) -> None:
    """Save a figure in the format of its suffix."""
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format=file.suffix[1:].lower())


def _table(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue().removesuffix("\n")


def _of_spectrum(spectrum: Spectrum) -> dict[str, Any]:
    return {
        "numbers": numbers_of(spectrum),
        "outliers": spectrum.outliers,
        "outlier_error_bounds": spectrum.error_bounds[spectrum.is_outlier],
    }


def _of_record(record: Record) -> dict[str, Any]:
    values = {item.name: getattr(record, item.name) for item in fields(record) if item.name != "attributes"}
    return {"numbers": {name: value for name, value in values.items() if np.ndim(value) < 2}}


def _plain(value: Any) -> Any:
    """Convert a value to what JSON knows."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
