"""Class-structure section of the page: Plotly figures as plain dictionaries, and tables as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hesspec.applications.class_structure.figure import CLASS, COMPONENTS, HESS, TERMS, G
from hesspec.applications.class_structure.record import ALL_MEANS, CLASS_MEANS, NOTHING, PARTS, SHARES, ClassStructure
from hesspec.backend.csv_text import csv_text
from hesspec.backend.number_text import percent, plus_minus, three_digits
from hesspec.matrices import symbol_of
from hesspec.plot import bulk_on_logarithmic_axis
from hesspec.report.figure_data import SYMBOLS, plain
from hesspec.report.member import Explained, Member
from hesspec.spectra.spectrum import Spectrum

__all__ = ["structure_csv", "structure_figures", "structure_tables", "structures_over"]

Array = npt.NDArray[np.float64]
Json = dict[str, Any]

LABELS = {"class": "G<sub>class</sub>", "cross": "G<sub>cross</sub>", "same": "G<sub>same</sub>"}
TERM_LABELS = dict(
    zip(SHARES, ("G<sub>class</sub>", "G<sub>cross</sub>", "G<sub>within</sub>", "G<sub>same</sub>", "H"), strict=True)
)
LOGARITHMIC = {"type": "log", "showgrid": True}


def structure_figures(item: Explained, members: Sequence[Member]) -> list[Json]:
    """Return the figures of one class structure.

    Parameters
    ----------
    item : Explained
        Class structure.
    members : sequence of Member
        Spectra, among which that of G at the same point is looked up.

    Returns
    -------
    list of dict
        `title`, `traces` and `layout` of each figure; figures without data are omitted.
    """
    structure = item.structure
    spectrum = next(
        (
            member.spectrum
            for member in members
            if member.matrix == "G"
            and (member.run, member.samples, member.split, member.checkpoint)
            == (item.run, item.samples, item.split, item.checkpoint)
        ),
        None,
    )
    drawn = [
        _components(structure, spectrum),
        _predictions(structure),
        _shares(structure),
        _knockout(structure),
    ]
    return [figure for figure in drawn if figure is not None]


def _finite(values: Array) -> list[float | None]:
    """Convert numbers for JSON: None, which Plotly omits, for those that are not finite."""
    return [float(value) if math.isfinite(value) else None for value in values]


def _components(structure: ClassStructure, spectrum: Spectrum | None) -> Json:
    traces: list[Json] = []
    floor = 1.0
    if spectrum is not None:
        floor = 1 / spectrum.dimension
        x, y = bulk_on_logarithmic_axis(spectrum)
        seen = y > floor * 1e-3
        traces.append(
            {
                "x": x[seen].tolist(), "y": y[seen].tolist(), "mode": "lines", "name": "bulk of G", "fill": "tozeroy",
                "line": {"color": G, "width": 1.6}, "fillcolor": f"{G}29",
                "hovertemplate": "%{x:.3g}<br>%{y:.3g} per decade<extra>bulk of G</extra>",
            }
        )  # fmt: skip
        kept = spectrum.eigenvalues > 0
        traces.append(
            {
                "x": spectrum.eigenvalues[kept].tolist(), "y": [floor] * int(kept.sum()), "mode": "markers",
                "name": "eigenvalues of G", "marker": {"color": G, "symbol": "square", "size": 8},
                "text": [plus_minus(v, b) for v, b in
                         zip(spectrum.eigenvalues[kept], spectrum.error_bounds[kept], strict=True)],
                "hovertemplate": "%{text}<extra>G</extra>",
            }
        )  # fmt: skip
    for row, (part, _, colour, marker) in enumerate(COMPONENTS):
        values: Array = getattr(structure, f"{part}_eigenvalues")
        if not values.size:
            continue
        traces.append(
            {
                "x": values.tolist(), "y": [floor / 6 ** (row + 1)] * values.size, "mode": "markers",
                "name": LABELS[part],
                "marker": {"color": colour, "symbol": SYMBOLS[marker], "size": 8, "opacity": 0.85},
                "text": [three_digits(value) for value in values],
                "hovertemplate": f"%{{text}}<extra>{LABELS[part]}</extra>",
            }
        )  # fmt: skip
    axis = {"title": {"text": "share of eigenvalues per decade"}, **LOGARITHMIC}
    if spectrum is None:
        axis = {"type": "log", "visible": False}
    return {
        "title": "Components of G",
        "traces": traces,
        "layout": {"xaxis": {"title": {"text": "eigenvalue λ"}, **LOGARITHMIC}, "yaxis": axis},
    }


def _predictions(structure: ClassStructure) -> Json | None:
    traces: list[Json] = []
    every: list[Array] = []
    bounds = structure.outlier_bounds[(structure.outlier_matrix == "Hessian") & (structure.outliers > 0)]
    for part, name, colour, symbol in (
        ("class", LABELS["class"], CLASS, "diamond"),
        ("sum", "G<sub>class</sub> + G<sub>cross</sub> + G<sub>same</sub>", "#5A626B", "circle"),
        ("ritz", "G in the span of the g<sub>c</sub>", G, "square"),
    ):
        measured, predicted, error = structure.predicted("Hessian", part=part)  # type: ignore[arg-type]
        if not measured.size:
            continue
        every += [measured, predicted]
        count = measured.size
        traces.append(
            {
                "x": predicted.tolist(), "y": measured.tolist(), "mode": "markers", "name": name,
                "error_y": {"type": "data", "array": _finite(bounds[:count]), "thickness": 1.2},
                "marker": {"color": colour, "symbol": symbol, "size": 9},
                "text": [
                    f"eigenvalue {rank}: {plus_minus(m, b)}<br>predicted {three_digits(p)}, "
                    f"off by {e:.1%}"
                    for rank, (m, b, p, e) in enumerate(
                        zip(measured, bounds[:count], predicted, error, strict=True), start=1)
                ],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )  # fmt: skip
    if not every:
        return None
    ends = [min(v.min() for v in every) / 1.3, max(v.max() for v in every) * 1.3]
    traces.append(
        {
            "x": ends, "y": ends, "mode": "lines", "name": "equal", "hoverinfo": "skip",
            "line": {"color": "#888888", "dash": "dash", "width": 1},
        }
    )  # fmt: skip
    return {
        "title": "Largest eigenvalues of Hess, predicted by the means and measured",
        "traces": traces,
        "layout": {
            "xaxis": {"title": {"text": "predicted eigenvalue"}, "type": "log"},
            "yaxis": {"title": {"text": "measured eigenvalue"}, "type": "log"},
        },
    }


def _shares(structure: ClassStructure) -> Json | None:
    mine = structure.outlier_matrix == "Hessian"
    if not mine.any():
        return None
    values = structure.outliers[mine]
    shares = 100 * structure.outlier_shares[mine] / values[:, None]
    ranks = list(range(1, values.size + 1))
    traces = [
        {
            "type": "bar", "x": ranks, "y": shares[:, i].tolist(), "name": TERM_LABELS[term],
            "marker": {"color": TERMS[term]},
            "hovertemplate": f"%{{y:.1f}}% of eigenvalue %{{x}}<extra>{TERM_LABELS[term]}</extra>",
        }
        for i, term in enumerate(SHARES)
    ]  # fmt: skip
    return {
        "title": "Terms of the largest eigenvalues of Hess",
        "traces": traces,
        "layout": {
            "barmode": "relative",
            "xaxis": {"title": {"text": "eigenvalue, by size"}, "dtick": 1 if len(ranks) <= 20 else None},
            "yaxis": {"title": {"text": "share of the eigenvalue, %"}},
        },
    }


def _knockout(structure: ClassStructure) -> Json | None:
    names = [NOTHING, CLASS_MEANS, ALL_MEANS][: len(structure.knockout_edges)]
    if not names:
        return None
    sizes = np.abs(structure.knockout_eigenvalues)
    edges = np.abs(structure.knockout_edges).max(axis=1)
    traces: list[Json] = [
        {
            "x": _finite(edges), "y": names, "mode": "markers", "name": "edge of the bulk",
            "marker": {"color": "#888888", "symbol": "line-ns-open", "size": 22, "line": {"width": 2}},
            "hovertemplate": "%{x:.3g}<extra>edge of the bulk</extra>",
        }
    ]  # fmt: skip
    bounds = structure.knockout_bounds
    traces.append(
        {
            "x": sizes.tolist(), "y": [plain(name) for name in structure.knockout_removed.tolist()],
            "mode": "markers", "name": "outliers",
            "marker": {"color": HESS, "size": 9},
            "text": [plus_minus(v, b) for v, b in
                     zip(structure.knockout_eigenvalues, bounds, strict=True)],
            "hovertemplate": "%{text}<extra>without %{y}</extra>",
        }
    )  # fmt: skip
    return {
        "title": "Outliers of Hess with the means projected out",
        "traces": traces,
        "layout": {
            "xaxis": {"title": {"text": "|λ|"}, "type": "log"},
            "yaxis": {
                "type": "category", "categoryorder": "array", "categoryarray": names[::-1], "automargin": True,
                "title": {"text": "projected out"},
            },
        },
    }  # fmt: skip


def structures_over(items: Sequence[Explained]) -> list[Json]:
    """Plot predicted and measured eigenvalues against epoch and sample size, if class structures differ in these."""
    figures = []
    for name, word in (("epoch", "epoch"), ("samples_per_class", "samples per class")):
        groups: dict[tuple[str, ...], list[tuple[float, Explained]]] = {}
        for item in items:
            value = item.epoch if name == "epoch" else _size(item)
            if isinstance(value, int | float) and math.isfinite(value):
                groups.setdefault(_all_but(name, item), []).append((float(value), item))
        differ = [len(set(parts)) > 1 for parts in zip(*groups, strict=True)]
        for group, points in groups.items():
            if len({value for value, _ in points}) > 1:
                title = f"Largest eigenvalues and class means against {word}"
                where = " · ".join(part for part, differs in zip(group, differ, strict=True) if part and differs)
                figures.append(_over(f"{title}: {where}" if where else title, word, sorted(points, key=lambda x: x[0])))
    return figures


def _size(item: Explained) -> object:
    """Samples per class; in a study, those of the training set, which vary."""
    return item.structure.attributes.get("samples_per_class") if item.samples is None else item.samples


def _all_but(name: str, item: Explained) -> tuple[str, ...]:
    """Attributes that must agree for class structures to differ in a single one."""
    attributes = item.structure.attributes
    count = _size(item)
    return (
        *(str(attributes.get(key, "")) for key in ("network", "dataset", "loss")),
        "" if item.samples is None else item.run,  # distinguishes seeds
        item.split,
        item.checkpoint if name == "samples_per_class" else "" if count is None else f"n = {count}",
    )


def _over(title: str, word: str, points: Sequence[tuple[float, Explained]]) -> Json:
    predicted = [(value, x) for value, item in points for x in item.structure.class_eigenvalues]
    measured = [
        (value, x)
        for value, item in points
        for x in item.structure.outliers[item.structure.outlier_matrix == "Hessian"]
        if x > 0
    ]
    traces = [
        {
            "x": [value for value, _ in pairs], "y": [float(x) for _, x in pairs], "mode": "markers", "name": label,
            "marker": {"color": colour, "symbol": symbol, "size": size},
            "hovertemplate": f"{word} %{{x}}: %{{y:.4g}}<extra>{label}</extra>",
        }
        for pairs, label, colour, symbol, size in (
            (measured, "eigenvalues of Hess", HESS, "circle", 9), (predicted, LABELS["class"], CLASS, "x", 7),
        )
    ]  # fmt: skip
    return {
        "title": plain(title),
        "traces": traces,
        "layout": {
            "xaxis": {"title": {"text": word}},
            "yaxis": {"title": {"text": "eigenvalue"}, "type": "log"},
        },
    }


def structure_tables(item: Explained) -> Json:
    """Return traces of the parts and a row for each attributed eigenvalue, as text."""
    structure = item.structure
    traces = [
        (f"G_{part}", plus_minus(value, error) if error > 0 else three_digits(value))
        for part, value, error in zip(PARTS, structure.traces, structure.trace_errors, strict=False)
    ]  # no traces if they were not requested
    return {
        "title": item.title or "class structure",
        "file": item.path.as_posix(),
        "traces": traces,
        "outliers": _rows(structure),
    }


def _rows(structure: ClassStructure) -> list[Json]:
    rows = []
    predictions = structure.predicted("Hessian")[1]
    ritz = structure.predicted("Hessian", part="ritz")[1]
    ranks: dict[str, int] = {}
    positive = 0
    for i, matrix in enumerate(structure.outlier_matrix.tolist()):
        value, bound = float(structure.outliers[i]), float(structure.outlier_bounds[i])
        ranks[matrix] = ranks.get(matrix, 0) + 1
        predicted = off = of_ritz = off_ritz = "–"
        if matrix == "Hessian" and value > 0:
            if positive < predictions.size:
                predicted = three_digits(predictions[positive])
                off = f"{abs(predictions[positive] / value - 1):.1%}"
            if positive < ritz.size:
                of_ritz = three_digits(ritz[positive])
                off_ritz = f"{abs(ritz[positive] / value - 1):.1%}"
            positive += 1
        rows.append(
            {
                "matrix": symbol_of(matrix),
                "rank": ranks[matrix],
                "value": plus_minus(value, bound),
                "predictions": [predicted, off, of_ritz, off_ritz],
                # Eigenvalues of H have no terms of G.
                "shares": [
                    "–" if matrix == "Residual" else percent(share / value) for share in structure.outlier_shares[i]
                ],
                "spans": [
                    "–" if np.isnan(part) else percent(part)
                    for part in (structure.outlier_in_class[i], structure.outlier_in_means[i])
                ],
            }
        )
    return rows


def structure_csv(items: Sequence[Explained]) -> str:
    """Return a row for each attributed eigenvalue of each class structure, to all digits."""
    header = ["run", "split", "checkpoint", "epoch", "matrix", "eigenvalue", "error_bound", *SHARES]

    def rows() -> Iterable[list[object]]:
        for item in items:
            structure = item.structure
            where = [item.run, item.split, item.checkpoint, None if item.epoch is None else f"{item.epoch:g}"]
            for i, matrix in enumerate(structure.outlier_matrix.tolist()):
                numbers = [
                    structure.outliers[i],
                    structure.outlier_bounds[i],
                    *structure.outlier_shares[i],
                    structure.outlier_in_class[i],
                    structure.outlier_in_means[i],
                ]
                yield [*where, matrix, *map(float, numbers), item.path.as_posix()]

    return csv_text([*header, "in_class_means", "in_all_means", "file"], rows())
