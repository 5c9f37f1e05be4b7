"""Spectra as results, and what is computed from them. NumPy only."""
