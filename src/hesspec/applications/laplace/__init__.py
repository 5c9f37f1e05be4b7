"""Laplace approximations of the posterior from one Krylov run: evidence, predictive variances, samples, subspaces."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hesspec.applications.laplace.evidence import MarginalLikelihood
    from hesspec.applications.laplace.figure import plot_band, plot_calibration, plot_evidence
    from hesspec.applications.laplace.posterior import Covariance, Laplace, Prediction
    from hesspec.applications.laplace.record import Evidence
    from hesspec.applications.laplace.subspaces import (
        Subspace,
        compare_subspaces,
        largest_diagonal_variance,
        largest_magnitude,
        last_layer,
        optimal_subspace,
        random_subspace,
        required_dimension,
        top_eigenvectors,
    )

__all__ = [
    "Covariance",
    "Evidence",
    "Laplace",
    "MarginalLikelihood",
    "Prediction",
    "Subspace",
    "compare_subspaces",
    "largest_diagonal_variance",
    "largest_magnitude",
    "last_layer",
    "optimal_subspace",
    "plot_band",
    "plot_calibration",
    "plot_evidence",
    "random_subspace",
    "required_dimension",
    "top_eigenvectors",
]

# Results can be read and plotted without PyTorch.
_MODULES = {
    "evidence": ("MarginalLikelihood",),
    "figure": ("plot_band", "plot_calibration", "plot_evidence"),
    "posterior": ("Covariance", "Laplace", "Prediction"),
    "record": ("Evidence",),
    "subspaces": (
        "Subspace",
        "compare_subspaces",
        "largest_diagonal_variance",
        "largest_magnitude",
        "last_layer",
        "optimal_subspace",
        "random_subspace",
        "required_dimension",
        "top_eigenvectors",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # type checkers would take any name for one of this module

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(f"module 'hesspec.laplace' has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
