r"""Growth exponents of linearised gradient descent, as functions of the eigenvalues of the Hessian.

Gradient descent with momentum mu and weight decay, :math:`v \leftarrow \mu v + \nabla L`, :math:`w \leftarrow w - \eta
v`, maps the coordinates :math:`(w_t, w_{t-1})` along an eigenvector of eigenvalue lambda by a 2 x 2 matrix with the
characteristic polynomial x^2 - T x + D. With its value at 1 called e = 1 + D - T,

- weight decay in the gradient: D = mu, e = eta (lambda + decay);
- decoupled weight decay, w <- (1 - eta decay) w - eta v: D = mu (1 - eta decay), e = (1 - mu) eta decay + eta lambda.

Without momentum D = 0 and the only root is 1 - e = 1 - eta (lambda + decay), for both kinds of decay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["LinearStep"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LinearStep:
    """Linearised gradient-descent step: the growth of a perturbation along an eigenvector.

    Parameters
    ----------
    learning_rate : float
        Learning rate eta, positive.
    momentum : float
        Heavy-ball momentum mu, in [0, 1).
    weight_decay : float
        Weight decay, nonnegative.
    decoupled : bool
        Whether weight decay shrinks the weights instead of being part of the gradient.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    decoupled: bool = False

    def __post_init__(self) -> None:
        """Check the ranges of all parameters."""
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(
                f"learning_rate is {self.learning_rate!r}; it must be positive and finite. The exponents of a step of "
                "length zero are all zero and carry no information."
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum!r}; it must be at least 0 and below 1.")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay is {self.weight_decay!r}; it must be at least 0 and finite.")
        if self.decoupled and self.learning_rate * self.weight_decay >= 1:
            raise ValueError(
                f"A decoupled weight_decay of {self.weight_decay!r} at a learning rate of {self.learning_rate!r} "
                "removes all weights in one step; their product must be below 1."
            )

    @property
    def determinant(self) -> float:
        """Product D of the two roots; 0 without momentum."""
        kept = 1 - self.learning_rate * self.weight_decay if self.decoupled else 1.0
        return self.momentum * kept

    def _at_one(self, eigenvalues: Array) -> Array:
        """Value e of the characteristic polynomial at 1."""
        decay = self.weight_decay * (1 - self.momentum if self.decoupled else 1.0)
        return np.asarray(self.learning_rate * (eigenvalues + decay))

    def _eigenvalue(self, at_one: float) -> float:
        decay = self.weight_decay * (1 - self.momentum if self.decoupled else 1.0)
        return at_one / self.learning_rate - decay

    @property
    def threshold(self) -> float:
        """Largest eigenvalue that does not expand, where the root is -1: 2/eta for plain gradient descent."""
        return self._eigenvalue(2 * (1 + self.determinant))

    @property
    def lower_threshold(self) -> float:
        """Smallest eigenvalue that does not expand, where the root is 1: 0 without weight decay."""
        return self._eigenvalue(0.0)

    @property
    def centre(self) -> float:
        """Eigenvalue of the fastest contraction; exponents decrease up to it and increase beyond it."""
        return self._eigenvalue(1 + self.determinant)

    @property
    def lowest(self) -> float:
        """Smallest value of `leading`, at the fastest contraction: -inf without momentum, ln(D) / 2 otherwise."""
        return math.log(self.determinant) / 2 if self.determinant > 0 else -math.inf

    def leading(self, eigenvalues: Array) -> Array:
        """Logarithm of the larger modulus of the two roots for each eigenvalue; ln|1 - eta lambda| for plain descent.

        For real roots it is ln|1 - 2 e / (s + 1 - D + e)| with s^2 = (1 - D)^2 - 2 e (1 + D) + e^2, where e is replaced
        by 2 (1 + D) - e beyond the centre. This is exact at both thresholds, where the direct formula would give
        rounding errors instead of zero.
        """
        product = self.determinant
        e = self._at_one(eigenvalues)
        folded = np.where(e <= 1 + product, e, 2 * (1 + product) - e)
        real, s = np.ones(e.shape, bool), np.abs(1 - folded)
        if product > 0:
            square = (1 - product) ** 2 - 2 * folded * (1 + product) + folded**2
            real, s = square >= 0, np.sqrt(np.maximum(square, 0))
        trace = np.abs(1 + product - folded)
        near = real & (folded > -0.5)
        with np.errstate(divide="ignore"):
            inner = np.log1p(-2 * np.where(near, folded, 0.0) / np.where(near, s + 1 - product + folded, 1.0))
            outer = np.log((trace + s) / 2)
        return np.asarray(np.where(real, np.where(near, inner, outer), self.lowest))
