"""The edge of stability: how far a training is beyond it, and what dimension it explores there."""

from hesspec.applications.stability.dimension import exponent_density, sharpness_dimension
from hesspec.applications.stability.record import SharpnessDimension

__all__ = ["SharpnessDimension", "exponent_density", "sharpness_dimension"]
