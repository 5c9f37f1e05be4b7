"""The edge of stability: how far a training is beyond it, and what dimension it explores there."""

from hesspec.applications.stability.dimension import exponent_density, sharpness_dimension
from hesspec.applications.stability.lyapunov import StepJacobian, lyapunov_exponents
from hesspec.applications.stability.minibatches import minibatch_spectra
from hesspec.applications.stability.monitoring import Monitor, Reading, monitor
from hesspec.applications.stability.record import LyapunovExponents, SharpnessDimension, StabilityRun
from hesspec.applications.stability.thresholds import Threshold, threshold

__all__ = [
    "LyapunovExponents",
    "Monitor",
    "Reading",
    "SharpnessDimension",
    "StabilityRun",
    "StepJacobian",
    "Threshold",
    "exponent_density",
    "lyapunov_exponents",
    "minibatch_spectra",
    "monitor",
    "sharpness_dimension",
    "threshold",
]
