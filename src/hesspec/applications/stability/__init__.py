"""Edge of stability: sharpness and its threshold, sharpness dimension, Lyapunov exponents."""

from importlib import import_module
from typing import TYPE_CHECKING

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

# Results can be read from files without PyTorch, which takes seconds to import: names by the module that defines them.
_MODULES = {
    "dimension": ("exponent_density", "sharpness_dimension"),
    "lyapunov": ("StepJacobian", "lyapunov_exponents"),
    "minibatches": ("minibatch_spectra",),
    "monitoring": ("Monitor", "Reading", "monitor"),
    "record": ("LyapunovExponents", "SharpnessDimension", "StabilityRun"),
    "thresholds": ("Threshold", "threshold"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # type checkers would take any name for one of this module

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(f"module 'hesspec.stability' has no attribute {name!r}")
        found = getattr(import_module(f"hesspec.applications.stability.{_HOME[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
