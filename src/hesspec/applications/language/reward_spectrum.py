"""The spiked law of a reward head: when a preference is visible in the spectrum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hesspec.applications.language.reward_record import RewardLaw
from hesspec.backend.numbers import real_array
from hesspec.spectra.marchenko_pastur import marchenko_pastur_edges
from hesspec.spectra.record import Array
from hesspec.spectra.spiked import spiked_outlier

__all__ = ["reward_law"]


def reward_law(good: Any, bad: Any) -> RewardLaw:
    r"""Predict bulk and outlier of the Hessian of a linear reward at zero weights, and compare with its eigenvalues.

    At w = 0 the Hessian of the pairwise loss of r = w^T phi is (1/4) mean d d^T, d = phi(good) - phi(bad). If the
    differences have the mean delta and independent noise of equal variance 2 s^2 in each of the d features, its bulk
    is that of the Marchenko-Pastur law with the variance v = s^2/2, and with h = \|delta\|^2 / (2 s^2) there is one
    outlier at v (1 + h) (1 + d / (N h)) if h > sqrt(d / N): a preference is visible in the spectrum if its signal
    passes this threshold.

    Parameters
    ----------
    good, bad : array or Tensor (N, d)
        Features of the sequences that are preferred and of the others, such as hidden states at their last tokens.

    Returns
    -------
    RewardLaw

    Raises
    ------
    ValueError
        If shapes differ or are not (N, d) with N of at least 2, values are not finite, or the differences of all pairs
        are equal.

    Notes
    -----
    Ours, by the theorems that `hesspec.spectra.spiked.spiked_outlier` names. The
    estimate of h is corrected for the bias of \|mean d\|^2, and its standard error is that of Gaussian noise. Features
    of real networks have correlated noise: eigenvalues beyond the edge may then be unrelated to preferences, and the
    law is only a reference, as for the bulk of G.

    Examples
    --------
    >>> import torch, hesspec
    >>> noise = torch.randn(2, 1_000, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> delta = torch.full((200,), 0.1, dtype=torch.float64)  # h = 200 * 0.1^2 / 2 = 1
    >>> found = hesspec.language.reward_law(noise[0] + delta, noise[1])
    >>> round(found.strength, 1), found.visible, round(found.outlier, 1), bool(abs(found.eigenvalues[0] - 1.2) < 0.05)
    (1.0, True, 1.2, True)
    """
    first, second = _features("good", good), _features("bad", bad)
    if first.shape != second.shape:
        raise ValueError(
            f"good has shape {first.shape} and bad {second.shape}; a pair has one row of features in each, in this "
            "order."
        )
    differences = first - second
    count, width = differences.shape
    mean = differences.mean(axis=0)
    spread = float(((differences - mean) ** 2).sum()) / ((count - 1) * width)
    if not spread > 0:
        raise ValueError("The differences of features are the same for all pairs: there is no noise to compare with.")
    aspect, variance = width / count, spread / 4
    length = float(mean @ mean)
    # |mean d|^2 exceeds |delta|^2 by d spread / N in expectation.
    strength = max(length / spread - aspect, 0.0)
    low, high = marchenko_pastur_edges(aspect, variance)
    predicted = spiked_outlier(strength, aspect, variance)
    _, sizes, right = np.linalg.svd(differences / (2 * math.sqrt(count)), full_matrices=False)
    return RewardLaw(
        pairs=count,
        features=width,
        strength=strength,
        strength_error=math.sqrt((4 * strength + 2 * aspect) / count),
        variance=variance,
        low_edge=low,
        high_edge=high,
        visible=predicted.visible,
        outlier=predicted.value,
        alignment=predicted.alignment,
        eigenvalues=np.concatenate([sizes**2, np.zeros(width - sizes.size)]),
        measured_alignment=float(right[0] @ mean) ** 2 / length if length else 0.0,
    )


def _features(name: str, given: Any) -> Array:
    values = real_array(name, given)
    if values.ndim != 2 or len(values) < 2 or not values.shape[1]:
        raise ValueError(f"{name} has shape {values.shape}; it must be (N, d), the features of at least 2 sequences.")
    return values
