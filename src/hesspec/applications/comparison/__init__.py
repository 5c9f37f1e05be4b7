"""Comparison of spectra: differences of their numbers with errors, distances of the measures, and overlaps."""
