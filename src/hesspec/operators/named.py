"""Lookup of operator classes by the name of the matrix."""

from importlib import import_module

from hesspec.matrices import MATRICES
from hesspec.operators.base import CurvatureOperator

__all__ = ["operator_class"]


def operator_class(name: str) -> type[CurvatureOperator]:
    """Return the operator class of a matrix, by its name in `hesspec.matrices.MATRICES`."""
    found: type[CurvatureOperator] = getattr(import_module(MATRICES[name].module), name)
    return found
