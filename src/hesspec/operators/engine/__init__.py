"""Computation of products of curvature matrices within a memory budget, and their verification."""
