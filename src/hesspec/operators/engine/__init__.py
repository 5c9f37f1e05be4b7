"""How products of curvature matrices are computed, verified and kept within a memory budget."""
