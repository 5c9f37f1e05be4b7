"""Where outliers come from: the class structure of the Gauss-Newton matrix, and what of a spectrum it explains."""
