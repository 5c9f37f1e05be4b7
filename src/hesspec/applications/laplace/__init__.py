"""Laplace approximations of the posterior from one Krylov run: evidence, predictive variances, samples, subspaces."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hesspec.applications.laplace.evidence import MarginalLikelihood
    from hesspec.applications.laplace.posterior import Covariance, Laplace, Prediction
    from hesspec.applications.laplace.record import Evidence

__all__ = ["Covariance", "Evidence", "Laplace", "MarginalLikelihood", "Prediction"]

# Results are read and drawn without PyTorch.
_MODULES = {
    "Covariance": "posterior",
    "Evidence": "record",
    "Laplace": "posterior",
    "MarginalLikelihood": "evidence",
    "Prediction": "posterior",
}

if not TYPE_CHECKING:  # where it would make any name a name of this module

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module 'hesspec.laplace' has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
