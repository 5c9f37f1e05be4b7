"""Tables of spectra."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest

from rich.table import Table

from hesspec.backend.number_text import plus_minus, three_digits
from hesspec.backend.text import printable
from hesspec.cli.tables.layout import table_of
from hesspec.matrices import symbol_of
from hesspec.spectra.informative import hints, negative_text, trace_text
from hesspec.spectra.spectrum import Spectrum

__all__ = ["distinct_labels", "side_by_side", "stacked"]

# Attributes that distinguish spectra, in the order in which a reader looks for them.
_IDENTITY = ("matrix", "split", "checkpoint", "epoch", "network", "dataset", "samples_per_class")
_NONE = "–"

_STACKED_WIDTH = 92
_NAME_WIDTH, _COLUMN_WIDTH = 20, 20

Text = Callable[[Spectrum], str]


def distinct_labels(spectra: Sequence[Spectrum], names: Sequence[str]) -> list[str]:
    """Labels that distinguish spectra: the matrix and what else differs, or the given names if that is not enough.

    Parameters
    ----------
    spectra : sequence of Spectrum
    names : sequence of str
        One name for each spectrum, such as the name of its file.
    """
    parts: list[list[str]] = [[] for _ in spectra]
    for attribute in _IDENTITY:
        values = [printable(str(spectrum.attributes.get(attribute, ""))) for spectrum in spectra]
        if len(set(values)) > 1 or (attribute == "matrix" and values[0]):
            for part, value in zip(parts, values, strict=True):
                part.append(symbol_of(value) or "?")
        labels = [", ".join(part) for part in parts]
        if all(labels) and len(set(labels)) == len(labels):
            return labels
    return list(names)


def stacked(spectra: Sequence[Spectrum], *, title: str, width: int) -> Table:
    """Table with a row for each spectrum, with its most important numbers.

    Parameters
    ----------
    spectra : sequence of Spectrum
    title : str
        Printed above the table.
    width : int
        Width of the terminal in characters; if it is small, the share of negative eigenvalues is left out.
    """
    columns: dict[str, Text] = {
        "outliers": lambda spectrum: str(spectrum.outliers.size),
        "largest": _largest,
        "bulk": _bulk,
        "trace": _trace,
        **({"negative": _negative} if width >= _STACKED_WIDTH else {}),
    }
    table = table_of("spectrum", *columns)
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    for spectrum in spectra:
        matrix = str(spectrum.attributes.get("matrix", "operator"))
        name = f"{symbol_of(matrix)}, {spectrum.attributes.get('split', '')}"
        table.add_row(printable(name), *(text(spectrum) for text in columns.values()))
    return table


def side_by_side(spectra: Mapping[str, Spectrum], *, width: int) -> Iterator[Table]:
    """Tables with a column for each spectrum: its numbers, and all outliers with their error bounds.

    Parameters
    ----------
    spectra : mapping of str to Spectrum
        Spectra by the headings of their columns.
    width : int
        Width of the terminal in characters; spectra that do not fit next to each other go into further tables.
    """
    rows: dict[str, Text] = {
        "parameters": lambda spectrum: f"{spectrum.dimension:,}",
        "samples": lambda spectrum: _attribute(spectrum, "samples"),
        "loss": lambda spectrum: _attribute(spectrum, "risk"),
        "Lanczos steps": _steps,
        "resolved eigenvalues": lambda spectrum: str(spectrum.eigenvalues.size),
        "outliers": lambda spectrum: str(spectrum.outliers.size),
        "largest": _largest,
        "bulk": _bulk,
        "trace": _trace,
        "negative eigenvalues": _negative,
        "effective rank": lambda spectrum: f"{spectrum.effective_rank:.3g}",
        "Wasserstein-1 bound": lambda spectrum: f"{spectrum.wasserstein_bound:.2g}",
    }
    labels = list(spectra)
    together = max(1, (width - _NAME_WIDTH) // _COLUMN_WIDTH)
    for start in range(0, len(labels), together):
        shown = labels[start : start + together]
        members = [spectra[label] for label in shown]
        table = table_of("", *shown)
        for name, text in rows.items():
            texts = list(map(text, members))
            if set(texts) != {_NONE}:
                table.add_row(name, *texts)
        table.add_section()
        for rank, values in enumerate(zip_longest(*map(_outliers, members), fillvalue=""), start=1):
            table.add_row(f"outlier {rank}", *values)
        notes = [f"{label}: {hint}" for label, spectrum in zip(shown, members, strict=True) for hint in hints(spectrum)]
        if notes:
            table.caption, table.caption_justify, table.caption_style = "\n".join(notes), "left", ""
        yield table


def _outliers(spectrum: Spectrum) -> list[str]:
    bounds = spectrum.error_bounds[spectrum.is_outlier]
    return [plus_minus(value, bound) for value, bound in zip(spectrum.outliers, bounds, strict=True)]


def _largest(spectrum: Spectrum) -> str:
    if not spectrum.eigenvalues.size:
        return _NONE
    return plus_minus(spectrum.eigenvalues[0], spectrum.error_bounds[0])


def _bulk(spectrum: Spectrum) -> str:
    low, high = spectrum.bulk_edges
    low = max(low, 0.0) if spectrum.is_positive else low
    return f"{three_digits(low)} to {three_digits(high)}" if math.isfinite(low) else _NONE


def _trace(spectrum: Spectrum) -> str:
    return trace_text(spectrum) or _NONE


def _negative(spectrum: Spectrum) -> str:
    if spectrum.is_positive:
        return "none (semi-definite)"
    return negative_text(spectrum) or _NONE


def _steps(spectrum: Spectrum) -> str:
    return f"{spectrum.steps}" if spectrum.probes == 1 else f"{spectrum.steps}, {spectrum.probes} probes"


def _attribute(spectrum: Spectrum, name: str) -> str:
    value = spectrum.attributes.get(name)
    if value is None:
        return _NONE
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else printable(value)
