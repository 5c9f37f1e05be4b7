"""The full eigenvalue spectrum of the curvature of deep networks, with error bounds, from one Krylov run.

hessian = hesspec.Hessian(model, loss_fn, data)
spectrum = hesspec.spectrum(hessian)
spectrum.plot()
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hesspec.applications import language, laplace, noise, optim, stability
    from hesspec.applications.blocks.measuring import by_block
    from hesspec.applications.blocks.record import BlockSpectra
    from hesspec.applications.class_structure.attribution import (
        Attribution,
        attribute_outliers,
        class_structure,
        project_out,
    )
    from hesspec.applications.class_structure.frequent import frequent_classes
    from hesspec.applications.class_structure.means import ClassMeans
    from hesspec.applications.class_structure.record import ClassStructure
    from hesspec.applications.comparison.compare import compare
    from hesspec.applications.comparison.record import Comparison
    from hesspec.applications.loss_along.record import LossAlong
    from hesspec.applications.loss_along.slices import loss_along, plot_loss_along
    from hesspec.applications.noise.angles_record import PrincipalAngles
    from hesspec.applications.noise.principal_angles import principal_angles
    from hesspec.applications.optim.true_vs_rest import TrueVsRestSolution, solve_true_vs_rest
    from hesspec.applications.transfer.effective import effective_data
    from hesspec.applications.transfer.effective_record import EffectiveData
    from hesspec.applications.transfer.law import fit_transfer_law
    from hesspec.applications.transfer.law_record import TransferLaw
    from hesspec.backend.heap import keep_freed_memory
    from hesspec.errors import NonFiniteError, NotSymmetricError, RankError
    from hesspec.measure.diagonal import Diagonal, diagonal
    from hesspec.measure.eigenpairs import Eigenpairs, eigenpairs
    from hesspec.measure.plan import Plan, plan
    from hesspec.measure.solve import Solution, solve
    from hesspec.measure.spectrum import spectrum
    from hesspec.operators import (
        CentralDifferenceHessian,
        GaussNewton,
        GaussNewtonClass,
        GaussNewtonCross,
        GaussNewtonSame,
        GaussNewtonWithin,
        GraphCache,
        Hessian,
        LikelihoodResidual,
        Preconditioned,
        Residual,
        SecondMoment,
        TokenLoss,
        closure,
        shard_data,
    )
    from hesspec.spectra.marchenko_pastur import compare_with_marchenko_pastur
    from hesspec.spectra.power_law import fit_power_law
    from hesspec.spectra.record import load
    from hesspec.spectra.sampling import Estimate
    from hesspec.spectra.spectrum import Spectrum
    from hesspec.spectra.tails import fit_tail
    from hesspec.spectra.tracking import eigenvector_overlaps, steady_outliers, track_outliers

__version__ = version("hesspec")

__all__ = [
    "Attribution",
    "BlockSpectra",
    "CentralDifferenceHessian",
    "ClassMeans",
    "ClassStructure",
    "Comparison",
    "Diagonal",
    "EffectiveData",
    "Eigenpairs",
    "Estimate",
    "GaussNewton",
    "GaussNewtonClass",
    "GaussNewtonCross",
    "GaussNewtonSame",
    "GaussNewtonWithin",
    "GraphCache",
    "Hessian",
    "Identity",
    "LikelihoodResidual",
    "LossAlong",
    "NonFiniteError",
    "NotSymmetricError",
    "Plan",
    "Preconditioned",
    "PrincipalAngles",
    "RankError",
    "Residual",
    "SecondMoment",
    "Solution",
    "Spectrum",
    "TokenLoss",
    "TransferLaw",
    "TrueVsRestSolution",
    "attribute_outliers",
    "by_block",
    "class_structure",
    "closure",
    "compare",
    "compare_with_marchenko_pastur",
    "diagonal",
    "effective_data",
    "eigenpairs",
    "eigenvector_overlaps",
    "fit_power_law",
    "fit_tail",
    "fit_transfer_law",
    "frequent_classes",
    "keep_freed_memory",
    "language",
    "laplace",
    "load",
    "loss_along",
    "noise",
    "optim",
    "plan",
    "plot_loss_along",
    "principal_angles",
    "project_out",
    "shard_data",
    "solve",
    "solve_true_vs_rest",
    "spectrum",
    "stability",
    "steady_outliers",
    "track_outliers",
]

# PyTorch takes seconds to import: `import hesspec` and `hesspec --help` do not wait for it. Names by the module that
# defines them, repeating the import statements above, which type checkers read.
_MODULES = {
    "spectra.marchenko_pastur": ("compare_with_marchenko_pastur",),
    "spectra.power_law": ("fit_power_law",),
    "spectra.tails": ("fit_tail",),
    "spectra.tracking": ("track_outliers", "steady_outliers", "eigenvector_overlaps"),
    "backend.algebra": ("Identity",),
    "backend.heap": ("keep_freed_memory",),
    "errors": ("NonFiniteError", "NotSymmetricError", "RankError"),
    "measure.diagonal": ("Diagonal", "diagonal"),
    "applications.noise.principal_angles": ("principal_angles",),
    "applications.noise.angles_record": ("PrincipalAngles",),
    "measure.eigenpairs": ("Eigenpairs", "eigenpairs"),
    "measure.spectrum": ("spectrum",),
    "operators": (
        "CentralDifferenceHessian",
        "GaussNewton",
        "GaussNewtonClass",
        "GaussNewtonCross",
        "GaussNewtonSame",
        "GaussNewtonWithin",
        "Hessian",
        "LikelihoodResidual",
        "Preconditioned",
        "Residual",
        "SecondMoment",
        "GraphCache",
        "TokenLoss",
        "closure",
        "shard_data",
    ),
    "measure.plan": ("Plan", "plan"),
    "measure.solve": ("Solution", "solve"),
    "spectra.record": ("load",),
    "spectra.sampling": ("Estimate",),
    "spectra.spectrum": ("Spectrum",),
    "applications.blocks.measuring": ("by_block",),
    "applications.blocks.record": ("BlockSpectra",),
    "applications.class_structure.attribution": ("Attribution", "attribute_outliers", "class_structure", "project_out"),
    "applications.class_structure.frequent": ("frequent_classes",),
    "applications.class_structure.means": ("ClassMeans",),
    "applications.class_structure.record": ("ClassStructure",),
    "applications.comparison.compare": ("compare",),
    "applications.comparison.record": ("Comparison",),
    "applications.loss_along.record": ("LossAlong",),
    "applications.loss_along.slices": ("loss_along", "plot_loss_along"),
    "applications.optim.true_vs_rest": ("TrueVsRestSolution", "solve_true_vs_rest"),
    "applications.transfer.effective": ("effective_data",),
    "applications.transfer.effective_record": ("EffectiveData",),
    "applications.transfer.law": ("fit_transfer_law",),
    "applications.transfer.law_record": ("TransferLaw",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
# Subpackages that can be used without an import of their own, as in `hesspec.study.open`.
_PACKAGES = ("applications", "integrations", "krylov", "measure", "operators", "plot", "report", "spectra", "study")
# Applications of the spectrum, which are reached as `hesspec.NAME`.
_APPLICATIONS = ("language", "laplace", "noise", "optim", "stability")

if not TYPE_CHECKING:  # type checkers would take any name for one of this module

    def __getattr__(name):
        if name in _PACKAGES:
            return import_module(f"hesspec.{name}")
        if name in _APPLICATIONS:
            return import_module(f"hesspec.applications.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'hesspec' has no attribute {name!r}")
        found = getattr(import_module(f"hesspec.{_HOME[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES, *_APPLICATIONS})
