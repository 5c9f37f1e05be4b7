"""Tables of a class structure, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hesspec.applications.class_structure.names import ALL_MEANS, CLASS_MEANS, NOTHING, PARTS, SHARES
from hesspec.backend.number_text import plus_minus, three_digits
from hesspec.backend.shown import TextTable
from hesspec.matrices import symbol_of

if TYPE_CHECKING:
    from hesspec.applications.class_structure.record import ClassStructure

__all__ = ["explained"]

_NONE = "–"


def explained(structure: ClassStructure) -> list[TextTable]:
    """Tables of the parts of G, the largest eigenvalues of each matrix by part, and the Hessian without the means."""
    tables = [_parts(structure)]
    for matrix in str(structure.attributes.get("matrices", "")).split():
        if matrix in structure.outlier_matrix:
            tables.append(_outliers(structure, matrix))
        else:
            note = f"{symbol_of(matrix)} has no outliers: no resolved eigenvalue stands apart from its bulk."
            tables[-1] = TextTable(tables[-1].title, tables[-1].columns, tables[-1].rows, (*tables[-1].notes, note))
    if structure.knockout_edges.size:
        tables.append(_knockout(structure))
    return tables


def _parts(structure: ClassStructure) -> TextTable:
    rows = []
    for i, part in enumerate(PARTS):
        trace = _with_bound(structure.traces[i], structure.trace_errors[i]) if structure.traces.size else _NONE
        values = np.empty(0) if part == "within" else getattr(structure, f"{part}_eigenvalues")
        ends = (str(values.size), three_digits(values[0]), three_digits(values[-1])) if values.size else (_NONE,) * 3
        rows.append((f"G_{part}", trace, *ends))
    title = f"Parts of G, {structure.classes} classes"
    return TextTable(title, ("part", "trace", "eigenvalues", "largest", "smallest"), rows)


def _outliers(structure: ClassStructure, matrix: str) -> TextTable:
    indices = np.flatnonzero(structure.outlier_matrix == matrix)
    name = symbol_of(matrix)
    columns = ["", "eigenvalue", "class", "cross", "within", "same", "H", "in class", "in means"]
    if matrix == "Hessian":
        columns[2:2] = ["G_class", "means", "Ritz"]
    predictions = {part: structure.predicted(matrix, part=part)[1] for part in ("class", "sum", "ritz")}
    rows, positive = [], 0
    for rank, i in enumerate(indices, start=1):
        value = structure.outliers[i]
        row = [str(rank), _with_bound(value, structure.outlier_bounds[i])]
        if matrix == "Hessian":
            for predicted in predictions.values():
                known = value > 0 and positive < predicted.size
                row.append(three_digits(predicted[positive]) if known else _NONE)
        positive += value > 0
        # The terms of G are not parts of H.
        shares = structure.outlier_shares[i] / value if matrix != "Residual" else np.full(len(SHARES), np.nan)
        row += [_percent(share) for share in shares]
        row += [_percent(part) for part in (structure.outlier_in_class[i], structure.outlier_in_means[i])]
        rows.append(row)
    notes = []
    if matrix == "Hessian":
        notes.append(
            "predicted by G_class, by all means (G_class + G_cross + G_same), and by G in the span of the class means"
        )
    for span in (CLASS_MEANS, ALL_MEANS):
        chosen = (structure.angle_matrix == matrix) & (structure.angle_span == span)
        if chosen.any():
            angles = np.degrees(structure.angles[chosen])
            error = np.degrees(structure.angle_errors[chosen]).max()
            notes.append(
                f"principal angles to the span of the {span}: {angles[0]:.1f}° to {angles[-1]:.1f}° (± {error:.1g}°)"
            )
    title = f"Largest eigenvalues of {name}: shares of each by part, and of its eigenvector in the means"
    return TextTable(title, columns, rows, notes)


def _knockout(structure: ClassStructure) -> TextTable:
    rows = []
    for name, (low, high) in zip((NOTHING, CLASS_MEANS, ALL_MEANS), structure.knockout_edges, strict=False):
        left = np.abs(structure.knockout_eigenvalues[structure.knockout_removed == name])
        largest = three_digits(left.max()) if left.size else _NONE
        rows.append((name, str(left.size), largest, f"{three_digits(low)} to {three_digits(high)}"))
    return TextTable("The Hessian without the means", ("projected out", "outliers", "largest |outlier|", "bulk"), rows)


def _with_bound(value: float, bound: float) -> str:
    return plus_minus(value, bound) if bound > 0 else three_digits(value)


def _percent(share: float) -> str:
    return f"{round(100 * share)}%" if np.isfinite(share) else _NONE
