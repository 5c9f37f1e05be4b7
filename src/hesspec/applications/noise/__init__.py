"""Gradient noise and curvature: the expected change of the loss in a step, and a bound from flatness."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hesspec.applications.noise.flatness import flatness_bound, posterior_variance
    from hesspec.applications.noise.flatness_record import FlatnessBound
    from hesspec.applications.noise.one_step import expected_loss_change
    from hesspec.applications.noise.one_step_record import ExpectedLossChange

__all__ = [
    "ExpectedLossChange",
    "FlatnessBound",
    "expected_loss_change",
    "flatness_bound",
    "posterior_variance",
]

# Results can be read from files without PyTorch, which takes seconds to import: names by the module that defines them.
_MODULES = {
    "flatness": ("flatness_bound", "posterior_variance"),
    "flatness_record": ("FlatnessBound",),
    "one_step": ("expected_loss_change",),
    "one_step_record": ("ExpectedLossChange",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

if not TYPE_CHECKING:  # type checkers would take any name for one of this module

    def __getattr__(name):
        if name not in _HOME:
            raise AttributeError(f"module 'hesspec.noise' has no attribute {name!r}")
        found = getattr(import_module(f"hesspec.applications.noise.{_HOME[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
