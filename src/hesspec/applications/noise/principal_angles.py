"""Principal angles between eigenspaces: `hesspec.principal_angles`."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.applications.noise.angles_record import PrincipalAngles
from hesspec.backend.numbers import is_whole
from hesspec.matrices import symbol_of
from hesspec.measure.spectrum import Eigenpairs
from hesspec.spectra.record import Array
from hesspec.spectra.sampling import residual_bound

__all__ = ["principal_angles", "subspace_error"]


def principal_angles(first: Eigenpairs, second: Eigenpairs, count: int | None = None) -> PrincipalAngles:
    r"""Compute the principal angles between the eigenspaces of two matrices, with bounds.

    The cosines are the singular values of P^T Q, with orthonormal bases P and Q of the spaces spanned by the `count`
    eigenvectors of largest absolute eigenvalue (Björck and Golub 1973). Directions within the spaces do not matter, nor
    does the order of close eigenvalues; for single vectors see `hesspec.eigenvector_overlaps`.

    Parameters
    ----------
    first, second : Eigenpairs
        Eigenpairs of two matrices of one network, for the same parameters, from `hesspec.eigenpairs`. They may be of
        different matrices, data or checkpoints.
    count : int, optional
        Dimension k of both spaces; by default the smaller number of eigenvectors.

    Returns
    -------
    PrincipalAngles

    Raises
    ------
    ValueError
        If the numbers of parameters differ, there are fewer than `count` eigenvectors, or none.

    Notes
    -----
    Every angle is known within the sum of the largest angles between the computed and the true spaces, as each
    k-dimensional part of a space is taken to another by turning its vectors by at most the largest angle. For one space
    with unit vectors v_i, residuals r_i and distances d_i of their values to the other eigenvalues,

    .. math:: \sin^2 \theta \le \sum_i (r_i / d_i)^2 / \sigma_{min}(V)^2

    (Davis and Kahan 1970). Eigenvalues within the space do not count as others, so that the bound is useful where the
    `vector_errors` of close eigenvalues are not. Where these say that an eigenvalue may be multiple, it is 1. Like
    them, the bounds hold if no eigenvalue in a gap was missed.

    Examples
    --------
    >>> import torch, hesspec
    >>> values = torch.cat([torch.linspace(-0.1, 0.1, 300), torch.tensor([5.0, 9.0])])
    >>> first, second = (
    ...     hesspec.eigenpairs(torch.diag(v), count=2, steps=32) for v in (values, values.roll(1))
    ... )
    >>> (hesspec.principal_angles(first, second).cosines.round(4) + 0.0).tolist()
    [1.0, 0.0]
    """
    p, other = first.spectrum.dimension, second.spectrum.dimension
    if p != other:
        raise ValueError(
            f"The eigenvectors are of {p:,} and {other:,} parameters; only those of one network, for the same "
            "parameters, can be compared."
        )
    most = min(first.values.size, second.values.size)
    if count is None:
        count = most
    if not is_whole(count, 1):
        raise ValueError(f"count is {count!r}; it must be a positive integer (there are {most} eigenvectors).")
    if count > most:
        raise ValueError(
            f"count is {count}, but only {first.values.size} and {second.values.size} eigenvectors are known: use more "
            "steps in hesspec.eigenpairs, so that more eigenvalues are resolved, or a smaller count."
        )
    bases = [torch.linalg.qr(_chosen(pairs, count, first.vectors.device))[0] for pairs in (first, second)]
    cosines = torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(max=1).cpu().numpy()
    errors = [subspace_error(pairs, count) for pairs in (first, second)]
    names = [symbol_of(str(pairs.spectrum.attributes.get("matrix", "operator"))) for pairs in (first, second)]
    reach, angles = sum(map(math.asin, errors)), np.arccos(cosines)
    return PrincipalAngles(
        cosines=cosines,
        low=np.where(angles + reach < math.pi / 2, np.cos(angles + reach).clip(0, cosines), 0.0),
        high=np.cos(np.maximum(angles - reach, 0)).clip(cosines, 1),
        first_error=errors[0],
        second_error=errors[1],
        dimension=p,
        first=names[0],
        second=names[1],
    )


def subspace_error(pairs: Eigenpairs, count: int) -> float:
    """Bound on the sine of the largest angle between the span of the first eigenvectors and their true span.

    Parameters
    ----------
    pairs : Eigenpairs
    count : int
        Number of eigenvectors, largest absolute eigenvalue first.

    Returns
    -------
    float
        At most 1, which gives no information; see `principal_angles`.
    """
    found, values, residuals = pairs.spectrum, pairs.values[:count], pairs.residuals[:count]
    points = np.concatenate([found.eigenvalues, found.bulk_nodes])
    radii = np.concatenate([found.error_bounds, [residual_bound(found, node) for node in found.bulk_nodes]])
    own = _own_places(found.eigenvalues, pairs.values)
    distances = np.abs(points - values[:, None]) - radii
    alone = distances.copy()
    alone[np.arange(count), own[:count]] = np.inf
    distances[:, own[:count]] = np.inf
    # Eigenvalues that may be multiple have the error 1 although they are far from others.
    multiple = (pairs.vector_errors[:count] >= 1) & (residuals < alone.min(axis=1, initial=np.inf))
    gaps = distances.min(axis=1, initial=np.inf)
    if multiple.any() or not (residuals < gaps).all():
        return 1.0
    # Vectors that are not quite orthogonal span a space that can be further away than each of them.
    least = float(torch.linalg.svdvals(_chosen(pairs, count, pairs.vectors.device)).min())
    return min(1.0, float(np.linalg.norm(residuals / gaps)) / least) if least > 0 else 1.0


def _chosen(pairs: Eigenpairs, count: int, device: torch.device) -> Tensor:
    return pairs.vectors[:, :count].to(device, torch.float64)


def _own_places(eigenvalues: Array, values: Array) -> npt.NDArray[np.intp]:
    """Return the index of each value's eigenvalue in the spectrum; both are in the order of absolute value."""
    places: npt.NDArray[np.intp] = np.empty(values.size, dtype=np.intp)
    start = 0
    for index, value in enumerate(values):
        # Some eigenvalues may be left out, but not so many that too few are left for the others.
        stop = eigenvalues.size - (values.size - index - 1)
        places[index] = start + int(np.argmin(np.abs(eigenvalues[start:stop] - value)))
        start = places[index] + 1
    return places
