"""Edge of stability: sharpness and its threshold, sharpness dimension, Lyapunov exponents."""

from typing import TYPE_CHECKING

from hesspec.backend.lazy import lazily

if TYPE_CHECKING:
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

if not TYPE_CHECKING:  # type checkers would take any name for one of this module
    # Results can be read from files without PyTorch: names by the module that defines them.
    __getattr__, __dir__ = lazily(
        __name__,
        "hesspec.stability",
        {
            "dimension": ("exponent_density", "sharpness_dimension"),
            "lyapunov": ("StepJacobian", "lyapunov_exponents"),
            "minibatches": ("minibatch_spectra",),
            "monitoring": ("Monitor", "Reading", "monitor"),
            "record": ("LyapunovExponents", "SharpnessDimension", "StabilityRun"),
            "thresholds": ("Threshold", "threshold"),
        },
    )
