"""Common style of all figures: colours, markers, sizes, number formats, and label placement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

if TYPE_CHECKING:
    from collections.abc import Collection

    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from hesspec.spectra.marchenko_pastur import MarchenkoPasturFit
    from hesspec.spectra.spectrum import Spectrum
    from hesspec.spectra.tails import TailFit

__all__ = [
    "FILL",
    "OKABE_ITO",
    "STYLE",
    "bulk_on_logarithmic_axis",
    "darkened",
    "label_few_decades",
    "law_text",
    "spread",
    "tail_verdict",
]

# Axes of more decades are labelled with powers of ten only.
FEW_DECADES = 2.5

Array = npt.NDArray[np.float64]

# Okabe-Ito palette without yellow, which is too light for lines on white.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (3, 1.5)),
    (0, (8, 3)),
    (0, (1, 3)),
)

FILL = 0.16  # opacity of the bulk, on which points must be visible

LABEL_PITCH = 12.0  # points between neighbouring labels, a line of 9 pt text set upright
LABEL_REACH = 40.0  # points; largest distance of a label from its eigenvalue

STYLE: dict[Any, Any] = {
    "font.size": 11.0,
    "axes.labelsize": 11.0,
    "axes.titlesize": 12.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.linewidth": 0.8,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.fontsize": 11.0,
    "legend.frameon": False,
    "figure.titlesize": 14.0,
}


class Look(NamedTuple):
    """Appearance of one spectrum in an overlay: colour, marker and dashes."""

    light: str
    dark: tuple[float, float, float]
    marker: str
    dashes: Any
    size: float  # of markers, in points

    @classmethod
    def of(cls, index: int) -> Look:
        colour = OKABE_ITO[index % len(OKABE_ITO)]
        # Later spectra get smaller markers, so that coinciding eigenvalues are both visible.
        return cls(
            colour,
            darkened(colour),
            MARKERS[index % len(MARKERS)],
            DASHES[index % len(DASHES)],
            (9.0, 5.5, 4.5)[min(index, 2)],
        )


def darkened(colour: str) -> tuple[float, float, float]:
    """Return the colour of points on an area: the same hue at 60% brightness."""
    red, green, blue = (0.6 * channel for channel in to_rgb(colour))
    return red, green, blue


def spread(targets: Array, pitch: float, low: float, high: float) -> Array:
    """Return positions at least `pitch` apart in [low, high] that are nearest to the targets in least squares.

    Parameters
    ----------
    targets : array (n,)
        Preferred positions of the labels, ascending.
    pitch, low, high : float
        Smallest distance and limits, in the units of the targets; n labels must fit, (n - 1) pitch <= high - low.

    Returns
    -------
    array (n,)
        Positions, ascending.

    Notes
    -----
    With u_i = x_i - i pitch the constraint is that u ascends: isotonic regression, solved by pooling adjacent
    violators.
    """
    pools: list[tuple[float, int]] = []
    for index, target in enumerate(targets):
        mean, count = float(target) - index * pitch, 1
        while pools and pools[-1][0] >= mean:
            earlier, size = pools.pop()
            mean, count = (earlier * size + mean * count) / (size + count), size + count
        pools.append((mean, count))
    level: Array = np.repeat([mean for mean, _ in pools], [count for _, count in pools])
    level = np.clip(level, low, high - (len(targets) - 1) * pitch)
    return np.asarray(level + pitch * np.arange(len(targets)))


def bulk_on_logarithmic_axis(spectrum: Spectrum) -> tuple[Array, Array]:
    """Return |lambda|, shape (n,), and the density of its decimal logarithm, for both signs together."""
    density = spectrum.log_density()
    return 10 ** density["log10_magnitude"].to_numpy(), density["density"].to_numpy()


def tail_verdict(tail: TailFit) -> str:
    """Describe briefly whether a fitted tail is a power law, and if not, why."""
    if tail.is_power_law:
        return "a power law fits"
    return "it bends" if tail.better_than_exponential else "exponential not ruled out"


def law_text(law: MarchenkoPasturFit) -> str:
    """Describe briefly how far a bulk extends beyond the Marchenko-Pastur law."""
    return f"the bulk reaches {law.edge_ratio:.2g} times as far, with {law.trace_beyond:.0%} of its trace beyond"


def label_few_decades(*axes: Axis) -> None:
    """Label 1, 2 and 5 of every decade of logarithmic axes with at most `FEW_DECADES` decades."""
    for axis in axes:
        low, high = axis.get_view_interval()
        if 0 < high < low * 10**FEW_DECADES:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def check_not_empty(spectra: Collection[object]) -> None:
    """Raise ValueError if there is nothing to draw."""
    if not spectra:
        raise ValueError("There are no spectra to plot: the mapping is empty. Pass {label: spectrum}.")


def settle(figure: Figure) -> None:
    """Lay out the figure, which determines the length of axes in points."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
