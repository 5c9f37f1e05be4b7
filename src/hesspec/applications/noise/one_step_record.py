"""Expected change of the loss in one step of stochastic gradient descent, as a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hesspec.backend.number_text import plus_minus
from hesspec.spectra.checked_fields import refuse_unless
from hesspec.spectra.record import Array, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ExpectedLossChange"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ExpectedLossChange(Record):
    """Expected change of the loss in one step to second order, from `hesspec.noise.expected_loss_change`.

    All changes are in units of the loss.

    Attributes
    ----------
    first_order : float
        -eta g^T P^-1 g with the gradient g of the loss on all data; not positive.
    gradient_term : float
        (eta^2 / 2) g^T P^-1 Hess P^-1 g, the second-order change of a step with all data.
    noise_term : float
        (eta^2 / 2) tr(P^-1 Hess P^-1 C) with the covariance C of minibatch gradients, estimated.
    noise_standard_error : float
        Its standard error; 0 if the minibatch is all data.
    learning_rate : float
        Learning rate eta.
    batch_size, samples : int
        Number of samples of a minibatch, and of all data.
    batches : int
        Number of minibatches that were drawn.
    preconditioner : str
        "none", "Tensor", or the class of the optimiser.
    """

    KIND: ClassVar[str] = "expected change of the loss"
    FORMAT_ATTRIBUTE: ClassVar[str] = "hesspec_loss_change_format"
    FORMAT: ClassVar[int] = 1
    DIMENSIONS: ClassVar[Mapping[str, tuple[str | int, ...]]] = {}
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("noise_standard_error", "learning_rate")

    first_order: float
    gradient_term: float
    noise_term: float
    noise_standard_error: float
    learning_rate: float
    batch_size: int
    samples: int
    batches: int
    preconditioner: str

    def check(self) -> None:
        """Raise ValueError if values are inconsistent."""
        refuse_unless(self.first_order <= 0, f"Its first-order change is {self.first_order}, which is positive.")
        refuse_unless(0 < self.batch_size <= self.samples, f"It has minibatches of {self.batch_size} samples.")

    @property
    def second_order(self) -> float:
        """Second-order change, (eta^2 / 2) tr(P^-1 Hess P^-1 M_b), with the standard error of the noise term."""
        return self.gradient_term + self.noise_term

    @property
    def value(self) -> float:
        """Expected change of the loss to second order, with the standard error of the noise term."""
        return self.first_order + self.second_order

    @property
    def best_learning_rate(self) -> float:
        """Learning rate at which the expected loss falls most, to second order; infinity if it falls for any."""
        if self.second_order <= 0:
            return np.inf
        return -self.first_order * self.learning_rate / (2 * self.second_order)

    def at(self, learning_rates: Array) -> Array:
        """Expected change (n,) with other learning rates (n,), for the same minibatches."""
        ratio = np.asarray(learning_rates, dtype=float) / self.learning_rate
        return np.asarray(ratio * self.first_order + ratio**2 * self.second_order)

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "expected change": plus_minus(self.value, self.noise_standard_error),
            "first order": f"{self.first_order:.4g}",
            "second order, of the mean gradient": f"{self.gradient_term:.4g}",
            "second order, of the noise": plus_minus(self.noise_term, self.noise_standard_error),
            "learning rate": f"{self.learning_rate:.4g} (the loss falls most with {self.best_learning_rate:.4g})",
            "minibatches": f"{self.batches} of {self.batch_size:,} of {self.samples:,} samples",
            "preconditioner": self.preconditioner,
        }

    def plot(self, ax: Axes | None = None) -> Figure:
        """Plot the expected change against the learning rate.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; by default those of a new figure.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from hesspec.applications.noise.one_step_figure import plot_loss_change  # noqa: PLC0415 - asked only here

        return plot_loss_change(self, ax)
