"""Matplotlib figure of a class structure, and the map of the means that it shares with the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from hesspec.applications.class_structure.record import ALL_MEANS, CLASS_MEANS, NOTHING, SHARES, ClassStructure
from hesspec.backend.extras import require
from hesspec.matrices import CURVATURE
from hesspec.plot import FILL, OKABE_ITO, bulk_on_logarithmic_axis, darkened
from hesspec.plot.figure import new_figure, styled
from hesspec.plot.ticks import number_ticks
from hesspec.spectra.spectrum import Spectrum

__all__ = ["COMPONENTS", "TERMS", "class_colours", "drawn_means", "map_of_means", "plot_structure"]

Array = npt.NDArray[np.float64]

# Matrices have the same colour in all figures, see `hesspec.plot.style.looks_of`.
HESS, G, CLASS, CROSS, WITHIN, SAME = (OKABE_ITO[index] for index in (0, 1, 3, 4, 5, 6))

COMPONENTS = (
    ("class", "G_class", CLASS, "D"),
    ("cross", "G_cross", CROSS, "v"),
    ("same", "G_same", SAME, "X"),
)
"""Parts whose eigenvalues are drawn: name, label, colour and marker."""

TERMS = dict(zip(SHARES, (CLASS, CROSS, WITHIN, SAME, OKABE_ITO[2]), strict=True))
"""Colours of the terms of an eigenvalue."""

TERM_LABELS = ("$G_{class}$", "$G_{cross}$", "$G_{within}$", "$G_{same}$", "$H$")

# Smallest number of means for t-SNE, which needs neighbours.
FEWEST_MEANS = 4
# With more means, only the class means are drawn: t-SNE of the cross-class means takes 2 s for 30 classes, 8 s for 50.
MOST_MEANS = 1_000
# Usual perplexity of t-SNE, and the number of points that it needs as a multiple of it.
PERPLEXITY, POINTS_PER_PERPLEXITY = 30.0, 3.0


def map_of_means(structure: ClassStructure) -> Array | None:
    """Embed the means in the plane, (K, 2), by t-SNE of the distances between them; None for fewer than 4 means.

    t-SNE preserves neighbourhoods, not distances, and has no unit (van der Maaten and Hinton 2008).
    """
    count = len(structure.gram)
    if count < FEWEST_MEANS:
        return None
    distances = structure.distances()
    largest = distances.max()
    if not largest > 0:
        return None
    perplexity = min(PERPLEXITY, (count - 1) / POINTS_PER_PERPLEXITY)
    require("The map of class means", "hesspec[report]", "sklearn")
    from sklearn.manifold import TSNE  # noqa: PLC0415 - slow to import, and of an extra

    embedding = TSNE(metric="precomputed", init="random", random_state=0, perplexity=perplexity, n_jobs=1)
    return np.asarray(embedding.fit_transform(distances / largest), dtype=float)


def drawn_means(structure: ClassStructure) -> ClassStructure:
    """Return the structure with the means that are drawn: only the class means if there are too many."""
    if len(structure.gram) <= MOST_MEANS:
        return structure
    kept = structure.gram_other < 0
    return replace(
        structure,
        gram=structure.gram[np.ix_(kept, kept)],
        gram_true=structure.gram_true[kept],
        gram_other=structure.gram_other[kept],
    )


def class_colours(count: int) -> list[tuple[float, float, float]]:
    """Colours (count,) of classes: the palette, then darker shades of it, repeated; labels distinguish the rest."""
    colours = [*(mpl.colors.to_rgb(colour) for colour in OKABE_ITO[:6]), *map(darkened, OKABE_ITO[:6])]
    return [colours[i % len(colours)] for i in range(count)]


def plot_structure(structure: ClassStructure, spectrum: Spectrum | None = None, *, title: str | None = None) -> Figure:
    """Plot a class structure, with a panel for each quantity that was measured.

    The panels are: eigenvalues of G's components below the spectrum of G; largest eigenvalues of Hess against those
    that the means predict; the terms of these eigenvalues; outliers of Hess with the means projected out; the map of
    the means.

    Parameters
    ----------
    structure : ClassStructure
        Measured class structure.
    spectrum : Spectrum, optional
        Spectrum of G at the same point, on the same data.
    title : str, optional
        Title above all panels.

    Returns
    -------
    matplotlib.figure.Figure
        Figure with up to three panels in a row, at least 5 by 4.4 inches each.

    Raises
    ------
    ValueError
        If the structure has nothing to plot.
    """
    panels: list[Callable[[Axes], None]] = []
    if any(getattr(structure, f"{part}_eigenvalues").size for part, *_ in COMPONENTS):
        panels.append(lambda axes: _components(axes, structure, spectrum))
    hessian = structure.outlier_matrix == "Hessian"
    if (structure.outliers[hessian] > 0).any():
        panels.append(lambda axes: _predictions(axes, structure))
    if hessian.any():
        panels.append(lambda axes: _shares(axes, structure))
    if structure.knockout_edges.size:
        panels.append(lambda axes: _knockout(axes, structure))
    shown = drawn_means(structure)
    places = map_of_means(shown)
    if places is not None:
        panels.append(lambda axes: _map(axes, shown, places))
    if not panels:
        raise ValueError("There is nothing to plot: the structure has no eigenvalues of parts of G or of the Hessian.")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with styled():
        figure = new_figure(5 * columns, 4.4 * rows)
        # Panels of the last row share its width, so that none is empty: a row of 6 has 1, 2 or 3 of them.
        grid = figure.add_gridspec(rows, 6)
        for row in range(rows):
            mine = panels[row * columns : (row + 1) * columns]
            wide = 6 // len(mine)
            for number, draw in enumerate(mine):
                draw(figure.add_subplot(grid[row, number * wide : (number + 1) * wide]))
        if title:
            figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return figure


def _components(axes: Axes, structure: ClassStructure, spectrum: Spectrum | None) -> None:
    drawn = [
        (label, colour, marker, getattr(structure, f"{part}_eigenvalues")) for part, label, colour, marker in COMPONENTS
    ]
    drawn = [item for item in drawn if item[3].size]
    if spectrum is not None:
        x, y = bulk_on_logarithmic_axis(spectrum)
        seen = y > 0
        axes.fill_between(x[seen], y[seen], color=G, alpha=FILL, linewidth=0)
        axes.plot(x[seen], y[seen], color=G, linewidth=1.4, label="bulk of $G$")
        top = spectrum.eigenvalues[spectrum.eigenvalues > 0]
        axes.plot(
            top, np.full(top.size, 1 / spectrum.dimension), "s", color=darkened(G), markersize=5,
            markeredgecolor="white", markeredgewidth=0.4, label="eigenvalues of $G$",
        )  # fmt: skip
        axes.set_yscale("log")
        number_ticks(axes.yaxis)
        # Rows for the components, below the height of one eigenvalue.
        heights = [1 / spectrum.dimension / 6 ** (row + 1) for row in range(len(drawn))]
        axes.set_ylim(heights[-1] / 3, 3 * max(y.max(initial=0), 10 / spectrum.dimension))
        axes.set_ylabel("share of eigenvalues per decade; points of $G$: 1/p")
        largest = max(spectrum.norm, *(values[0] for *_, values in drawn))
        smallest = min(values[-1] for *_, values in drawn)
        axes.set_xlim(smallest / 10, largest * 3)
    else:
        heights = [float(len(drawn) - row) for row in range(len(drawn))]
        axes.set_ylim(0.4, len(drawn) + 0.6)
        axes.set_yticks(heights, [_mathematical(label) for label, *_ in drawn])
    for height, (label, colour, marker, values) in zip(heights, drawn, strict=True):
        axes.plot(
            values, np.full(values.size, height), marker, color=colour, markersize=5, alpha=0.8,
            markeredgecolor="white", markeredgewidth=0.4, label=_mathematical(label),
        )  # fmt: skip
    axes.set(xscale="log", xlabel=f"eigenvalue λ  ({CURVATURE})", title="components of $G$")
    number_ticks(axes.xaxis)
    if spectrum is not None:
        # Placed above the panel, as any corner inside it may contain a curve or a row of points.
        axes.legend(
            fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=5, borderaxespad=0.2, columnspacing=0.8,
            handlelength=1.0, handletextpad=0.4,
        )  # fmt: skip
        axes.set_title(axes.get_title(loc="left"), pad=22)


def _predictions(axes: Axes, structure: ClassStructure) -> None:
    every: list[Array] = []
    for part, label, colour, marker in (
        ("class", "$G_{class}$", CLASS, "D"),
        ("sum", "$G_{class} + G_{cross} + G_{same}$", "#5A626B", "o"),
        ("ritz", "$G$ in the span of the $g_c$", G, "s"),
    ):
        measured, predicted, error = structure.predicted("Hessian", part=part)  # type: ignore[arg-type]
        if not measured.size:
            continue
        every += [measured, predicted]
        bounds = structure.outlier_bounds[(structure.outlier_matrix == "Hessian") & (structure.outliers > 0)]
        axes.errorbar(
            predicted, measured, yerr=bounds[: measured.size], fmt=marker, color=colour, markersize=6,
            markeredgecolor="white", markeredgewidth=0.5, capsize=2,
            label=f"{label}, off by {100 * np.median(error):.0f}% (median)",
        )  # fmt: skip
    low, high = min(v.min() for v in every) / 1.5, max(v.max() for v in every) * 2.5
    axes.plot([low, high], [low, high], color="#888888", linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.set(
        xscale="log", yscale="log", xlim=(low, high), ylim=(low, high),
        xlabel="eigenvalue predicted by the means", ylabel="eigenvalue of Hess",
        title="largest eigenvalues, predicted and measured",
    )  # fmt: skip
    number_ticks(axes.xaxis, axes.yaxis)
    # Parts of G are at most as large as G, so that points lie above the diagonal or close to it.
    axes.legend(fontsize=9, loc="lower right")


def _shares(axes: Axes, structure: ClassStructure) -> None:
    mine = structure.outlier_matrix == "Hessian"
    shares = structure.outlier_shares[mine] / structure.outliers[mine][:, None]
    ranks = np.arange(1, len(shares) + 1)
    up, down = np.zeros(len(shares)), np.zeros(len(shares))
    for i, (term, label) in enumerate(zip(SHARES, TERM_LABELS, strict=True)):
        part = shares[:, i]
        bottom = np.where(part >= 0, up, down)
        axes.bar(
            ranks, part, bottom=bottom, color=TERMS[term], width=0.8, edgecolor="white", linewidth=0.4, label=label
        )
        up, down = up + np.clip(part, 0, None), down + np.clip(part, None, 0)
    axes.axhline(0, color="#444444", linewidth=0.8)
    axes.set(
        xlabel="eigenvalue of Hess, by size", ylabel="share of the eigenvalue", title="terms of the largest eigenvalues"
    )
    axes.set_ylim(min(-0.02, 1.1 * down.min()), max(1.02, 1.02 * up.max()) + 0.2)
    # Above what the bars reach is the legend.
    axes.set_yticks([tick for tick in axes.get_yticks() if down.min() - 0.01 <= tick <= max(1.0, up.max()) + 0.01])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xticks(ranks if len(ranks) <= 12 else ranks[:: -(-len(ranks) // 12)])
    axes.legend(fontsize=9, ncols=5, loc="upper center", columnspacing=0.8, handlelength=1.0, handletextpad=0.4)


def _knockout(axes: Axes, structure: ClassStructure) -> None:
    names = [NOTHING, CLASS_MEANS, ALL_MEANS][: len(structure.knockout_edges)]
    sizes = np.abs(structure.knockout_eigenvalues)
    # NaN if every eigenvalue is an outlier, 0 if nothing is left: there is no bulk to draw.
    edges = np.nan_to_num(np.abs(structure.knockout_edges).max(axis=1))
    seen = [size for size in (*edges, *sizes) if size > 0] or [1.0]
    low = min(seen) / 3
    for row, (name, edge) in enumerate(zip(names, edges, strict=True)):
        height = len(names) - row
        axes.fill_between([low, max(low, edge)], height - 0.3, height + 0.3, color="#BBBBBB", alpha=0.6, linewidth=0)
        left = sizes[structure.knockout_removed == name]
        axes.plot(left, np.full(left.size, height), "o", color=darkened(HESS), markersize=6, markeredgecolor="white")
        text = f"{left.size or 'no'} outlier{'' if left.size == 1 else 's'}"
        axes.annotate(text, (1, height + 0.34), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9)
    labels = {NOTHING: "nothing", CLASS_MEANS: "class\nmeans", ALL_MEANS: "class and\ncross-class\nmeans"}
    axes.set_yticks(range(len(names), 0, -1), [labels[name] for name in names])
    axes.set(
        xscale="log", xlim=(low, max(seen) * 2), ylim=(0.4, len(names) + 0.75),
        xlabel="|λ| of Hess; grey: up to the bulk's edge", ylabel="projected out", title="outliers without the means",
    )  # fmt: skip
    number_ticks(axes.xaxis)


def _map(axes: Axes, structure: ClassStructure, places: Array) -> None:
    colours = class_colours(structure.classes)
    centre = structure.gram_other < 0
    same = structure.gram_other == structure.gram_true
    for c in range(structure.classes):
        mine = structure.gram_true == c
        axes.plot(*places[mine & ~centre & ~same].T, "o", color=colours[c], markersize=4, alpha=0.7)
        axes.plot(*places[mine & same].T, "x", color=colours[c], markersize=5)
    # Texts do not affect axis limits, so class means outside the range of the dots would be lost.
    axes.update_datalim(places)
    axes.autoscale_view()
    for (x, y), c in zip(places[centre], structure.gram_true[centre], strict=True):
        box = {"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": colours[c], "linewidth": 1.6}
        axes.text(x, y, str(c), fontsize=9, ha="center", va="center", bbox=box, zorder=4)
    axes.margins(0.12)
    axes.set(xticks=[], yticks=[], title="map of the means (t-SNE, no unit)")
    words = ["numbers: class means $g_c$"]
    words += ["dots: $g_{c,c'}$"] if (~centre & ~same).any() else []
    words += ["crosses: $g_{c,c}$"] if same.any() else []
    axes.set_xlabel("; ".join(words))


def _mathematical(label: str) -> str:
    name, _, index = label.partition("_")
    return f"${name}_{{{index}}}$"
