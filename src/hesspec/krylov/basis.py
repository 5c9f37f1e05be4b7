"""The orthonormal basis of a Krylov space."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.krylov.storage import Storage
from hesspec.krylov.vectors import CHUNK, norm

__all__ = ["KrylovBasis"]

# Rows are allocated in blocks, so that a basis grows without being copied and no larger than it has to be.
BLOCK = 16
# "Twice is enough" (Daniel, Gragg, Kaufman and Stewart 1976): a second pass is needed only where the first one shortens
# the vector. What is left along the basis is the basis's own departure from orthonormality times the share that was
# removed. Their limit, half of the squared norm, lets it grow from vector to vector where residuals are near the
# rounding level (to 53 eps in 232 steps on a reflection; 9 eps with this one); elsewhere the share is near eps.
CANCELLATION = 0.99
# Largest entry of a scaled float16 vector, below the largest float16, 65,504; powers of two scale without rounding.
# Entries down to 2^-29 of the largest keep all 11 bits.
LARGEST_HALF = 2.0**15


class KrylovBasis:
    """Orthonormal vectors in R^p, in the order in which they are appended.

    Parameters
    ----------
    size : int
        p.
    dtype, device
        Of the vectors.
    storage : Storage
        How they are kept. With half of the bits, what is kept differs from a vector by up to `kept_error` of it.
    """

    def __init__(self, size: int, *, dtype: torch.dtype, device: torch.device, storage: Storage | None = None) -> None:
        self._size, self._dtype, self._device = size, dtype, device
        self._storage = storage or Storage()
        self._blocks: list[Tensor] = []
        self._scales: list[float] = []
        self._sharpness: list[float] = []

    def __len__(self) -> int:
        """Number of vectors."""
        return len(self._scales)

    def __getitem__(self, index: int) -> Tensor:
        """Vector `index`, shape (p,), as it is kept; a view where it is kept in full on the device."""
        index = range(len(self))[index]
        row = self._blocks[index // BLOCK][index % BLOCK].to(device=self._device, dtype=self._dtype)
        return row.mul_(1 / self._scales[index]) if self._storage.half else row

    def append(self, vector: Tensor) -> None:
        """Add a unit vector (p,) that is orthogonal to all before it."""
        count, scale = len(self), 1.0
        if count == BLOCK * len(self._blocks):
            rows = min(BLOCK, self._size - count)
            self._blocks.append(self._storage.allocate(rows, self._size, dtype=self._dtype, device=self._device))
        row = self._blocks[-1][count % BLOCK]
        if self._storage.half:
            self._sharpness.append(_sharpness(vector, 1.0))
            if row.dtype == torch.float16:
                low, high = torch.aminmax(vector)
                scale = 2.0 ** math.floor(math.log2(LARGEST_HALF / max(float(high), -float(low))))
            for kept, part in zip(torch.split(row, CHUNK), torch.split(vector, CHUNK), strict=True):
                kept.copy_(part * scale)
        else:
            row.copy_(vector)
        self._scales.append(scale)

    @property
    def rounded(self) -> bool:
        """Whether what is kept of a vector is not the vector itself."""
        return self._storage.half

    def kept_error(self, vector: Tensor, length: float) -> float:
        """Inner product of vector/length, a unit vector, with what is lost of a kept vector, at most.

        Rounding errors of entries are independent, up to half a unit u in the last place of each: their inner product
        with w has the standard deviation u ||q * w|| / sqrt(3) <= u ||q||_4 ||w||_4 / sqrt(3). Three of them, and never
        more than u ||q|| ||w||.
        """
        if not self.rounded or not self._sharpness:
            return 0.0
        unit = torch.finfo(self._storage.dtype(self._dtype)).eps / 2
        return unit * min(1.0, 3**0.5 * max(self._sharpness) * _sharpness(vector, length))

    def around(self, rows: npt.NDArray[np.intp] | None) -> npt.NDArray[np.intp]:
        """Indices of all vectors in the blocks that hold these ones, which cost no more than these alone; or of all."""
        everything = np.arange(len(self))
        return everything if rows is None else everything[np.isin(everything // BLOCK, rows // BLOCK)]

    def orthogonalise(self, vector: Tensor, rows: npt.NDArray[np.intp] | None = None) -> Tensor:
        """Remove from `vector` (p,), in place, its components along the basis.

        Classical Gram-Schmidt, with a second pass where cancellation asks for one.

        Parameters
        ----------
        vector : Tensor (p,)
        rows : int array, optional
            The vectors to look at, whole blocks as `around` gives them; all by default.

        Returns
        -------
        Tensor (len(self),)
            The components that the first pass removed, float64, on the CPU; zero for vectors that were not looked at.
        """
        blocks = set(range(len(self._blocks))) if rows is None else set((rows // BLOCK).tolist())
        before = norm(vector)
        removed = self._project_out(vector, blocks)
        if norm(vector) < CANCELLATION * before:
            self._project_out(vector, blocks)
        return removed

    def _project_out(self, vector: Tensor, blocks: set[int]) -> Tensor:
        if not len(self):
            return torch.empty(0, dtype=torch.float64)
        scales = torch.tensor(self._scales, dtype=torch.float64, device=self._device)
        components = torch.zeros(len(self), dtype=torch.float64, device=self._device)
        for rows, columns, part in self._pieces(vector, blocks):
            components[rows] += torch.mv(columns, part)
        components /= scales
        coefficients = (components / scales).to(self._dtype)
        for rows, columns, part in self._pieces(vector, blocks):
            part.addmv_(columns.T, coefficients[rows], alpha=-1)
        return components.cpu()

    def _pieces(self, vector: Tensor, blocks: set[int]) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Chunks of blocks of rows, in the vector's precision on its device, beside those of the vector."""
        for number in sorted(blocks):
            block = self._blocks[number][: len(self) - BLOCK * number]
            rows = slice(BLOCK * number, BLOCK * number + len(block))
            for columns, part in zip(torch.split(block, CHUNK, dim=1), torch.split(vector, CHUNK), strict=True):
                yield rows, columns.to(device=self._device, dtype=self._dtype), part

    def subspace(self, coefficients: Tensor) -> KrylovBasis:
        """Basis of k orthonormal combinations of the vectors, in full precision on the device.

        Parameters
        ----------
        coefficients : Tensor (len(self), k)
            With orthonormal columns.
        """
        scales = torch.tensor(self._scales, dtype=torch.float64)
        weights = (coefficients.to("cpu", torch.float64) / scales[:, None]).to(device=self._device, dtype=self._dtype)
        result = KrylovBasis(self._size, dtype=self._dtype, device=self._device)
        # A block at a time, so that beside both bases no more than a block is in memory.
        for chosen in torch.split(weights, BLOCK, dim=1):
            combined = torch.zeros(chosen.shape[1], self._size, dtype=self._dtype, device=self._device)
            for rows, columns, part in self._pieces(combined.T, set(range(len(self._blocks)))):
                part.T.addmm_(chosen[rows].T, columns)
            for vector in combined:
                result.append(vector)
        return result


def _sharpness(vector: Tensor, length: float) -> float:
    """4-norm of vector/length, a unit vector: 1 where it is one entry, (3/p)^(1/4) where entries are normal."""
    total = 0.0
    for part in torch.split(vector, CHUNK):
        squares = (part / length).square_()
        total += float(torch.dot(squares, squares))
    return math.sqrt(math.sqrt(total))
