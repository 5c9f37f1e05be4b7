"""The outlier of a sample covariance matrix with one strong direction, and the threshold of its visibility."""

from __future__ import annotations

import math
from typing import NamedTuple

from hesspec.spectra.marchenko_pastur import marchenko_pastur_edges

__all__ = ["SpikedOutlier", "spiked_outlier"]


class SpikedOutlier(NamedTuple):
    """Outlier of the spiked model, for large matrices; see `spiked_outlier`.

    Attributes
    ----------
    visible : bool
        Whether the strength is above the threshold, so that there is an outlier.
    value : float
        The largest eigenvalue: the outlier, or else the upper edge of the bulk.
    alignment : float
        Squared cosine between its eigenvector and the direction; 0 below the threshold.
    """

    visible: bool
    value: float
    alignment: float


def spiked_outlier(strength: float, aspect: float, variance: float) -> SpikedOutlier:
    r"""Largest eigenvalue of X^T X / N for rows of X with covariance variance I, and a mean or a stronger direction.

    Rows are m + z, with z of covariance v I and \|m\|^2 = h v; or of mean 0 and covariance v (I + h u u^T). For N and p
    to infinity, one eigenvalue leaves the Marchenko-Pastur bulk if and only if h > sqrt(p / N), and then tends to
    v (1 + h) (1 + aspect / h).

    Parameters
    ----------
    strength : float
        Signal to noise h, at least 0.
    aspect : float
        p / N, positive.
    variance : float
        v, positive, in units of eigenvalues.

    Returns
    -------
    SpikedOutlier

    Raises
    ------
    ValueError
        If a number is out of range.

    Notes
    -----
    Baik, Ben Arous and Péché (2005) for the threshold; Baik and Silverstein (2006) for the outlier; Paul (2007) for the
    eigenvector; Benaych-Georges and Nadakuditi (2012) for a mean in place of a covariance. Fluctuations are of relative
    size N^(-1/2) above the threshold, and N^(-2/3) below it.

    Examples
    --------
    >>> [round(spiked_outlier(h, 0.2, 0.5).value, 4) for h in (1.0, 2.0, 0.2)]
    [1.2, 1.65, 1.0472]
    """
    _, edge = marchenko_pastur_edges(aspect, variance)
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength is {strength!r}; it must be nonnegative and finite.")
    if strength <= math.sqrt(aspect):
        return SpikedOutlier(visible=False, value=edge, alignment=0.0)
    value = variance * (1 + strength) * (1 + aspect / strength)
    return SpikedOutlier(visible=True, value=value, alignment=(1 - aspect / strength**2) / (1 + aspect / strength))
