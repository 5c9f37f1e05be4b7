"""The main numbers of a spectrum by name, for tables, spreadsheets and other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hesspec.spectra.spectrum import Spectrum

__all__ = ["numbers_of"]


def numbers_of(spectrum: Spectrum) -> dict[str, Any]:
    """Return the main numbers of a spectrum, in units of eigenvalues where they have a unit.

    Returns
    -------
    dict of str to int, float, bool, or None
        Numbers that are not known, such as the edges of a bulk that does not exist, are None.
    """
    (low, high), negative = spectrum.bulk_edges, spectrum.num_negative
    known = spectrum.eigenvalues.size > 0
    return {
        "parameters": spectrum.dimension,
        "steps": spectrum.steps,
        "probes": spectrum.probes,
        "matvecs": spectrum.matvecs,
        "exact": spectrum.exact,
        "resolved": spectrum.eigenvalues.size,
        "outliers": spectrum.outliers.size,
        "largest": float(spectrum.eigenvalues[0]) if known else None,
        "largest_error_bound": float(spectrum.error_bounds[0]) if known else None,
        "norm": spectrum.norm,
        "bulk_low": _known(low),
        "bulk_high": _known(high),
        "trace": _known(spectrum.trace),
        "trace_standard_error": _known(spectrum.trace_standard_error),
        "negative_lower": _known(negative.lower),
        "negative_upper": _known(negative.upper),
        "effective_rank": _known(spectrum.effective_rank),
        "wasserstein_bound": _known(spectrum.wasserstein_bound),
    }


def _known(value: float) -> float | None:
    return float(value) if abs(value) < float("inf") else None
