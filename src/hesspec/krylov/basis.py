"""The orthonormal basis of a Krylov space."""

import torch
from torch import Tensor

from hesspec.krylov.vectors import norm

__all__ = ["KrylovBasis"]

# Rows are allocated in blocks, so that a basis grows without being copied and no larger than it has to be.
BLOCK = 16
# "Twice is enough" (Daniel, Gragg, Kaufman and Stewart 1976): a second pass is needed only where the first one shortens
# the vector. What is left along the basis is the basis's own departure from orthonormality times the share that was
# removed. Their limit, half of the squared norm, lets it grow from vector to vector where residuals are near the
# rounding level (to 53 eps in 232 steps on a reflection; 9 eps with this one); elsewhere the share is near eps.
CANCELLATION = 0.99
# Inner products are summed in float64 over chunks of this length. In float32 alone, one of 28 million terms is off by
# 1e-4 of ||q|| ||w||, which would spoil orthogonality and pass for asymmetry of the operator.
CHUNK = 1 << 16


class KrylovBasis:
    """Orthonormal vectors in R^p, in the order in which they are appended.

    Parameters
    ----------
    size : int
        p.
    dtype, device
        Of the vectors.
    """

    def __init__(self, size: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._size, self._dtype, self._device = size, dtype, device
        self._blocks: list[Tensor] = []
        self._count = 0

    def __len__(self) -> int:
        """Number of vectors."""
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        """Vector `index`, shape (p,); a view."""
        index = range(self._count)[index]
        return self._blocks[index // BLOCK][index % BLOCK]

    def append(self, vector: Tensor) -> None:
        """Add a unit vector (p,) that is orthogonal to all before it."""
        if self._count == BLOCK * len(self._blocks):
            rows = min(BLOCK, self._size - self._count)
            self._blocks.append(torch.empty(rows, self._size, dtype=self._dtype, device=self._device))
        self._blocks[-1][self._count % BLOCK] = vector
        self._count += 1

    def orthogonalise(self, vector: Tensor) -> Tensor:
        """Remove from `vector` (p,), in place, its components along the basis.

        Classical Gram-Schmidt, with a second pass where cancellation asks for one.

        Returns
        -------
        Tensor (len(self),)
            The components that the first pass removed, float64, on the CPU.
        """
        before = norm(vector)
        removed = self._project_out(vector)
        if norm(vector) < CANCELLATION * before:
            self._project_out(vector)
        return removed

    def _project_out(self, vector: Tensor) -> Tensor:
        components = torch.cat([self._components(block, vector) for block in self._filled()]) if self else None
        if components is None:
            return torch.empty(0, dtype=torch.float64)
        for block, part in zip(self._filled(), torch.split(components, BLOCK), strict=True):
            vector.addmv_(block.T, part.to(self._dtype), alpha=-1)
        return components.cpu()

    def _components(self, block: Tensor, vector: Tensor) -> Tensor:
        total = torch.zeros(len(block), dtype=torch.float64, device=self._device)
        for columns, part in zip(torch.split(block, CHUNK, dim=1), torch.split(vector, CHUNK), strict=True):
            total += torch.mv(columns, part)
        return total

    def subspace(self, coefficients: Tensor) -> "KrylovBasis":
        """Basis of k orthonormal combinations of the vectors.

        Parameters
        ----------
        coefficients : Tensor (len(self), k)
            With orthonormal columns.
        """
        coefficients = coefficients.to(device=self._device, dtype=self._dtype)
        result = KrylovBasis(self._size, dtype=self._dtype, device=self._device)
        # A block at a time, so that beside both bases no more than a block is in memory.
        for columns in torch.split(coefficients, BLOCK, dim=1):
            rows = torch.zeros(columns.shape[1], self._size, dtype=self._dtype, device=self._device)
            for block, part in zip(self._filled(), torch.split(columns, BLOCK), strict=True):
                rows.addmm_(part.T, block)
            for row in rows:
                result.append(row)
        return result

    def _filled(self) -> list[Tensor]:
        return [block[: self._count - BLOCK * i] for i, block in enumerate(self._blocks)]
