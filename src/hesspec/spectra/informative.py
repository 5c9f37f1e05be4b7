"""Numbers of a spectrum as text, unless their intervals say nothing; then what would tighten them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from hesspec.backend.number_text import MINUS, plus_minus

if TYPE_CHECKING:
    from hesspec.spectra.spectrum import Spectrum

__all__ = ["hints", "negative_text", "trace_text"]

# An interval of the trace says something if it is shorter than the trace, or than this share of the sum of |lambda|.
CANCELS: Final = 0.05
# Width from which an interval of a share says nothing.
VACUOUS: Final = 0.5


def trace_text(spectrum: Spectrum) -> str | None:
    """Trace and its standard error, or its bound; None if its interval says nothing, or it is beyond float64."""
    if not np.isfinite([spectrum.trace, spectrum.trace_error]).all():
        return None
    half, size = spectrum.trace_error, spectrum.effective_rank * spectrum.norm
    if half > 0 and half >= max(abs(spectrum.trace), CANCELS * size):
        return None
    return plus_minus(spectrum.trace, spectrum.trace_standard_error or half)


def negative_text(spectrum: Spectrum) -> str | None:
    """Interval of the share of negative eigenvalues in percent; None if it says nothing."""
    if spectrum.is_positive:
        return "none (positive semi-definite)"
    number, p = spectrum.num_negative, spectrum.dimension
    if number.upper - number.lower > VACUOUS * p:
        return None
    low, high = f"{number.lower / p:.0%}", f"{number.upper / p:.0%}"
    return low if low == high else f"{low[:-1]}–{high}"


def hints(spectrum: Spectrum) -> list[str]:
    """Sentences about what is not shown, and what would make it known."""
    found = []
    if not np.isfinite([spectrum.trace, spectrum.trace_standard_error]).all():
        found.append(f"The trace or its error exceeds the largest float64, {np.finfo(float).max:.2g}.")
    elif trace_text(spectrum) is None:
        known = f"{spectrum.trace:.3g} ± {spectrum.trace_standard_error or spectrum.trace_error:.2g}".replace(
            "-", MINUS
        )
        # Products of another XTrace cannot cancel what the eigenvalues do.
        how = (
            f"{spectrum.xtrace_matvecs:,} products do not suffice, as the eigenvalues nearly cancel"
            if spectrum.xtrace_matvecs
            else "the eigenvalues nearly cancel: measure it in float64"
            if spectrum.exact
            else "measure it with trace=0.05 (hesspec measure --trace 5%)"
        )
        found.append(f"The trace is not known, {known}: {how}.")
    wanted = spectrum.attributes.get("wanted_trace_error")
    reached = 2 * spectrum.xtrace_error
    if isinstance(wanted, float) and reached > wanted * abs(spectrum.xtrace) and trace_text(spectrum) is not None:
        share = reached / abs(spectrum.xtrace) if spectrum.xtrace else np.inf
        found.append(
            f"The trace is known to {share:.2g} of its size instead of {wanted:g} after {spectrum.xtrace_matvecs:,} "
            "products, the most that are taken."
        )
    if negative_text(spectrum) is None:
        found.append(
            "The share of negative eigenvalues is not known, as many cannot be told from zero; more steps or probes "
            "(--steps, --probes) tighten it."
        )
    return found
