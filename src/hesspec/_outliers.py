"""Which resolved eigenvalues stand apart from the bulk."""

import numpy as np
import numpy.typing as npt

__all__ = ["outlier_mask"]

Array = npt.NDArray[np.float64]

SEPARATION = 3.0


def outlier_mask(eigenvalues: Array, error_bounds: Array, bulk_edges: tuple[float, float]) -> npt.NDArray[np.bool_]:
    """Mark the resolved eigenvalues that a gap separates from the bulk.

    Parameters
    ----------
    eigenvalues, error_bounds : array (k,)
        Resolved eigenvalues, in any order, and the bounds of their errors.
    bulk_edges : (float, float)
        Outermost unresolved nodes of the measure on the left and on the right.

    Returns
    -------
    bool array (k,)

    Notes
    -----
    Each side of zero by itself, with s_1 >= s_2 >= ... the magnitudes of its resolved eigenvalues and, last, of the
    bulk's edge. Where the s_i are the order statistics of a power-law tail, the normalised log-spacings
    i log(s_i / s_{i+1}) are independent and exponential with one mean (Renyi 1953; the mean is Hill's estimator), so a
    spacing is a gap where it exceeds three times their median. The innermost gap, counted from the bulk, is the
    border: what lies beyond it are outliers.
    """
    mask = np.zeros(eigenvalues.size, bool)
    for sign, edge in ((1.0, bulk_edges[1]), (-1.0, -bulk_edges[0])):
        side = np.flatnonzero(sign * eigenvalues > 0)
        side = side[np.argsort(-np.abs(eigenvalues[side]), kind="stable")]
        sizes = np.abs(eigenvalues[side])
        next_sizes = np.append(sizes[1:], max(edge, 0.0))
        with np.errstate(divide="ignore"):
            spacings = np.arange(1, side.size + 1) * np.log(sizes / next_sizes)
        clear = sizes - error_bounds[side] > next_sizes
        gaps = np.flatnonzero(clear & (spacings > SEPARATION * np.median(spacings))) if side.size else []
        if len(gaps):
            mask[side[: gaps[-1] + 1]] = True
    return mask
