"""Which resolved eigenvalues stand apart from the bulk."""

import numpy as np
import numpy.typing as npt

__all__ = ["outlier_mask"]

Array = npt.NDArray[np.float64]

# Neighbours in a power-law tail, |lambda_k| ~ k^-a, differ by the factor 1 + a/k: a tail has no gap of a quarter beyond
# rank 4a, and bulks of networks have a of 1 to 2. The few largest of a pure tail do pass for outliers.
GAP = 1.25


def outlier_mask(
    eigenvalues: Array, error_bounds: Array, bulk_edges: tuple[float, float], dimension: int
) -> npt.NDArray[np.bool_]:
    """Mark the resolved eigenvalues that a gap separates from the bulk.

    On each side of zero, going outwards from the bulk, the border is the first gap in which the magnitude grows by a
    quarter or more, whatever the errors within their bounds; everything beyond the border is an outlier. At most half
    of the eigenvalues are: the rest is the bulk.

    Parameters
    ----------
    eigenvalues, error_bounds : array (k,)
        Resolved eigenvalues, in any order, and the bounds of their errors.
    bulk_edges : (float, float)
        Outermost points of the unresolved measure on the left and on the right, moved outwards by their error bounds.
    dimension : int
        Number p of all eigenvalues.

    Returns
    -------
    bool array (k,)
    """
    mask = np.zeros(eigenvalues.size, bool)
    for sign, edge in ((1.0, bulk_edges[1]), (-1.0, -bulk_edges[0])):
        side = np.flatnonzero(sign * eigenvalues > 0)
        side = side[np.argsort(-np.abs(eigenvalues[side]), kind="stable")]
        sizes, bounds = np.abs(eigenvalues[side]), error_bounds[side]
        next_largest = np.append((sizes + bounds)[1:], max(edge, 0.0))
        gaps = np.flatnonzero(sizes - bounds >= GAP * next_largest)
        gaps = gaps[gaps < dimension / 2]
        if gaps.size:
            mask[side[: gaps[-1] + 1]] = True
    return mask
