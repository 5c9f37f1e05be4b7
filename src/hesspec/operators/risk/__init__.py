"""The empirical risk: model, loss and data at one point."""
