"""Applications of spectra and curvature matrices, one folder each."""
