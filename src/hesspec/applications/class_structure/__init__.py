"""The class structure of the Gauss-Newton matrix, and what it explains of a spectrum."""
