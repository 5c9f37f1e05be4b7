"""Evidence and effective number of parameters of a network for many prior precisions, to keep and to plot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Evidence"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Evidence(Record):
    """Log evidence and effective number of parameters for several prior precisions, from one spectrum.

    Attributes
    ----------
    dimension : int
        p, the number of parameters that have the prior N(0, I / precision).
    squared_norm : float
        Sum of their squares at the measured point.
    log_likelihood : float
        log p(data | parameters) at the measured point, in nats, with all constants.
    scale : float
        What the loss is multiplied by to be minus the log-likelihood, up to a constant.
    noise : float
        Standard deviation of a Gaussian likelihood; 1 for others.
    prior_precision : array (n,)
        Ascending, in units of 1 / parameter^2.
    log_evidence, log_evidence_lower, log_evidence_upper : array (n,)
        log p(data | precision), in nats, with the ends of its interval of 95%.
    effective_parameters, effective_parameters_lower, effective_parameters_upper : array (n,)
        Number of them, with the ends of its interval of 95%.
    best, best_lower, best_upper : float
        The precision that maximises the evidence, and the interval in which the maximum is with a probability of 95%.
    attributes : mapping
        Of the spectrum.
    """

    KIND: ClassVar = "evidence of a Laplace approximation"
    FORMAT_ATTRIBUTE: ClassVar = "hesspec_laplace_format"
    FORMAT: ClassVar = 1
    DIMENSIONS: ClassVar = dict.fromkeys(
        (
            "prior_precision",
            "log_evidence",
            "log_evidence_lower",
            "log_evidence_upper",
            "effective_parameters",
            "effective_parameters_lower",
            "effective_parameters_upper",
        ),
        ("prior",),
    )
    FINITE: ClassVar = tuple(DIMENSIONS)
    NOT_NEGATIVE: ClassVar = ("squared_norm", "effective_parameters_upper", "best", "best_lower", "best_upper")

    dimension: int
    squared_norm: float
    log_likelihood: float
    scale: float
    noise: float
    prior_precision: Array
    log_evidence: Array
    log_evidence_lower: Array
    log_evidence_upper: Array
    effective_parameters: Array
    effective_parameters_lower: Array
    effective_parameters_upper: Array
    best: float
    best_lower: float
    best_upper: float

    def check(self) -> None:
        """Raise ValueError where precisions are not positive and ascending, or a value is outside of its interval."""
        refuse_unless(self.dimension >= 1, f"Its 'dimension' is {self.dimension}.")
        for name in ("scale", "noise"):
            refuse_unless(getattr(self, name) > 0, f"Its {name!r} is {getattr(self, name)}, but should be positive.")
        refuse_unless(
            bool((self.prior_precision > 0).all() and (np.diff(self.prior_precision) > 0).all()),
            "Its prior precisions are not positive and ascending.",
        )
        for name in ("log_evidence", "effective_parameters"):
            value, lower, upper = (getattr(self, name + end) for end in ("", "_lower", "_upper"))
            refuse_unless(
                bool(((lower <= value) & (value <= upper)).all()), f"Its {name} are not all in their intervals."
            )

    def plot(self) -> Figure:
        """Figure of the evidence and the effective number of parameters against the prior, with intervals.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.applications.laplace.figure import plot_evidence  # noqa: PLC0415 - matplotlib, asked only here

        return plot_evidence(self)
