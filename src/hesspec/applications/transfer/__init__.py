"""Transfer: how much data from scratch pre-training is worth, by loss and by spectral statistics; its power law."""
