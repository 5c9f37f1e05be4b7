"""Gradient noise: what it does in a step, its tails, exit times from minima, and a bound from flatness."""

from typing import TYPE_CHECKING

from hesspec.backend.lazy import lazily

if TYPE_CHECKING:
    from hesspec.applications.noise.exit_figure import plot_mean_exit_times, plot_tail_indices
    from hesspec.applications.noise.exit_laws import StepSizeLimit, mean_exit_time, step_size_limit
    from hesspec.applications.noise.exit_record import ExitTimes
    from hesspec.applications.noise.exit_times import first_exit_times
    from hesspec.applications.noise.flatness import flatness_bound, posterior_variance
    from hesspec.applications.noise.flatness_record import FlatnessBound
    from hesspec.applications.noise.minibatch_noise import gradient_noise
    from hesspec.applications.noise.one_step import expected_loss_change
    from hesspec.applications.noise.one_step_record import ExpectedLossChange
    from hesspec.applications.noise.stable import stable_noise
    from hesspec.applications.noise.tail_record import GradientNoise, TailIndex
    from hesspec.applications.noise.tails import tail_index

__all__ = [
    "ExitTimes",
    "ExpectedLossChange",
    "FlatnessBound",
    "GradientNoise",
    "StepSizeLimit",
    "TailIndex",
    "expected_loss_change",
    "first_exit_times",
    "flatness_bound",
    "gradient_noise",
    "mean_exit_time",
    "plot_mean_exit_times",
    "plot_tail_indices",
    "posterior_variance",
    "stable_noise",
    "step_size_limit",
    "tail_index",
]

if not TYPE_CHECKING:  # type checkers would take any name for one of this module
    # Results can be read from files without PyTorch: names by the module that defines them.
    __getattr__, __dir__ = lazily(
        __name__,
        "hesspec.noise",
        {
            "exit_figure": (
                "plot_mean_exit_times",
                "plot_tail_indices",
            ),
            "exit_laws": (
                "StepSizeLimit",
                "mean_exit_time",
                "step_size_limit",
            ),
            "exit_record": ("ExitTimes",),
            "exit_times": ("first_exit_times",),
            "flatness": (
                "flatness_bound",
                "posterior_variance",
            ),
            "flatness_record": ("FlatnessBound",),
            "minibatch_noise": ("gradient_noise",),
            "one_step": ("expected_loss_change",),
            "one_step_record": ("ExpectedLossChange",),
            "stable": ("stable_noise",),
            "tail_record": (
                "GradientNoise",
                "TailIndex",
            ),
            "tails": ("tail_index",),
        },
    )
