"""Matplotlib figures of spectra, for talks and papers."""

from hesspec.plot.learning_curves import epochs_of, plot_learning_curves, rate_changes
from hesspec.plot.matrix_pairs import plot_hessian_against_gauss_newton, plot_overlaps
from hesspec.plot.multiples import plot_multiples
from hesspec.plot.river import plot_training
from hesspec.plot.sample_sizes import plot_against_samples
from hesspec.plot.spectra import KINDS, plot_spectrum, plot_tail
from hesspec.plot.style import (
    FILL,
    OKABE_ITO,
    STYLE,
    bulk_on_logarithmic_axis,
    darkened,
    law_text,
    literal,
    spread,
    tail_verdict,
)

__all__ = [
    "FILL",
    "KINDS",
    "OKABE_ITO",
    "STYLE",
    "bulk_on_logarithmic_axis",
    "darkened",
    "epochs_of",
    "law_text",
    "literal",
    "plot_against_samples",
    "plot_hessian_against_gauss_newton",
    "plot_learning_curves",
    "plot_multiples",
    "plot_overlaps",
    "plot_spectrum",
    "plot_tail",
    "plot_training",
    "rate_changes",
    "spread",
    "tail_verdict",
]
