"""The full spectrum of deep-network curvature."""
