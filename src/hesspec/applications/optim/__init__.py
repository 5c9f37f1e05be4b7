"""Optimisers, where their steps go, and how they compare: AMUSE, Fast Gauss-Newton, shares in eigenspaces."""

from typing import TYPE_CHECKING

from hesspec.backend.lazy import lazily

if TYPE_CHECKING:
    from hesspec.applications.optim.amuse import AMUSE
    from hesspec.applications.optim.comparing import compare_steps
    from hesspec.applications.optim.competitors import competitor_share
    from hesspec.applications.optim.fast_gauss_newton import FastGaussNewton, Step
    from hesspec.applications.optim.figure import plot_steps
    from hesspec.applications.optim.orthogonalisation import orthogonalise
    from hesspec.applications.optim.parameter_groups import muon_groups
    from hesspec.applications.optim.record import CompetitorShare, StepComparison
    from hesspec.applications.optim.share_monitor import ShareMonitor, monitor_shares
    from hesspec.applications.optim.share_record import DominantShare, Shares
    from hesspec.applications.optim.share_run import DominantShareRun
    from hesspec.applications.optim.subspace_shares import dominant_share
    from hesspec.applications.optim.trial_step import StepVectors, step_vectors

__all__ = [
    "AMUSE",
    "CompetitorShare",
    "DominantShare",
    "DominantShareRun",
    "FastGaussNewton",
    "ShareMonitor",
    "Shares",
    "Step",
    "StepComparison",
    "StepVectors",
    "compare_steps",
    "competitor_share",
    "dominant_share",
    "monitor_shares",
    "muon_groups",
    "orthogonalise",
    "plot_steps",
    "step_vectors",
]

if not TYPE_CHECKING:  # type checkers would take any name for one of this module
    # Results can be read from files without PyTorch: names by the module that defines them.
    __getattr__, __dir__ = lazily(
        __name__,
        "hesspec.optim",
        {
            "amuse": ("AMUSE",),
            "comparing": ("compare_steps",),
            "competitors": ("competitor_share",),
            "fast_gauss_newton": (
                "FastGaussNewton",
                "Step",
            ),
            "figure": ("plot_steps",),
            "orthogonalisation": ("orthogonalise",),
            "parameter_groups": ("muon_groups",),
            "record": (
                "CompetitorShare",
                "StepComparison",
            ),
            "share_monitor": ("ShareMonitor", "monitor_shares"),
            "share_record": ("DominantShare", "Shares"),
            "share_run": ("DominantShareRun",),
            "subspace_shares": ("dominant_share",),
            "trial_step": (
                "StepVectors",
                "step_vectors",
            ),
        },
    )
