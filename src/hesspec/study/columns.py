"""Columns of spectra in the datasets of `hesspec.study.open`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hesspec.matrices import CURVATURE
from hesspec.spectra.spectrum import Spectrum
from hesspec.spectra.tracking import steady_outliers, track_outliers

__all__ = ["RANKED", "SCALARS", "UNITS", "fill"]

SCALARS: Final = {
    "bulk_low": CURVATURE,
    "bulk_high": CURVATURE,
    "trace": CURVATURE,
    "trace_standard_error": CURVATURE,
    "effective_rank": "1",
    "negative_mass": "share of the eigenvalues",
    "negative_mass_lower": "share of the eigenvalues",
    "negative_mass_upper": "share of the eigenvalues",
    "outliers": "1",
    "wasserstein_bound": CURVATURE,
    "matvecs": "1",
    "seconds": "s",
}
"""Quantities with a value for each spectrum, and their units."""
RANKED: Final[Mapping[str, Any]] = {"eigenvalue": np.nan, "error_bound": np.nan, "outlier": False, "track": -1}
"""Quantities with a value for each resolved eigenvalue, and what stands where there is none."""
UNITS: Final = {**SCALARS, "eigenvalue": CURVATURE, "error_bound": CURVATURE}
"""Units of all quantities that have one."""


def fill(values: Mapping[str, npt.NDArray[Any]], places: Sequence[tuple[Any, ...]], series: Sequence[Spectrum]) -> None:
    """Write the spectra of one matrix through a training into arrays, with labels and numbers of their outliers.

    Parameters
    ----------
    values : mapping of str to array
        Arrays of `SCALARS` by name, and of `RANKED`, which have a last axis more.
    places : sequence of tuple of int
        Where the values of each spectrum are.
    series : sequence of Spectrum
        Spectra in the order of training.
    """
    steady = steady_outliers(series)
    for at, spectrum, tracks in zip(places, steady, track_outliers(steady), strict=True):
        k = spectrum.eigenvalues.size
        values["eigenvalue"][*at, :k] = spectrum.eigenvalues
        values["error_bound"][*at, :k] = spectrum.error_bounds
        values["outlier"][*at, :k] = spectrum.is_outlier
        values["track"][*at, np.flatnonzero(spectrum.is_outlier)] = tracks
        for name, value in _scalars(spectrum).items():
            values[name][at] = value


def _scalars(spectrum: Spectrum) -> dict[str, float]:
    low, high = spectrum.bulk_edges
    negative, p = spectrum.num_negative, spectrum.dimension
    seconds = spectrum.attributes.get("seconds", np.nan)
    return {
        "bulk_low": low,
        "bulk_high": high,
        "trace": spectrum.trace,
        "trace_standard_error": spectrum.trace_standard_error,
        "effective_rank": spectrum.effective_rank,
        "negative_mass": negative.value / p,
        "negative_mass_lower": negative.lower / p,
        "negative_mass_upper": negative.upper / p,
        "outliers": spectrum.outliers.size,
        "wasserstein_bound": spectrum.wasserstein_bound,
        "matvecs": spectrum.matvecs,
        "seconds": float(seconds),
    }
