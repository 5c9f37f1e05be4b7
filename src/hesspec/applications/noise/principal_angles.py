"""Principal angles between eigenspaces: `hesspec.principal_angles`."""

from __future__ import annotations

from hesspec.applications.noise.angles_record import PrincipalAngles
from hesspec.backend.numbers import is_whole
from hesspec.matrices import symbol_of
from hesspec.measure.eigenpairs import Eigenpairs
from hesspec.measure.eigenspaces import principal_cosines

__all__ = ["principal_angles"]


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
    Every angle is known within the sum of the largest angles between the computed and the true spaces
    (`hesspec.measure.eigenspaces.eigenspace_errors`), as each k-dimensional part of a space is taken to another by
    turning its vectors by at most the largest angle. Eigenvalues within the space do not count as others, so that the
    bounds are useful where the `vector_errors` of close eigenvalues are not. They hold if no eigenvalue in a gap was
    missed.

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
    found = principal_cosines(first, second, count)
    names = [symbol_of(str(pairs.spectrum.attributes.get("matrix", "operator"))) for pairs in (first, second)]
    return PrincipalAngles(
        cosines=found.values,
        low=found.low,
        high=found.high,
        first_error=found.errors[0],
        second_error=found.errors[1],
        dimension=p,
        first=names[0],
        second=names[1],
    )
