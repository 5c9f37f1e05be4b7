"""Covariances of outputs, and predictive distributions."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Covariance", "Prediction"]


class Covariance(NamedTuple):
    """Posterior covariance of a model's outputs at m inputs.

    Attributes
    ----------
    mean : Tensor (m, C)
        Outputs of the model at the maximum of the posterior.
    values : Tensor (m, C, C)
        Covariance J Psi J^T of the outputs of each input, in squared units of the outputs.
    error : Tensor (m,)
        Bound on ||values - J Psi J^T||_2, without rounding. For the low-rank covariance it holds with a probability of
        99.9%; its values are too large by at most this.
    iterations : int
        Number of block conjugate-gradient iterations, over all blocks of right-hand sides; 0 if they were not used.
    condition, condition_without : float
        Bounds on the condition number of the solves with and without the preconditioner; the number of iterations grows
        with its square root.
    """

    mean: Tensor
    values: Tensor
    error: Tensor
    iterations: int
    condition: float
    condition_without: float


class Prediction(NamedTuple):
    """Predictive distribution at m inputs.

    Attributes
    ----------
    mean : Tensor (m, C)
        Class probabilities for a classifier; mean of the targets for a regression.
    variance : Tensor (m, C)
        For a regression, variance of the targets: posterior variance of the outputs plus noise^2. For a classifier,
        posterior variance of the outputs (logits).
    error : Tensor (m,)
        Bound on the error of `variance`; see `Covariance`. Zero for "network samples".
    """

    mean: Tensor
    variance: Tensor
    error: Tensor
