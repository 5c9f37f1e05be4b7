"""Laplace approximations of the posterior from one Krylov run: evidence, predictive variances, samples, subspaces."""

from typing import TYPE_CHECKING

from hesspec.backend.lazy import lazily

if TYPE_CHECKING:
    from hesspec.applications.laplace.evidence import MarginalLikelihood
    from hesspec.applications.laplace.figure import plot_band, plot_evidence
    from hesspec.applications.laplace.posterior import Laplace
    from hesspec.applications.laplace.prediction_comparison import PredictionComparison, compare_predictions
    from hesspec.applications.laplace.predictions import Covariance, Prediction
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
    from hesspec.applications.laplace.torch_adapter import KrylovLaplace

__all__ = [
    "Covariance",
    "Evidence",
    "KrylovLaplace",
    "Laplace",
    "MarginalLikelihood",
    "Prediction",
    "PredictionComparison",
    "Subspace",
    "compare_predictions",
    "compare_subspaces",
    "largest_diagonal_variance",
    "largest_magnitude",
    "last_layer",
    "optimal_subspace",
    "plot_band",
    "plot_evidence",
    "random_subspace",
    "required_dimension",
    "top_eigenvectors",
]

if not TYPE_CHECKING:  # type checkers would take any name for one of this module
    # Results can be read from files without PyTorch: names by the module that defines them.
    __getattr__, __dir__ = lazily(
        __name__,
        "hesspec.laplace",
        {
            "evidence": ("MarginalLikelihood",),
            "figure": ("plot_band", "plot_evidence"),
            "posterior": ("Laplace",),
            "prediction_comparison": ("PredictionComparison", "compare_predictions"),
            "predictions": ("Covariance", "Prediction"),
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
            "torch_adapter": ("KrylovLaplace",),
        },
    )
