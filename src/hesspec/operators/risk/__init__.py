"""Empirical risk: model, loss and data at one point."""
