"""Tracking of outliers from checkpoint to checkpoint by the overlaps of their eigenvectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from hesspec.spectra.spectrum import Spectrum

__all__ = ["SAME", "eigenvector_overlaps", "steady_outliers", "track_outliers"]

Array = npt.NDArray[np.float64]

# Squared cosine above which an eigenvector counts as the continuation of an earlier one: an angle of 60 degrees. For
# unrelated vectors it is about 1/d = 0.0005 in a sketch of d numbers.
SAME = 0.25
# The median of three p-values is significant at a level if 3/2 times it is, whatever their dependence (Rüger 1978).
MEDIAN_OF_THREE = 1.5


def eigenvector_overlaps(first: Spectrum, second: Spectrum) -> Array:
    """Compute squared cosines between the outliers' eigenvectors of two spectra of the same parameter space.

    The spectra may be of different matrices, data, checkpoints or runs, measured at any time.

    Parameters
    ----------
    first, second : Spectrum
        Spectra to compare.

    Returns
    -------
    array (outliers of first, outliers of second)
        Values in [0, 1], in the order of `Spectrum.outliers`. They are estimated from sketches of d = 2,039 numbers: a
        cosine c has the standard error sqrt((1 + c^2)/d), 2.2 to 3.1%. NaN for outliers beyond the 64 largest resolved
        eigenvalues, which have no sketch.

    Raises
    ------
    ValueError
        If the numbers of parameters differ, or one spectrum was written by a version that stored no sketches.

    Examples
    --------
    >>> import torch, hesspec
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch...>
    >>> values = torch.cat([torch.linspace(-0.1, 0.1, 3000), torch.tensor([5.0, 9.0])])
    >>> swapped = torch.cat([values[:-2], values[-2:].flip(0)])
    >>> first, second = (hesspec.spectrum(torch.diag(v), steps=32) for v in (values, swapped))
    >>> eigenvector_overlaps(first, second).round(1) + 0.0
    array([[0., 1.],
           [1., 0.]])
    """
    if first.dimension != second.dimension:
        raise ValueError(
            f"The spectra are of {first.dimension:,} and {second.dimension:,} parameters; eigenvectors of different "
            "networks cannot be compared."
        )
    return _squared_cosines(_outlier_sketches(first), _outlier_sketches(second))


def track_outliers(spectra: Sequence[Spectrum]) -> list[npt.NDArray[np.int64]]:
    """Number the outliers of successive spectra such that the same eigenvector keeps the same number.

    The outliers of a checkpoint are assigned to tracks such that the sum of squared cosines with the latest eigenvector
    of each track is largest; below a squared cosine of 0.25 an outlier starts a new track. A track may pause while its
    eigenvalue is inside the bulk.

    Parameters
    ----------
    spectra : sequence of Spectrum
        Spectra of one matrix of one network, in the order of training or of sample size.

    Returns
    -------
    list of int array (outliers,)
        Track numbers from 0, one array for each spectrum, in the order of `Spectrum.outliers`; -1 for outliers without
        a sketch.

    Raises
    ------
    ValueError
        See `eigenvector_overlaps`.
    """
    latest: list[Array] = []
    found = []
    for spectrum in spectra:
        _check_same_space(spectrum, spectra[0])
        sketches = _outlier_sketches(spectrum)
        tracks = np.full(len(sketches), -1)
        known = np.flatnonzero(np.isfinite(sketches).all(axis=1))
        if latest and known.size:
            squared = _squared_cosines(np.stack(latest), sketches[known])
            for track, place in zip(*linear_sum_assignment(squared, maximize=True), strict=True):
                if squared[track, place] >= SAME:
                    tracks[known[place]] = track
                    latest[track] = sketches[known[place]]
        for place in known[tracks[known] < 0]:
            tracks[place] = len(latest)
            latest.append(sketches[place])
        found.append(tracks)
    return found


def steady_outliers(spectra: Sequence[Spectrum]) -> list[Spectrum]:
    """Label the outliers of successive spectra such that an eigenvector does not change its label back and forth.

    An eigenvector that is found in the spectra before and after (in the next two at an end of the series) has 3/2 times
    the median of its three p-values; one that is found in one of them, or in neither, keeps its own. A label that one
    spectrum alone gives, or lacks, is thereby overruled by its neighbours, and an eigenvalue that leaves the bulk or
    joins it changes its label once.

    Parameters
    ----------
    spectra : sequence of Spectrum
        Spectra of one matrix of one network, in the order of training.

    Returns
    -------
    list of Spectrum
        The same spectra with `outlier_p_values` of this rule, and with `outliers`, bulk and density that follow from
        them. Fewer than three are returned as they are; spectra without sketches keep their own.

    Raises
    ------
    ValueError
        If the numbers of parameters differ.

    Notes
    -----
    The rule is ours. P-values of one spectrum are adjusted for multiple testing, so a bulk without outliers has one up
    to the level a with probability a at most. The median of three, times 3/2, is up to a for some eigenvector only if
    two of the three spectra have a p-value up to 2a/3. Under any dependence this has at most the probability a, as on
    average at most 2a of three spectra have such a p-value. Eigenvectors that keep their own add at most another a.

    Examples
    --------
    >>> import torch, hesspec
    >>> bulk = torch.linspace(-0.1, 0.1, 3000)
    >>> first, second, third = (
    ...     hesspec.spectrum(torch.diag(torch.cat([bulk, torch.tensor([value])])), steps=48) for value in (5, 0.11, 5)
    ... )
    >>> [int(s.outliers.size) for s in (first, second, third)]
    [1, 0, 1]
    >>> [int(s.outliers.size) for s in hesspec.steady_outliers([first, second, third])]
    [1, 1, 1]
    """
    if len(spectra) < 3:
        return list(spectra)
    sketches = []
    for spectrum in spectra:
        _check_same_space(spectrum, spectra[0])
        sketches.append(spectrum.eigenvector_sketches.astype(np.float64))
    found = []
    for place, spectrum in enumerate(spectra):
        middle = min(max(place, 1), len(spectra) - 2)
        others = [other for other in (middle - 1, middle, middle + 1) if other != place]
        p_values = spectrum.outlier_p_values.copy()
        together = np.full((3, p_values.size), np.nan)
        together[2] = p_values
        for row, other in enumerate(others):
            mine, theirs = _same_vectors(sketches[place], sketches[other])
            together[row, mine] = spectra[other].outlier_p_values[theirs]
        known = np.isfinite(together).all(axis=0)
        p_values[known] = np.minimum(MEDIAN_OF_THREE * np.median(together[:, known], axis=0), 1.0)
        # An outlier separates everything beyond it from the bulk.
        found.append(spectrum.with_outlier_p_values(np.minimum.accumulate(p_values[::-1])[::-1]))
    return found


def _same_vectors(first: Array, second: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Places of the eigenvectors that two spectra have in common, in each of them."""
    squared = _squared_cosines(first, second)
    mine, theirs = linear_sum_assignment(squared, maximize=True)
    same = squared[mine, theirs] >= SAME
    return mine[same], theirs[same]


def _check_same_space(spectrum: Spectrum, first: Spectrum) -> None:
    if spectrum.dimension != first.dimension:
        raise ValueError(
            f"The spectra are of {first.dimension:,} and {spectrum.dimension:,} parameters; only those of one network "
            "can be followed."
        )


def _outlier_sketches(spectrum: Spectrum) -> Array:
    """Sketches of the outliers' eigenvectors, one per row; NaN where there is none."""
    sketches = spectrum.eigenvector_sketches.astype(np.float64)
    places = np.flatnonzero(spectrum.is_outlier)
    if places.size and not sketches.size:
        raise ValueError(
            "The spectrum has no sketches of its eigenvectors: it was written by an earlier version of hesspec. "
            "Measure it again to compare eigenvectors."
        )
    found = np.full((places.size, sketches.shape[1]), np.nan)
    found[places < len(sketches)] = sketches[places[places < len(sketches)]]
    return found


def _squared_cosines(first: Array, second: Array) -> Array:
    if not first.size or not second.size:
        return np.zeros((len(first), len(second)))
    lengths = np.linalg.norm(first, axis=1)[:, None] * np.linalg.norm(second, axis=1)[None]
    return np.asarray(np.minimum((first @ second.T / lengths) ** 2, 1.0))
