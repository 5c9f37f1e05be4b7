"""Spectra at the ends of float64, converted to a scale at which inverses and squares of their numbers are finite."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from hesspec.spectra.spectrum import Spectrum

__all__ = ["largest_magnitude", "ordinary"]

# Norms between 2^-900 and 2^900 are left unchanged: kernels are at least 2^-27 of them wide.
ORDINARY: Final = 900
# Fields in units of eigenvalues.
SCALED: Final = ("eigenvalues", "error_bounds", "bulk_nodes", "ritz_values", "ritz_bounds", "norm", "rounding")


def largest_magnitude(spectrum: Spectrum) -> float:
    """Largest magnitude of an eigenvalue: `norm`, or beyond it a point of the measure, in files from others."""
    points = (np.abs(values).max(initial=0.0) for values in (spectrum.eigenvalues, spectrum.bulk_nodes))
    return max(spectrum.norm, *map(float, points))


def ordinary(spectrum: Spectrum) -> tuple[Spectrum, int]:
    """Return 2^-e times the spectrum, and e, which is 0 unless its numbers are near the ends of float64.

    Multiplication by a power of two is exact, except for numbers that become subnormal.
    """
    largest = largest_magnitude(spectrum)
    exponent = int(np.frexp(largest)[1]) if largest > 0 else 0
    if abs(exponent) <= ORDINARY:
        return spectrum, 0
    return replace(spectrum, **{name: np.ldexp(getattr(spectrum, name), -exponent) for name in SCALED}), exponent
