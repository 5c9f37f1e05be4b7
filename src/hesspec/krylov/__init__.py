"""Numerical linear algebra on anything symmetric that has a shape, a dtype, a device and a product."""
