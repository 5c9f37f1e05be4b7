"""Common style of all figures: colours, markers, sizes, number formats, and label placement."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_hex, to_rgb

from hesspec.backend.text import printable
from hesspec.matrices import MATRICES, unit_of
from hesspec.spectra.consistency import WHOLE
from hesspec.spectra.scaling import largest_magnitude

if TYPE_CHECKING:
    from collections.abc import Iterable

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
    "law_text",
    "literal",
    "looks_of",
    "spread",
    "tail_verdict",
    "with_unit",
    "without_unit",
]

Array = npt.NDArray[np.float64]

# Largest |eigenvalue| that Matplotlib's axes hold with their margins, ticks and densities, which are its inverse.
DRAWN = (1e-280, 1e280)
# Characters of a name in a figure; that of a parameter in a large network has up to 60.
LONGEST = 64

# Okabe-Ito palette without yellow, which is too light for lines on white, and two colours of Tol's "muted" palette, so
# that every matrix has a colour of its own.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "*")
DASHES = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (3, 1.5)),
    (0, (8, 3)),
    (0, (1, 3)),
    (0, (4, 1, 1, 1, 1, 1)),
    (0, (10, 1.5)),
)

LARGE = 9.0
SIZES = (LARGE, 5.5, 4.5)  # of markers, in points

FILL = 0.16  # opacity of the bulk, on which points must be visible

LABEL_SIZE = 9.0  # points, of the values of outliers
LABEL_PITCH = 12.0  # points between neighbouring labels, a line of this text set upright
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
    """Appearance of one spectrum: colour, marker and dashes, which belong to its matrix."""

    light: str
    dark: tuple[float, float, float]
    marker: str
    dashes: Any
    size: float  # of markers, in points
    line: float = 1.4  # width of curves, in points
    filled: bool = True

    @classmethod
    def of(cls, index: int, *, variant: int = 0, size: float = LARGE, line: float = 1.4) -> Look:
        """Look of the matrix at an index of `MATRICES`; variants are lighter and darker shades of its colour."""
        colour = _shade(OKABE_ITO[index % len(OKABE_ITO)], variant)
        return cls(
            colour,
            darkened(colour),
            MARKERS[index % len(MARKERS)],
            DASHES[(index + variant) % len(DASHES)],
            size,
            line,
            variant % 2 == 0,
        )

    @property
    def face(self) -> Any:
        """Colour inside a dark marker."""
        return self.dark if self.filled else "white"


def _shade(colour: str, variant: int) -> str:
    """Return the colour itself, then one mixed with white, with black, with more white and so on."""
    if not variant:
        return colour
    share = min(0.3 + 0.15 * variant, 0.75)
    towards = 1.0 if variant % 2 else 0.0
    red, green, blue = (channel + share * (towards - channel) for channel in to_rgb(colour))
    return to_hex((red, green, blue))


def looks_of(spectra: Mapping[str, Spectrum], *, scale: float = 1.0) -> list[Look]:
    """Looks of spectra that are drawn over one another.

    A matrix has the same colour and marker in all figures. Further spectra of the same matrix get shades of its colour,
    other dashes and alternately hollow markers; those of no known matrix get colours that are not used otherwise.
    """
    places = {name: index for index, name in enumerate(MATRICES)}
    names = [str(spectrum.attributes.get("matrix", "")) for spectrum in spectra.values()]
    unused = iter([index for index in range(len(OKABE_ITO)) if list(MATRICES)[index] not in names] or [0])
    seen: dict[int, int] = {}
    looks = []
    for number, name in enumerate(names):
        index = places[name] if name in places else next(unused, 0)
        variant = seen.get(index, 0)
        seen[index] = variant + 1
        # Later spectra get smaller markers, so that coinciding eigenvalues are both visible.
        size = scale * SIZES[min(number, len(SIZES) - 1)]
        looks.append(Look.of(index, variant=variant, size=size, line=max(0.8, 1.4 * scale)))
    return looks


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


def with_unit(quantity: str, spectra: Iterable[Spectrum]) -> str:
    """Label of an axis of eigenvalues, with their unit in brackets if it is known and the same for all spectra."""
    unit = unit_of(str(spectrum.attributes.get("matrix", "")) for spectrum in spectra)
    return f"{quantity}  ({unit})" if unit else quantity


def without_unit(label: str) -> str:
    """Return the label of an axis without the unit that `with_unit` added."""
    return re.sub(r"  \([^()]*\)", "", label)


def tail_verdict(tail: TailFit) -> str:
    """Describe briefly whether a fitted tail is a power law, and if not, why."""
    if tail.is_power_law:
        return "a power law fits"
    return "it bends" if tail.better_than_exponential else "exponential not ruled out"


def law_text(law: MarchenkoPasturFit) -> str:
    """Describe briefly how far a bulk extends beyond the Marchenko-Pastur law."""
    return f"the bulk reaches {law.edge_ratio:.2g} times as far, with {law.trace_beyond:.0%} of its trace beyond"


def literal(text: object, longest: int = LONGEST) -> str:
    r"""Text of a result as a figure can show it: no formula, no control characters, and no longer than there is room.

    Examples
    --------
    >>> literal("$5 to $10\x1b")
    '\\$5 to \\$10\\x1b'
    >>> literal("model." * 20, longest=9)
    'mode…del.'
    """
    shown = printable(str(text))
    if len(shown) > longest:
        half = (longest - 1) // 2
        shown = f"{shown[:half]}…{shown[-half:]}"
    return shown.replace("$", r"\$")


def check_drawable(spectra: Mapping[Any, Any]) -> None:
    """Raise ValueError if there is nothing to draw, or eigenvalues are near the ends of floating point.

    Parameters
    ----------
    spectra : mapping
        Spectra, or mappings or tuples of spectra, by their labels.
    """
    if not spectra:
        raise ValueError("There are no spectra to plot: the mapping is empty. Pass {label: spectrum}.")
    for shown in spectra.values():
        members = shown.values() if isinstance(shown, Mapping) else shown
        for spectrum in members if isinstance(shown, Mapping | tuple) else (shown,):
            weight = float(spectrum.weights.max(initial=0.0))
            if weight > WHOLE:
                raise ValueError(f"A weight is {weight:.3g}, but all weights sum to 1: it cannot be drawn.")
            largest = largest_magnitude(spectrum)
            if largest > 0 and not DRAWN[0] <= largest <= DRAWN[1]:
                raise ValueError(
                    f"The largest |eigenvalue| is {largest:.3g}, and figures hold from {DRAWN[0]:g} to "
                    f"{DRAWN[1]:g}: transforms of axes leave floating point beyond. Plot the spectrum of a multiple "
                    "of the operator."
                )


def settle(figure: Figure) -> None:
    """Lay out the figure, which determines the length of axes in points."""
    engine = figure.get_layout_engine()
    if engine is not None:
        with warnings.catch_warnings():
            # Panels that are given may be too small for their labels, which is for their owner to see.
            warnings.filterwarnings("ignore", "constrained_layout not applied")
            engine.execute(figure)
