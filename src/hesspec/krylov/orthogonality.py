"""How orthogonal Lanczos vectors are, known without looking at them: the omega recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hesspec.krylov.state import fields

__all__ = ["OrthogonalityEstimate"]

Array = npt.NDArray[np.float64]

# Runs of the recurrence, each with errors of its own. The largest of so many is beyond the truth with all but certainty
# where errors are as they are assumed to be. (Errors added with the sign of the value, as is often done, can keep an
# exponentially growing part of it small, and miss it.)
SAMPLES = 16
# Standard deviation of an error's component along another vector, in units of what independent entries give: three
# times 1/sqrt(p) of the error's norm.
INDEPENDENT = 3.0


class OrthogonalityEstimate:
    r"""Samples of the inner products omega_{j,k} = q_j . q_k of the last two Lanczos vectors with all before them.

    From A q_j = beta_{j-1} q_{j-1} + alpha_j q_j + beta_j q_{j+1} + f_j, written for j and for k and multiplied with
    the other's vector,

    .. math:: \beta_j \omega_{j+1,k} = \beta_k \omega_{j,k+1} + (\alpha_k - \alpha_j) \omega_{j,k}
              + \beta_{k-1} \omega_{j,k-1} - \beta_{j-1} \omega_{j-1,k} + q_j \cdot f_k - q_k \cdot f_j .

    The last two terms are unknown and drawn at random (Simon 1984), in several samples. Errors of the entries of a
    product are as good as independent, so that their component along a unit vector is of the order of 1/sqrt(p) of
    their norm. Where reorthogonalisation finds more than any sample has, the assumption was wrong, and is raised to
    what was found.

    Parameters
    ----------
    size : int
        p.
    """

    def __init__(self, size: int) -> None:
        self._random = np.random.default_rng(0)
        self._last: Array = np.empty((SAMPLES, 0))
        self._before: Array = np.empty((SAMPLES, 0))
        self._share = min(1.0, INDEPENDENT / size**0.5)

    def predicted(self, alpha: Sequence[float], beta: Sequence[float], error: float) -> Array:
        """Inner products of the residual beta_j q_{j+1} with q_k, k < j.

        Parameters
        ----------
        alpha : sequence (j + 1,)
        beta : sequence (j,)
        error : float
            Norm of the error of a step, at most.

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
        """Compare the largest product that was predicted with the one that was found; how much larger it was."""
        ratio = max(1.0, found / predicted) if predicted > 0 else 1.0
        self._share = min(1.0, self._share * ratio)
        return ratio

    def accept(self, products: Array) -> None:
        """Take the vector that comes next as the last one, with these inner products (samples, j + 1)."""
        self._before, self._last = self._last, np.clip(products, -1, 1)

    def random(self, count: int, level: float) -> Array:
        """Samples (samples, count) of inner products of this size."""
        return np.asarray(level * self._random.standard_normal((SAMPLES, count)))

    def replace(self, level: float) -> None:
        """Take another vector in place of the last one, with inner products of this size."""
        self._last = self.random(self._last.shape[1], level)

    def state(self) -> dict[str, Any]:
        """All that it needs to go on."""
        return {
            "random": self._random.bit_generator.state,
            "last": self._last,
            "before": self._before,
            "share": self._share,
        }

    @property
    def steps(self) -> int:
        """Number of vectors that it knows the last one's inner products with."""
        return int(self._last.shape[1])

    def restore(self, state: dict[str, Any]) -> None:
        """Resume where `state` was taken.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is not the state of an estimate.
        """
        kept = fields(state, {"random": dict, "last": np.ndarray, "before": np.ndarray, "share": float})
        self._random.bit_generator.state = kept["random"]
        self._last, self._before, self._share = kept["last"], kept["before"], kept["share"]
        if self._last.shape != (SAMPLES, self.steps) or self._before.shape != (SAMPLES, max(self.steps - 1, 0)):
            raise ValueError("an estimate of orthogonality is not that of a process")
