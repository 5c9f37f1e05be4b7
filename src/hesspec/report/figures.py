"""Plotly traces of the report: plain dictionaries, of which the page's script draws those that are asked for."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_hex, to_rgb

from hesspec.plot import FILL, bulk_on_logarithmic_axis, darkened, three_digits
from hesspec.report.collection import Member
from hesspec.report.rounding import with_bound

__all__ = ["Look", "dynamics", "plain", "spectrum_figure", "training_figure"]

Array = npt.NDArray[np.float64]
Json = dict[str, Any]

# Rows: the first split (train) and the second (test); columns: Hess, G, H and any other. Okabe and Ito's colours.
COLOURS = (("#0072B2", "#D55E00", "#009E73", "#000000"), ("#56B4E9", "#E69F00", "#CC79A7", "#7F7F7F"))
SYMBOLS = (("circle", "square", "triangle-up", "pentagon"), ("diamond", "cross", "triangle-down", "hexagon"))
DASHES = (("solid", "dash", "dot", "dashdot"), ("longdash", "5px,2px", "2px,3px", "longdashdot"))
EPOCH_METRICS = (
    ("train_loss", "train", 0, "loss"),
    ("test_loss", "test", 1, "loss"),
    ("train_error", "train", 0, "error"),
    ("test_error", "test", 1, "error"),
)
MAX_RATE_CHANGES = 8


def plain(name: str) -> str:
    """Name as a text that Plotly shows as it is: it would read HTML tags and, as of a template, `%{...}` in it."""
    return html.escape(name, quote=False).replace("%{", "&#37;{")


@dataclass(frozen=True)
class Look:
    """Colour, symbol and dashes of one matrix on one split.

    Parameters
    ----------
    matrix, split : int
        Places among the matrices and the splits of the report.
    """

    matrix: int
    split: int

    def _of(self, table: Sequence[Sequence[str]]) -> str:
        row = table[min(self.split, 1)]
        return row[self.matrix % len(row)]

    @property
    def light(self) -> str:
        """Colour of lines and, transparent, of areas."""
        return self._of(COLOURS)

    @property
    def dark(self) -> str:
        """Colour of outliers."""
        return to_hex(darkened(self.light))

    @property
    def area(self) -> str:
        """Colour of the bulk."""
        red, green, blue = (round(255 * channel) for channel in to_rgb(self.light))
        return f"rgba({red},{green},{blue},{FILL})"

    @property
    def symbol(self) -> str:
        """Plotly's name of the marker."""
        return self._of(SYMBOLS)

    @property
    def size(self) -> float:
        """Diameter of outliers, in px: the first matrix's are larger, so that others are seen inside of them."""
        return 12.0 if self.matrix == self.split == 0 else 7.0

    @property
    def line(self) -> Json:
        """Line of the bulk."""
        return {"color": self.light, "dash": self._of(DASHES), "width": 1.8}


def spectrum_figure(member: Member, look: Look) -> Json:
    """Traces of one spectrum on a linear axis and on the logarithmic axis of |lambda|, and what they extend over.

    Returns
    -------
    dict
        `linear` and `log`: lists of traces; `peak`, highest density on each; `extent`, `bulk` and `log_extent`: ends of
        the axes for the whole spectrum, for its bulk and for |lambda|; `floor`: 1/p; `outliers`: values, labels and
        colour of the labels that the script places.
    """
    spectrum = member.spectrum
    density = spectrum.density()
    floor = 1 / spectrum.dimension
    x, y = density["eigenvalue"].to_numpy(), density["density"].to_numpy()
    seen = y > floor * 1e-3  # far below one eigenvalue: outside of every picture
    magnitude, per_decade = bulk_on_logarithmic_axis(spectrum)
    visible = per_decade > floor * 1e-3
    unit = "per unit of λ"
    outliers = spectrum.outliers
    signed = [*x[seen].tolist(), *spectrum.eigenvalues.tolist()] or [-1.0, 1.0]
    sizes = [size for size in (*magnitude[visible], *np.abs(spectrum.eigenvalues)) if size > 0] or [1.0]
    return {
        "linear": [
            _bulk(member, look, x[seen], y[seen], unit),
            *_points(member, look, spectrum.eigenvalues),
        ],
        "log": [
            _bulk(member, look, magnitude[visible], per_decade[visible], "per decade"),
            *_points(member, look, np.abs(spectrum.eigenvalues)),
        ],
        "peak": {"linear": _peak(y), "log": _peak(per_decade)},
        "extent": [min(signed), max(signed)],
        "bulk": [float(x[seen].min()), float(x[seen].max())] if seen.any() else [min(signed), max(signed)],
        "log_extent": [float(np.log10(min(sizes))), float(np.log10(max(sizes)))],
        "floor": floor,
        "outliers": [
            {"x": float(value), "y": float(height), "text": three_digits(float(value)), "colour": look.dark}
            for value, height in zip(outliers, spectrum.eigenvalue_weights[spectrum.is_outlier], strict=True)
        ],
    }


def _peak(density: Array) -> float | None:
    return float(density.max()) if density.size and density.max() > 0 else None


def _bulk(member: Member, look: Look, x: Array, y: Array, unit: str) -> Json:
    name = plain(", ".join(part for part in (member.matrix, member.split) if part))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "legendgroup": f"{member.matrix}/{member.split}",
        "x": _short(x),
        "y": _short(y),
        "fill": "tozeroy",
        "fillcolor": look.area,
        "line": look.line,
        "meta": [f"bulk of {plain(member.title)}"],
        "hovertemplate": f"%{{meta[0]}}<br>λ = %{{x:.3g}}<br>share of eigenvalues {unit}: %{{y:.3g}}<extra></extra>",
    }


def _points(member: Member, look: Look, positions: Array) -> list[Json]:
    spectrum = member.spectrum
    outlier = spectrum.is_outlier
    texts = [_hover(member, index) for index in range(positions.size)]
    negative = spectrum.eigenvalues < 0

    def trace(chosen: npt.NDArray[np.bool_], **style: Any) -> Json:
        where = np.flatnonzero(chosen & (positions != 0))
        open_symbol = (positions > 0) & negative
        return {
            "type": "scatter",
            "mode": "markers",
            "legendgroup": f"{member.matrix}/{member.split}",
            "x": [float(positions[index]) for index in where],
            "y": spectrum.eigenvalue_weights[where].tolist(),
            "hoverinfo": "text",
            "hovertext": [texts[index] for index in where],
            **style,
            "marker": {
                "symbol": [look.symbol + ("-open" if open_symbol[index] else "") for index in where],
                "line": {"color": [look.dark if open_symbol[index] else "#ffffff" for index in where], "width": 1},
                **style["marker"],
            },
        }

    count = int(outlier.sum())
    resolved = trace(
        ~outlier,
        name="resolved eigenvalue in the bulk",
        showlegend=False,
        marker={"size": 5, "color": look.light, "line": {"width": 0}},
    )
    outliers = trace(
        outlier,
        name=f"{count} outlier{'' if count == 1 else 's'}",
        showlegend=count > 0,
        error_x={
            "type": "data",
            "array": [float(bound) for bound in spectrum.error_bounds[outlier & (positions != 0)]],
            "color": look.dark,
            "thickness": 1.4,
            "width": 4,
        },
        marker={"size": look.size, "color": look.dark},
    )
    return [resolved, outliers]


def _hover(member: Member, index: int) -> str:
    spectrum = member.spectrum
    value, bound = with_bound(float(spectrum.eigenvalues[index]), float(spectrum.error_bounds[index]))
    if spectrum.is_outlier[index]:
        rank = int(spectrum.is_outlier[: index + 1].sum())
        kind = f"outlier {rank} of {spectrum.outliers.size}"
    else:
        kind = "resolved, in the bulk"
    where = [
        f"matrix: {plain(member.matrix)}",
        *([f"split: {plain(member.split)}"] if member.split else []),
        *([f"checkpoint: {plain(member.checkpoint)}"] if member.checkpoint else []),
        *([plain(member.run)] if member.run else []),
    ]
    return "<br>".join([f"<b>λ = {value}</b>", f"error at most {bound}", kind, *where])


def dynamics(members: Sequence[Member], look: Look) -> Json:
    """Traces of the outliers and the bulk's edges of one matrix and split through the checkpoints of one run.

    Parameters
    ----------
    members : sequence of Member
        In the order of training.
    look : Look
    """
    epochs = [member.epoch for member in members]
    by_epoch = all(epoch is not None for epoch in epochs) and len(set(epochs)) == len(epochs)
    x = epochs if by_epoch else [plain(member.checkpoint) for member in members]
    edges = [member.spectrum.bulk_edges for member in members]
    name = plain(", ".join(part for part in (members[0].matrix, members[0].split) if part))
    group = f"{members[0].matrix}/{members[0].split}"
    line = {"legendgroup": group, "type": "scatter", "mode": "lines", "line": look.line, "hoverinfo": "text", "x": x}
    low, high = ([_finite(pair[side]) for pair in edges] for side in (0, 1))
    reach = [_finite(max(abs(pair[0]), abs(pair[1]))) for pair in edges]

    def described(side: str, values: Sequence[float | None]) -> list[str]:
        return [
            f"{side} of {plain(member.title)}: {three_digits(value) if value is not None else 'none'}"
            for member, value in zip(members, values, strict=True)
        ]

    return {
        "x_axis": "epoch" if by_epoch else "checkpoint",
        "linear": [
            {**line, "y": low, "hovertext": described("lower bulk edge", low), "showlegend": False},
            {
                **line,
                "y": high,
                "name": f"bulk of {name}",
                "hovertext": described("upper bulk edge", high),
                "fill": "tonexty",
                "fillcolor": look.area,
            },
            _ranks(members, x, look, name, magnitude=False),
        ],
        "log": [
            {
                **line,
                "y": [value or None for value in reach],
                "name": f"bulk of {name}",
                "hovertext": described("reach of the bulk", reach),
                "fill": "tozeroy",
                "fillcolor": look.area,
            },
            _ranks(members, x, look, name, magnitude=True),
        ],
    }


def _ranks(members: Sequence[Member], x: Sequence[Any], look: Look, name: str, *, magnitude: bool) -> Json:
    """All outliers, those of one rank and sign joined by a line, as one trace with gaps."""
    points: list[tuple[Any, float | None, float | None, str, str]] = []
    for sign in (1, -1):
        chosen = [
            [int(i) for i in np.flatnonzero(m.spectrum.is_outlier & (sign * m.spectrum.eigenvalues > 0))]
            for m in members
        ]
        for rank in range(max(map(len, chosen))):
            for place, member, indices in zip(x, members, chosen, strict=True):
                if rank >= len(indices):
                    points.append((place, None, None, "", look.symbol))
                    continue
                index = indices[rank]
                value = float(member.spectrum.eigenvalues[index])
                bound = float(member.spectrum.error_bounds[index])
                symbol = look.symbol + ("-open" if magnitude and value < 0 else "")
                points.append((place, abs(value) if magnitude else value, bound, _hover(member, index), symbol))
            points.append((x[-1], None, None, "", look.symbol))
    places, values, bounds, texts, symbols = (list(part) for part in zip(*points, strict=True)) if points else [[]] * 5
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": f"outliers of {name}",
        "legendgroup": f"{members[0].matrix}/{members[0].split}",
        "x": places,
        "y": values,
        "connectgaps": False,
        "hoverinfo": "text",
        "hovertext": texts,
        "line": {"color": look.light, "width": 0.8},
        "marker": {
            "symbol": symbols,
            "size": look.size - 1,
            "color": look.dark,
            "line": {"color": [look.dark if "open" in symbol else "#ffffff" for symbol in symbols], "width": 1},
        },
        "error_y": {"type": "data", "array": bounds, "color": look.dark, "thickness": 1.4, "width": 3},
    }


def training_figure(records: Sequence[dict[str, float | None]]) -> Json:
    """Traces of loss and error against epoch, and the epochs at which the learning rate changes."""
    epochs = [record.get("epoch") for record in records]
    x = epochs if all(epoch is not None for epoch in epochs) else list(range(1, len(records) + 1))
    traces: list[Json] = []
    for key, split, place, panel in EPOCH_METRICS:
        values = [record.get(key) for record in records]
        if all(value is None for value in values):
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(records) < 30 else "lines",
                "name": split,
                "legendgroup": split,
                "showlegend": split not in [trace["legendgroup"] for trace in traces],
                "x": x,
                "y": values,
                "xaxis": "x" if panel == "loss" else "x2",
                "yaxis": "y" if panel == "loss" else "y2",
                "line": {"color": COLOURS[0][place], "dash": DASHES[0][place], "width": 1.8},
                "marker": {"symbol": SYMBOLS[0][place], "size": 6},
                "hovertemplate": f"{split} {panel}, epoch %{{x}}: "
                + ("%{y:.4g}" if panel == "loss" else "%{y:.2%}")
                + "<extra></extra>",
            }
        )
    rates = [record.get("learning_rate") for record in records]
    changes = [
        {"x": x[index], "text": f"{after:.3g}"}
        for index, (before, after) in enumerate(itertools.pairwise(rates))
        if before and after and before != after
    ]
    return {"traces": traces, "rates": changes if len(changes) <= MAX_RATE_CHANGES else []}


def _short(values: Array) -> list[float]:
    """Five digits are finer than a pixel, and keep the file small."""
    return [float(f"{value:.5g}") for value in values]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
