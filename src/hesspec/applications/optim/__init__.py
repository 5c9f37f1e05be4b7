"""Optimisers' steps and curvature: Fast Gauss-Newton, its comparison with full Gauss-Newton steps."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hesspec.applications.optim.comparing import compare_steps
    from hesspec.applications.optim.competitors import competitor_share
    from hesspec.applications.optim.fast_gauss_newton import FastGaussNewton, Step
    from hesspec.applications.optim.figure import plot_steps
    from hesspec.applications.optim.record import CompetitorShare, StepComparison

__all__ = [
    "CompetitorShare",
    "FastGaussNewton",
    "Step",
    "StepComparison",
    "compare_steps",
    "competitor_share",
    "plot_steps",
]

# Results can be read from files without PyTorch, which takes seconds to import: names by the module that defines them.
_MODULES = {
    "comparing": ("compare_steps",),
    "competitors": ("competitor_share",),
    "fast_gauss_newton": ("FastGaussNewton", "Step"),
    "figure": ("plot_steps",),
    "record": ("CompetitorShare", "StepComparison"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # type checkers would take any name for one of this module

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(f"module 'hesspec.optim' has no attribute {name!r}")
        found = getattr(import_module(f"hesspec.applications.optim.{_HOME[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
