"""Measurements: spectra, eigenpairs, and predictions of their cost."""
