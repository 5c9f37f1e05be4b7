"""Results of measurements, and quantities computed from them. NumPy only, without PyTorch."""
