"""The full eigenvalue spectrum of the curvature of deep networks, with error bounds, from one Krylov run.

hessian = hesspec.Hessian(model, loss_fn, data)
spectrum = hesspec.spectrum(hessian)
spectrum.plot()
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

# PyTorch takes seconds to import: `import hesspec` and `hesspec --help` do not wait for it. Names by their modules, as
# in the import statements above, which type checkers read.
_MODULES = {
    "dynamics.marchenko_pastur": ("compare_with_marchenko_pastur",),
    "dynamics.power_laws": ("fit_power_law", "fit_tail"),
    "dynamics.tracking": ("follow", "overlaps"),
    "errors": ("NonFiniteError", "NotSymmetricError", "RankError"),
    "measurement": ("Eigenpairs", "eigenpairs", "spectrum"),
    "operators": (
        "CentralDifferenceHessian",
        "GaussNewton",
        "GaussNewtonClass",
        "GaussNewtonCross",
        "GaussNewtonSame",
        "GaussNewtonWithin",
        "Hessian",
        "Residual",
        "Traces",
        "closure",
        "shard",
    ),
    "planning": ("Plan", "plan"),
    "result": ("Estimate", "Spectrum", "load"),
    "structure.attribution": ("Attribution", "attribute", "class_structure", "knock_out"),
    "structure.class_structure": ("ClassStructure",),
    "structure.record": ("Structure", "load_structure"),
    "structure.row_space": ("Solution", "solve_true_vs_rest"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
# Modules that are used as `hesspec.study.open` and need no import statement of their own.
_PACKAGES = ("operators", "plot", "report", "structure", "study")

if not TYPE_CHECKING:  # where it would make any name a name of this module

    def __getattr__(name):
        if name in _PACKAGES:
            return import_module(f"hesspec.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'hesspec' has no attribute {name!r}")
        found = getattr(import_module(f"hesspec.{_HOME[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
