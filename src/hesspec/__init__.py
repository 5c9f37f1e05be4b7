"""The full eigenvalue spectrum of the curvature of deep networks, with error bounds, from one Krylov run.

hessian = hesspec.Hessian(model, loss_fn, data)
spectrum = hesspec.spectrum(hessian)
spectrum.plot()
"""

from importlib.metadata import version

from hesspec.dynamics.marchenko_pastur import compare_with_marchenko_pastur
from hesspec.dynamics.power_laws import fit_power_law, fit_tail
from hesspec.dynamics.tracking import follow, overlaps
from hesspec.errors import NonFiniteError, NotSymmetricError, RankError
from hesspec.measurement import Eigenpairs, eigenpairs, spectrum
from hesspec.operators import (
    CentralDifferenceHessian,
    GaussNewton,
    GaussNewtonClass,
    GaussNewtonCross,
    GaussNewtonSame,
    GaussNewtonWithin,
    Hessian,
    Residual,
    Traces,
    closure,
    shard,
)
from hesspec.planning import Plan, plan
from hesspec.result import Estimate, Spectrum, load
from hesspec.structure.attribution import Attribution, attribute, class_structure, knock_out
from hesspec.structure.class_structure import ClassStructure
from hesspec.structure.record import Structure, load_structure
from hesspec.structure.row_space import Solution, solve_true_vs_rest

__version__ = version("hesspec")

__all__ = [
    "Attribution",
    "CentralDifferenceHessian",
    "ClassStructure",
    "Eigenpairs",
    "Estimate",
    "GaussNewton",
    "GaussNewtonClass",
    "GaussNewtonCross",
    "GaussNewtonSame",
    "GaussNewtonWithin",
    "Hessian",
    "NonFiniteError",
    "NotSymmetricError",
    "Plan",
    "RankError",
    "Residual",
    "Solution",
    "Spectrum",
    "Structure",
    "Traces",
    "attribute",
    "class_structure",
    "closure",
    "compare_with_marchenko_pastur",
    "eigenpairs",
    "fit_power_law",
    "fit_tail",
    "follow",
    "knock_out",
    "load",
    "load_structure",
    "overlaps",
    "plan",
    "shard",
    "solve_true_vs_rest",
    "spectrum",
]
