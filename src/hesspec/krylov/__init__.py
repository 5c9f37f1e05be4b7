"""Numerical linear algebra on any symmetric operator with a shape, a dtype, a device and a product."""
