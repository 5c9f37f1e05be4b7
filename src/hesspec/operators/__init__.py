"""Curvature matrices of an empirical risk as linear operators, one file per matrix or family of matrices."""

from hesspec.operators.base import CurvatureOperator
from hesspec.operators.central_difference import CentralDifferenceHessian
from hesspec.operators.class_parts import GaussNewtonClass, GaussNewtonCross, GaussNewtonSame, GaussNewtonWithin
from hesspec.operators.engine.graph_cache import GraphCache
from hesspec.operators.gauss_newton import GaussNewton
from hesspec.operators.hessian import Hessian
from hesspec.operators.likelihood_residual import LikelihoodResidual
from hesspec.operators.preconditioned import Preconditioned, preconditioner
from hesspec.operators.residual import Residual
from hesspec.operators.risk.closure import closure
from hesspec.operators.risk.shards import shard_data
from hesspec.operators.risk.token_loss import TokenLoss
from hesspec.operators.second_moment import SecondMoment

__all__ = [
    "CentralDifferenceHessian",
    "CurvatureOperator",
    "GaussNewton",
    "GaussNewtonClass",
    "GaussNewtonCross",
    "GaussNewtonSame",
    "GaussNewtonWithin",
    "GraphCache",
    "Hessian",
    "LikelihoodResidual",
    "Preconditioned",
    "Residual",
    "SecondMoment",
    "TokenLoss",
    "closure",
    "preconditioner",
    "shard_data",
]
