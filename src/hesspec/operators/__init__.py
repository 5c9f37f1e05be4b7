"""Curvature matrices of an empirical risk as linear operators, one file a matrix."""

from hesspec.operators.base import CurvatureOperator
from hesspec.operators.gauss_newton import GaussNewton
from hesspec.operators.hessian import Hessian
from hesspec.operators.residual import Residual

__all__ = ["CurvatureOperator", "GaussNewton", "Hessian", "Residual"]
