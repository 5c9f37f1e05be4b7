"""Values that no spectrum has, in files from others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hesspec.spectra.checked_fields import refuse_unless

if TYPE_CHECKING:
    from hesspec.spectra.spectrum import Spectrum

__all__ = ["WHOLE", "check_spectrum"]

WHOLE: Final = 1 + 1e-6
"""Largest weight, up to rounding of sums, which are 1."""


def check_spectrum(spectrum: Spectrum) -> None:
    """See `Spectrum.check`."""
    for name in ("dimension", "probes", "steps"):
        refuse_unless(getattr(spectrum, name) >= 1, f"Its {name!r} is {getattr(spectrum, name)}.")
    for name in ("bulk_probe", "ritz_probe"):
        probe = getattr(spectrum, name)
        refuse_unless(
            ((probe >= 0) & (probe < spectrum.probes)).all(),
            f"Its {name} has numbers of probes that are not below {spectrum.probes}.",
        )
    refuse_unless(
        spectrum.ritz_values.size >= spectrum.probes, f"It has too few Ritz values for {spectrum.probes} probes."
    )
    count, sketched = spectrum.eigenvalues.size, len(spectrum.eigenvector_sketches)
    refuse_unless(
        count <= spectrum.dimension, f"It has {count} eigenvalues, and an operator of dimension {spectrum.dimension}."
    )
    refuse_unless(sketched <= count, f"It has sketches of {sketched} eigenvectors, but fewer eigenvalues.")
    for name in ("eigenvalue_weights", "ritz_weights"):
        largest = float(getattr(spectrum, name).max(initial=0.0))
        refuse_unless(largest <= WHOLE, f"Its {name} has a weight of {largest:.3g}, but all weights sum to 1.")
