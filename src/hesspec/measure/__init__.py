"""Measurement of spectra and eigenpairs, and prediction of its cost."""
