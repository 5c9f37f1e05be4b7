"""Record of the evidence and the effective number of parameters for several prior precisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hesspec.backend.shown import TextTable
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
        Number of parameters with the prior N(0, I / precision), p.
    squared_norm : float
        Sum of the squares of these parameters at the measured point.
    log_likelihood : float
        log p(data | parameters) at the measured point, in nats, including all constants.
    scale : float
        Factor that turns the loss into the negative log-likelihood, up to a constant.
    noise : float
        Standard deviation of a Gaussian likelihood; 1 for others.
    prior_precision : array (n,)
        Prior precisions, ascending, in units of 1 / parameter^2.
    log_evidence, log_evidence_lower, log_evidence_upper : array (n,)
        log p(data | precision) in nats, and the ends of its 95% interval.
    effective_parameters, effective_parameters_lower, effective_parameters_upper : array (n,)
        Effective number of parameters, and the ends of its 95% interval.
    best, best_lower, best_upper : float
        Precision that maximises the evidence, and the ends of its 95% interval.
    attributes : mapping
        Attributes of the spectrum.
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

    def _coordinates(self) -> dict[str, Any]:
        return {"prior": self.prior_precision}

    def check(self) -> None:
        """Raise ValueError unless precisions are positive and ascending, and values inside their intervals."""
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
                bool(((lower <= value) & (value <= upper)).all()), f"Its {name} are not all inside their intervals."
            )

    def at_best(self, *, name: str) -> float:
        """Value of a field over priors at the best one; NaN if it is not among the priors."""
        place = np.flatnonzero(np.isclose(self.prior_precision, self.best, rtol=1e-12, atol=0))
        return float(getattr(self, name)[place[0]]) if place.size else float("nan")

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "parameters": f"{self.dimension:,}",
            "log-likelihood": f"{self.log_likelihood:.6g} nats",
            "noise": f"{self.noise:.4g}",
            **self._at_best(),
            "best prior precision": f"{self.best:.4g} [{self.best_lower:.4g}, {self.best_upper:.4g}]",
        }

    def _at_best(self) -> dict[str, str]:
        """Evidence and effective parameters at the best prior, as text."""
        names = {"log_evidence": ("log evidence", " nats"), "effective_parameters": ("effective parameters", "")}
        text = {}
        for name, (words, unit) in names.items():
            value, low, high = (self.at_best(name=name + end) for end in ("", "_lower", "_upper"))
            if not np.isnan(value):
                text[words] = f"{value:.6g} [{low:.6g}, {high:.6g}]{unit}"
        return text

    def tables(self) -> list[TextTable]:
        """Table of the priors."""
        intervals = [
            [f"{value:.5g} [{low:.5g}, {high:.5g}]" for value, low, high in zip(*columns, strict=True)]
            for columns in (
                (self.log_evidence, self.log_evidence_lower, self.log_evidence_upper),
                (self.effective_parameters, self.effective_parameters_lower, self.effective_parameters_upper),
            )
        ]
        rows = list(zip([f"{prior:.4g}" for prior in self.prior_precision], *intervals, strict=True))
        return [TextTable("", ("prior precision", "log evidence (nats)", "effective parameters"), rows)]

    def plot(self) -> Figure:
        """Plot the evidence and the effective number of parameters against the prior, with intervals.

        Returns
        -------
        matplotlib.figure.Figure
            Bands are 95% intervals; the dashed line is the precision that maximises the evidence, with its interval.
        """
        from hesspec.applications.laplace.figure import plot_evidence  # noqa: PLC0415 - imports matplotlib

        return plot_evidence(self)
