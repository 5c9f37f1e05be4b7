"""Data for the figures of the page's script: plain dictionaries, with as few numbers as possible."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_hex, to_rgb

from hesspec.backend.number_text import exponent_text, three_digits, with_bound
from hesspec.matrices import MATRICES
from hesspec.plot import (
    FILL,
    OKABE_ITO,
    bulk_on_logarithmic_axis,
    darkened,
    epochs_of,
    law_text,
    rate_changes,
    tail_verdict,
)
from hesspec.plot.style import MARKERS
from hesspec.report.member import Member
from hesspec.spectra.marchenko_pastur import law_of_gauss_newton
from hesspec.spectra.spectrum import Spectrum
from hesspec.spectra.study_names import SPLITS
from hesspec.spectra.tails import TailFit

__all__ = [
    "PlotlyLook",
    "matrix_places",
    "page_looks",
    "plain",
    "spectrum_data",
    "thinned",
    "training_figure",
    "training_looks",
]

Array = npt.NDArray[np.float64]
Json = dict[str, Any]

# Plotly's names of the markers of all figures, and letters that look like them.
SYMBOLS = {
    "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross", "X": "x",
    "p": "pentagon", "*": "star",
}  # fmt: skip
MARKS = dict(zip(SYMBOLS, "●■▲◆▼✚✖⬟★", strict=True))
# Rows: the first split (train) and the second (test); columns: the matrices, in the order of `MATRICES`.
DASHES = (("solid", "dash", "dot", "dashdot"), ("longdash", "5px,2px", "2px,3px", "longdashdot"))
THEMES = ("light", "dark")
# Shares of white in the colours of the second split, and in those of lines and of points on a dark page.
TINT, LINE_ON_DARK, POINT_ON_DARK, FILL_ON_DARK = 0.45, 0.25, 0.55, 0.3
EPOCH_METRICS = (
    ("train_loss", "train", 0, "loss"),
    ("test_loss", "test", 1, "loss"),
    ("train_error", "train", 0, "error"),
    ("test_error", "test", 1, "error"),
)
# A curve is drawn with the fewest points for this accuracy of log10 of the density, less than a pixel; but at least as
# many as hovering needs, and at most as many as the page of a study can hold.
CURVE_TOLERANCE = 0.01
CURVE_FEWEST, CURVE_POINTS = 48, 240


def plain(name: str) -> str:
    """Escape a name so that Plotly shows it literally: it would interpret HTML tags and `%{...}`."""
    return html.escape(name, quote=False).replace("%{", "&#37;{")


@dataclass(frozen=True)
class PlotlyLook:
    """Appearance of one matrix on one split: colour, symbol and dashes.

    Parameters
    ----------
    matrix : int
        Place of the matrix, from `matrix_places`.
    split : int
        Index among the splits of the report.
    theme : {"light", "dark"}
        Whether the page is light or dark.
    """

    matrix: int
    split: int
    theme: str = "light"

    @property
    def _colour(self) -> str:
        return _with_white(OKABE_ITO[self.matrix % len(OKABE_ITO)], TINT if self.split else 0)

    @property
    def light(self) -> str:
        """Colour of lines and, transparent, of areas."""
        return self._colour if self.theme == "light" else _with_white(self._colour, LINE_ON_DARK)

    @property
    def dark(self) -> str:
        """Colour of outliers: darker than lines, or lighter on a dark page."""
        if self.theme == "light":
            return to_hex(darkened(self._colour))
        return _with_white(self._colour, POINT_ON_DARK)

    @property
    def area(self) -> str:
        """Colour of the bulk."""
        red, green, blue = (round(255 * channel) for channel in to_rgb(self.light))
        return f"rgba({red},{green},{blue},{FILL if self.theme == 'light' else FILL_ON_DARK})"

    @property
    def symbol(self) -> str:
        """Plotly's name for the marker: that of the matrix, with a dot on the second split."""
        return SYMBOLS[MARKERS[self.matrix % len(MARKERS)]] + ("-dot" if self.split else "")

    @property
    def mark(self) -> str:
        """Letter that looks like the marker."""
        return MARKS[MARKERS[self.matrix % len(MARKERS)]]

    @property
    def size(self) -> float:
        """Diameter of outliers, in px: larger for the first matrix, so that others are visible inside them."""
        return 12.0 if self.matrix == self.split == 0 else 7.0

    @property
    def line(self) -> Json:
        """Line of the bulk."""
        row = DASHES[min(self.split, 1)]
        return {"color": self.light, "dash": row[self.matrix % len(row)], "width": 1.8}

    def to_json(self) -> Json:
        """All properties by name."""
        return {
            "dark": self.dark,
            "light": self.light,
            "area": self.area,
            "symbol": self.symbol,
            "size": self.size,
            "line": self.line,
        }


def _with_white(colour: str, share: float) -> str:
    red, green, blue = (channel + share * (1 - channel) for channel in to_rgb(colour))
    return to_hex((red, green, blue))


def matrix_places(names: Sequence[str]) -> list[int]:
    """Return the places of matrices among all that have a colour: the same for a matrix on every page."""
    known = [matrix.symbol for matrix in MATRICES.values()]
    others = [name for name in names if name not in known]
    return [known.index(name) if name in known else len(known) + others.index(name) for name in names]


def page_looks(matrices: Sequence[str], splits: Sequence[str]) -> Json:
    """Return the looks of matrices by split, and the colours of runs, on light and on dark pages."""
    places = matrix_places(matrices)
    return {
        theme: {
            "matrices": [
                [PlotlyLook(place, split, theme).to_json() for split in range(len(splits))] for place in places
            ],
            "runs": [PlotlyLook(place, 0, theme).to_json() for place in range(len(OKABE_ITO))],
        }
        for theme in THEMES
    }


def training_looks() -> Json:
    """Return the colours of training and test curves on light and on dark pages."""
    return {theme: {split: PlotlyLook(place, 0, theme).light for place, split in enumerate(SPLITS)} for theme in THEMES}


def spectrum_data(member: Member, tracks: npt.NDArray[np.int64] | None) -> Json:
    """Return the data of one spectrum for the page's script.

    Parameters
    ----------
    member : Member
    tracks : int array (outliers,) or None
        Track numbers of the outliers during training; None if they cannot be tracked.

    Returns
    -------
    dict
        `linear` and `log`: abscissae and densities of the bulk on the axis of lambda and of |lambda|; `peak`: highest
        density on each; `extent`, `bulk` and `log_extent`: ends of the axes for the whole spectrum, for its bulk and
        for |lambda|; `edges`: of the bulk; `floor`: 1/p; `values`, `bounds`, `texts`, `heights`: of the resolved
        eigenvalues, outliers (`count` of them, `ranks` and `labels`) among them; `tail`: line of the power law;
        `law`: density of the Marchenko-Pastur law of G.
    """
    spectrum = member.spectrum
    density = spectrum.density()
    floor = 1 / spectrum.dimension
    x, y = density["eigenvalue"].to_numpy(), density["density"].to_numpy()
    seen = y > floor * 1e-3  # far below one eigenvalue: outside every figure
    magnitude, per_decade = bulk_on_logarithmic_axis(spectrum)
    visible = per_decade > floor * 1e-3
    mask = spectrum.is_outlier
    values = spectrum.eigenvalues
    signed = [*x[seen].tolist(), *values.tolist()] or [-1.0, 1.0]
    sizes = [size for size in (*magnitude[visible], *np.abs(values)) if size > 0] or [1.0]
    same = bool((spectrum.eigenvalue_weights == floor).all())
    return {
        "run": member.run,
        "n": member.samples,
        "matrix": member.matrix,
        "split": member.split,
        "checkpoint": member.checkpoint,
        "epoch": member.epoch,
        "linear": [_short(part) for part in thinned(x[seen], y[seen])],
        "log": [_short(part) for part in thinned(magnitude[visible], per_decade[visible])],
        "peak": {"linear": _peak(y), "log": _peak(per_decade)},
        "extent": [min(signed), max(signed)],
        "bulk": [float(x[seen].min()), float(x[seen].max())] if seen.any() else [min(signed), max(signed)],
        "log_extent": [float(np.log10(min(sizes))), float(np.log10(max(sizes)))],
        "edges": [_finite(edge) for edge in spectrum.bulk_edges],
        "floor": floor,
        "values": [float(f"{value:.9g}") for value in values],
        "bounds": [float(f"{bound:.3g}") if np.isfinite(bound) else None for bound in spectrum.error_bounds],
        "texts": [with_bound(float(v), float(e)) for v, e in zip(values, spectrum.error_bounds, strict=True)],
        "heights": None if same else spectrum.eigenvalue_weights.tolist(),
        "count": int(mask.sum()),
        "ranks": [int(rank) if outlier else 0 for rank, outlier in zip(np.cumsum(mask), mask, strict=True)],
        "labels": [three_digits(float(value)) for value in values[mask]],
        "tracks": None if tracks is None else tracks.tolist(),
        "tail": _tail(member.tail),
        "law": _law(spectrum),
    }


def thinned(x: Array, y: Array) -> tuple[Array, Array]:
    """Select points of a positive curve from which log10 y at the others is known within `CURVE_TOLERANCE`.

    Parameters
    ----------
    x, y : array (n,)
        x ascending.

    Returns
    -------
    x, y : array (m,)
        Selected points, about `CURVE_POINTS` at most.
    """
    if x.size <= CURVE_FEWEST:
        return x, y
    logs = np.log10(y)
    kept = np.unique(np.linspace(0, x.size - 1, CURVE_FEWEST).round().astype(int))
    while kept.size < CURVE_POINTS:
        error = np.abs(np.interp(x, x[kept], logs[kept]) - logs)
        # The worst point of every interval, for all intervals at once.
        ends = np.append(kept[1:-1], x.size)
        worst = [start + int(error[start:end].argmax()) for start, end in zip(kept[:-1], ends, strict=True)]
        worst = [place for place in worst if error[place] > CURVE_TOLERANCE]
        more = np.union1d(kept, worst)
        # No points are left, or they are so close together that interpolation between them is inaccurate.
        if more.size == kept.size:
            break
        kept = more
    return x[kept], y[kept]


def _tail(tail: TailFit | None) -> Json | None:
    """Line of the power law of the tail on the axis of |lambda|, if it is resolved."""
    if tail is None or not tail.resolved:
        return None
    ends = np.geomspace(tail.start, tail.top * (1 - 1e-12), 12)
    return {
        "x": _short(ends),
        "y": _short(tail.density(ends) * ends * np.log(10)),
        "exponent": exponent_text(tail.exponent, tail.lower, tail.upper),
        "verdict": tail_verdict(tail),
        "fits": tail.is_power_law,
    }


def _law(spectrum: Spectrum) -> Json | None:
    """Marchenko-Pastur law of G for rows of noise, and how far the bulk extends beyond it."""
    law = law_of_gauss_newton(spectrum)
    if law is None:
        return None
    x, y = law.per_decade()
    return {"x": _short(x), "y": _short(y), "text": law_text(law)}


def _peak(density: Array) -> float | None:
    return float(density.max()) if density.size and density.max() > 0 else None


def training_figure(records: Sequence[dict[str, float | None]]) -> Json:
    """Return traces of loss and error against epoch, and the epochs at which the learning rate changes."""
    x = epochs_of(records)
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
                "y": [None if value is None else float(f"{value:.6g}") for value in values],
                "xaxis": "x" if panel == "loss" else "x2",
                "yaxis": "y" if panel == "loss" else "y2",
                "line": {"color": OKABE_ITO[place], "dash": DASHES[0][place], "width": 1.8},
                "marker": {"symbol": PlotlyLook(place, 0).symbol, "size": 6},
                "hovertemplate": f"{split} {panel}, epoch %{{x}}: "
                + ("%{y:.4g}" if panel == "loss" else "%{y:.2%}")
                + "<extra></extra>",
            }
        )
    changes = [{"x": epoch, "text": f"{rate:.3g}"} for epoch, rate in rate_changes(records)]
    return {"traces": traces, "rates": changes}


def _short(values: Array) -> list[float]:
    """Round to five digits, which is finer than a pixel and keeps the file small."""
    return [float(f"{value:.5g}") for value in values]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
