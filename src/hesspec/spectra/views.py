"""Views of a spectrum: its main numbers as text, its outliers as a table, its atoms as a data frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from hesspec.backend.number_text import plus_minus
from hesspec.backend.shown import TextTable
from hesspec.matrices import unit_of
from hesspec.spectra.densities import zero_peak
from hesspec.spectra.informative import hints, negative_text, trace_text
from hesspec.spectra.outliers import LEVEL, WEAK_LEVEL

if TYPE_CHECKING:
    import pandas as pd

    from hesspec.spectra.spectrum import Spectrum

__all__ = ["dataframe_of", "outlier_words", "summary_of", "tables_of", "units_of"]

# Fields in units of eigenvalues.
EIGENVALUES: Final = ("eigenvalues", "error_bounds", "bulk_nodes", "ritz_values", "ritz_bounds")


def summary_of(spectrum: Spectrum) -> dict[str, str]:
    """Names and values as text, see `Spectrum.summary`."""
    low, high = spectrum.bulk_range
    edges = " to ".join(f"{edge:.4g}" for edge in spectrum.bulk_edges)
    p_value, (share, reach) = float(spectrum.outlier_p_values.min(initial=1.0)), zero_peak(spectrum)
    rows = {
        "parameters": f"{spectrum.dimension:,}",
        "Lanczos steps": f"{spectrum.steps} (probes: {spectrum.probes}, matvecs: {spectrum.matvecs})",
        "stopped": spectrum.stopped,
        "largest |eigenvalue|": f"{spectrum.norm:.6g}",
        "resolved eigenvalues": f"{spectrum.eigenvalues.size}, of which {spectrum.outliers.size} are outliers",
        "outlier rule": f"log-spacings of |eigenvalue| at the level {LEVEL}, smallest p-value {p_value:.2g}",
        "bulk": f"{low:.4g} to {high:.4g}; 99% of it lie in {edges}" if np.isfinite(low) else "none",
        "not told from zero": f"{share:.1%} of all eigenvalues, within ±{reach:.2g}",
        **({"trace": trace} if (trace := trace_text(spectrum)) else {}),
        "effective rank": f"{spectrum.effective_rank:.4g}",
        **({"negative eigenvalues": negative} if (negative := negative_text(spectrum)) else {}),
        "Wasserstein-1 bound": f"{spectrum.wasserstein_bound:.2g}",
        **({"not known": " ".join(unknown)} if (unknown := hints(spectrum)) else {}),
    }
    return {"matrix": str(spectrum.attributes["matrix"]), **rows} if "matrix" in spectrum.attributes else rows


def outlier_words(spectrum: Spectrum) -> str:
    """Number of outliers as text; where there are none, how many eigenvalues stand apart with weaker evidence."""
    count, p_values = spectrum.outliers.size, spectrum.outlier_p_values
    least = float(p_values.min(initial=1.0))
    if count or least > WEAK_LEVEL:
        return f"{count or 'no'} outlier{'' if count == 1 else 's'}"
    return f"no outliers ({int((p_values <= least).sum())} apart, p = {least:.2g})"


def tables_of(spectrum: Spectrum) -> list[TextTable]:
    """Table of the outliers with their error bounds."""
    if not spectrum.outliers.size:
        return []
    bounds = spectrum.error_bounds[spectrum.is_outlier]
    rows = [
        (str(rank), plus_minus(value, bound))
        for rank, (value, bound) in enumerate(zip(spectrum.outliers, bounds, strict=True), 1)
    ]
    return [TextTable("", ("outlier", "eigenvalue ± error bound"), rows)]


def dataframe_of(spectrum: Spectrum) -> pd.DataFrame:
    """Atoms of the measure as rows, see `Spectrum.to_dataframe`."""
    import pandas  # noqa: PLC0415 - slow to import, and only needed here

    order = np.argsort(spectrum.bulk_nodes, kind="stable")
    kinds = np.where(spectrum.is_outlier, "outlier", "resolved")
    return pandas.DataFrame(
        {
            "eigenvalue": np.concatenate([spectrum.eigenvalues, spectrum.bulk_nodes[order]]),
            "error_bound": np.concatenate([spectrum.error_bounds, np.full(order.size, np.nan)]),
            "weight": np.concatenate([spectrum.eigenvalue_weights, spectrum.bulk_weights[order]]),
            "kind": np.concatenate([kinds, np.full(order.size, "bulk")]),
        }
    )


def units_of(spectrum: Spectrum) -> dict[str, str]:
    """Units of the arrays of eigenvalues; empty for a matrix that is not a known curvature of a loss."""
    return dict.fromkeys(EIGENVALUES, unit_of([str(spectrum.attributes.get("matrix", ""))]))
