"""Short random images of long vectors, by which eigenvectors of different runs are compared without being kept."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.krylov.vectors import Space

__all__ = ["SKETCH", "Sketch"]

SKETCH = 2039
"""Length d of a sketch. Prime, so that no layer's width puts related parameters into the same places; inner products of
unit vectors are off by 1/sqrt(d) = 2.2% at most (one standard error), and their squares, where vectors are unrelated,
by 1/d = 0.05%."""

# Seed of the signs; the same in all runs, so that sketches can be compared.
SEED = 1811
# Rows of d numbers that are multiplied by their signs and summed at a time: few enough for the processor's cache and
# for sums in float32.
ROWS = 128


class Sketch:
    """Fixed linear map from R^p to R^d that approximates inner products: random signs, then sums over indices modulo d.

    E[Su·Sv] = u·v, with variance ((u·v)^2 + |u|^2 |v|^2)/d for vectors without a pattern of period d; for p <= d it is
    exact. Signs come from a bit generator whose stream is the same in all versions of NumPy.

    Parameters
    ----------
    space : Space
        The space R^p; in a sharded space, vectors are this rank's slices.
    device : torch.device
        Device of the vectors.

    References
    ----------
    Charikar, Chen and Farach-Colton, "Finding frequent items in data streams" (2002), the count sketch; Achlioptas,
    "Database-friendly random projections" (2003).
    """

    def __init__(self, space: Space, device: torch.device) -> None:
        self._space = space
        words = np.random.PCG64(SEED).random_raw(-(-space.size // 64))
        bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=space.size)[space.begin : space.end]
        self._signs = torch.from_numpy(bits.astype(np.int8)).mul_(2).sub_(1).to(device)

    def __call__(self, vector: Tensor) -> npt.NDArray[np.float64]:
        """Compute the sketch of a vector (p,); shape (d,), or (p,) if p is smaller."""
        size = min(self._space.size, SKETCH)
        total = torch.zeros(size, dtype=torch.float64, device=vector.device)
        chunk = ROWS * size
        # A product with ones sums rows four times as fast as a sum over them.
        ones = torch.ones(ROWS, dtype=vector.dtype, device=vector.device)
        for part, signs in zip(torch.split(vector, chunk), torch.split(self._signs, chunk), strict=True):
            signed = part * signs
            whole = len(part) // size * size
            total[: len(part) - whole] += signed[whole:]
            if whole:
                rows = signed[:whole].view(-1, size)
                total += torch.mv(rows.T, ones[: len(rows)])
        # Indices are those in the whole vector.
        return self._space.ranks.sum_(total.roll(self._space.begin % size)).cpu().numpy()
