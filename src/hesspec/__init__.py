"""The full eigenvalue spectrum of the curvature of deep networks, with error bounds, from one Krylov run.

hessian = hesspec.Hessian(model, loss_fn, data)
spectrum = hesspec.spectrum(hessian)
spectrum.plot()
"""

from importlib.metadata import version

from hesspec.errors import NonFiniteError, NotSymmetricError
from hesspec.measurement import spectrum
from hesspec.operators import GaussNewton, Hessian, Residual
from hesspec.planning import Plan, plan
from hesspec.result import Estimate, Spectrum, load

__version__ = version("hesspec")

__all__ = [
    "Estimate",
    "GaussNewton",
    "Hessian",
    "NonFiniteError",
    "NotSymmetricError",
    "Plan",
    "Residual",
    "Spectrum",
    "load",
    "plan",
    "spectrum",
]
