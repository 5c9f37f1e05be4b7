"""Spectra as a run would give them, made by hand; and what is seen in figures of them."""

import itertools

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation, Text

from hesspec.spectra.spectrum import Spectrum

P = 40_000


def make_spectrum(outliers=(), bulk=(-0.1, 0.2), *, nodes=40, bounds=1e-6, dimension=P, resolved=(), **attributes):
    """A spectrum as a run would give it: outliers, a few resolved edges of the bulk, and Chebyshev-like bulk nodes."""
    low, high = bulk
    positions = (low + high) / 2 - (high - low) / 2 * np.cos((np.arange(nodes) + 0.5) * np.pi / max(nodes, 1))
    weights = np.exp(-np.abs(positions) / (0.1 * (high - low) or 1.0))
    # Resolved eigenvalues at the edge are what tells outliers from the tail of the bulk.
    edge = np.array([*resolved, *(high * np.array([1.04, 1.03, 1.02, 1.01]) if nodes and high else [])])
    values = np.array([*outliers, *edge], float)
    values = values[np.argsort(-np.abs(values), kind="stable")]
    share = 1 - values.size / dimension
    return Spectrum(
        dimension=dimension,
        eigenvalues=values,
        error_bounds=np.full(values.size, bounds),
        eigenvalue_weights=np.full(values.size, 1 / dimension),
        bulk_nodes=positions,
        bulk_weights=weights / weights.sum() * share if nodes else weights,
        bulk_probe=np.zeros(nodes, np.int64),
        ritz_values=np.concatenate([values, positions]),
        ritz_weights=np.full(values.size + nodes, 1 / max(values.size + nodes, 1)),
        ritz_bounds=np.full(values.size + nodes, bounds),
        ritz_probe=np.zeros(values.size + nodes, np.int64),
        norm=float(np.abs(np.concatenate([values, positions])).max()) if values.size + nodes else 0.0,
        rounding=0.0,
        probes=1,
        steps=values.size + nodes,
        matvecs=values.size + nodes,
        exact=nodes == 0,
        stopped="all steps done",
        attributes=attributes,
    )


OUTLIERS = np.geomspace(10, 2, 10)  # far from any bulk here: no rule for outliers would miss them


def texts(figure):
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def value_labels(figure):
    """Annotations with their boxes in pixels, each without its leader."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return [(label, Text.get_window_extent(label, canvas.get_renderer())) for label in figure.findobj(Annotation)]


def overlapping(boxes):
    # A pixel less on each side: boxes of upright text include the font's line spacing.
    shrunk = [box.padded(-1) for box in boxes]
    return [(a, b) for a, b in itertools.combinations(shrunk, 2) if a.overlaps(b)]
