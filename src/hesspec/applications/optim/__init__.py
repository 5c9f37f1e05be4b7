"""Steps of optimisers that use curvature."""
