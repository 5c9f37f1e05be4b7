"""Figures of spectra for talks and papers, in matplotlib."""

from hesspec.plot.dynamics import plot_against_samples, plot_hessian_against_gauss_newton, plot_training
from hesspec.plot.spectra import plot_spectrum, plot_tail
from hesspec.plot.style import (
    DISPLAY_NAMES,
    FILL,
    OKABE_ITO,
    STYLE,
    bulk_on_logarithmic_axis,
    darkened,
    exponent_text,
    law_text,
    spread,
    tail_verdict,
    three_digits,
)

__all__ = [
    "DISPLAY_NAMES",
    "FILL",
    "OKABE_ITO",
    "STYLE",
    "bulk_on_logarithmic_axis",
    "darkened",
    "exponent_text",
    "law_text",
    "plot_against_samples",
    "plot_hessian_against_gauss_newton",
    "plot_spectrum",
    "plot_tail",
    "plot_training",
    "spread",
    "tail_verdict",
    "three_digits",
]
