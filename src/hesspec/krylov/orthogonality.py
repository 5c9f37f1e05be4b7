"""Estimate of the orthogonality of Lanczos vectors by the omega recurrence, without inner products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hesspec.krylov.state_dicts import fields

__all__ = ["OrthogonalityEstimate"]

Array = npt.NDArray[np.float64]

# Number of runs of the recurrence, each with its own random errors. Their maximum is almost certainly above the truth
# if errors are distributed as assumed. (Adding errors with the sign of the value, as is often done, can keep an
# exponentially growing component small and miss it.)
SAMPLES = 16
# Standard deviation of the component of an error along another vector, relative to that of independent entries: three
# times 1/sqrt(p) of the norm of the error.
INDEPENDENT = 3.0


class OrthogonalityEstimate:
    r"""Samples of the inner products omega_{j,k} = q_j . q_k of the last two Lanczos vectors with all earlier ones.

    From A q_j = beta_{j-1} q_{j-1} + alpha_j q_j + beta_j q_{j+1} + f_j, for j times q_k and for k times q_j,

    .. math:: \beta_j \omega_{j+1,k} = \beta_k \omega_{j,k+1} + (\alpha_k - \alpha_j) \omega_{j,k}
              + \beta_{k-1} \omega_{j,k-1} - \beta_{j-1} \omega_{j-1,k} + q_j \cdot f_k - q_k \cdot f_j .

    The last two terms are unknown and are drawn at random (Simon 1984), in several samples. Errors of the entries of a
    product are nearly independent, so their component along a unit vector is of the order of 1/sqrt(p) of their norm.
    If reorthogonalisation finds larger values than any sample, the assumption was wrong, and the estimate is raised
    accordingly.

    Parameters
    ----------
    size : int
        Dimension p.
    """

    def __init__(self, size: int) -> None:
        self._random = np.random.default_rng(0)
        self._last: Array = np.empty((SAMPLES, 0))
        self._before: Array = np.empty((SAMPLES, 0))
        self._share = min(1.0, INDEPENDENT / size**0.5)

    def predicted(self, alpha: Sequence[float], beta: Sequence[float], error: float) -> Array:
        """Predict the inner products of the residual beta_j q_{j+1} with q_k, k < j.

        Parameters
        ----------
        alpha : sequence (j + 1,)
        beta : sequence (j,)
        error : float
            Bound on the norm of the error of a step.

        Returns
        -------
        array (samples, j)
        """
        j = len(beta)
        if not j:
            return np.empty((SAMPLES, 0))
        diagonal, side, last = np.asarray(alpha, float), np.asarray(beta, float), self._last
        one, zero = np.ones((SAMPLES, 1)), np.zeros((SAMPLES, 1))
        products: Array = (
            side * np.hstack([last[:, 1:], one])
            + (diagonal[:j] - diagonal[j]) * last
            + np.append(0.0, side[:-1]) * np.hstack([zero, last[:, :-1]])
            - side[-1] * np.hstack([self._before, one])
        )
        products += self._share * error * self._random.standard_normal(products.shape)
        return products

    def learn(self, predicted: float, found: float) -> float:
        """Compare the largest predicted inner product with the one that was found; return the ratio."""
        ratio = max(1.0, found / predicted) if predicted > 0 else 1.0
        self._share = min(1.0, self._share * ratio)
        return ratio

    def accept(self, products: Array) -> None:
        """Advance to the next vector, with these inner products (samples, j + 1)."""
        self._before, self._last = self._last, np.clip(products, -1, 1)

    def random(self, count: int, level: float) -> Array:
        """Draw samples (samples, count) of inner products of this size."""
        return np.asarray(level * self._random.standard_normal((SAMPLES, count)))

    def replace(self, level: float) -> None:
        """Replace the last vector by another one, with inner products of this size."""
        self._last = self.random(self._last.shape[1], level)

    def improve(self, rows: npt.NDArray[np.intp], level: float) -> None:
        """Replace inner products of the last vector with these earlier ones by values of this size."""
        self._last[:, rows] = self.random(len(rows), level)

    @property
    def last(self) -> Array:
        """Largest samples (j,) of the inner products of the last vector with all earlier ones, as magnitudes."""
        return np.asarray(np.abs(self._last).max(axis=0))

    def state(self) -> dict[str, Any]:
        """State from which the estimate can be resumed."""
        return {
            "random": self._random.bit_generator.state,
            "last": self._last,
            "before": self._before,
            "share": self._share,
        }

    @property
    def steps(self) -> int:
        """Number of vectors whose inner products with the last one are estimated."""
        return int(self._last.shape[1])

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the estimate from `state`.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is not a valid state.
        """
        kept = fields(state, {"random": dict, "last": np.ndarray, "before": np.ndarray, "share": float})
        self._random.bit_generator.state = kept["random"]
        self._last, self._before, self._share = kept["last"], kept["before"], kept["share"]
        if self._last.shape != (SAMPLES, self.steps) or self._before.shape != (SAMPLES, max(self.steps - 1, 0)):
            raise ValueError("an estimate of orthogonality does not match its process")
