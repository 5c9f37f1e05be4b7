"""Orthonormal basis of a Krylov space."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.backend.arithmetic import full_float32
from hesspec.krylov.storage import Storage, restored_storage
from hesspec.krylov.vectors import CHUNK, PIECE, Space, norm

__all__ = ["KrylovBasis"]

# Rows are allocated in blocks, so that a basis grows without copies and no larger than necessary.
BLOCK = 16
# "Twice is enough" (Daniel, Gragg, Kaufman and Stewart 1976): a second pass is needed only if the first one shortens
# the vector. The remaining component along the basis is the basis's own deviation from orthonormality times the share
# that was removed. Their limit, half of the squared norm, lets it grow from vector to vector if residuals are near the
# rounding level (to 53 eps in 232 steps on a reflection; 9 eps with this limit); otherwise the share is near eps.
CANCELLATION = 0.99
# By Pythagoras, the share along the basis above which at most that much is left.
REMOVED = math.sqrt(1 - CANCELLATION**2)
# Largest entry of a scaled float16 vector, below the largest float16, 65,504; powers of two scale without rounding.
# Entries down to 2^-29 of the largest keep all 11 bits.
LARGEST_HALF = 2.0**15


class KrylovBasis:
    """Orthonormal vectors in R^p, in the order in which they are appended.

    In a sharded space, each rank stores its slice of every vector, and all vectors below are slices; components and
    norms are the same on all ranks, which must make the same calls.

    Parameters
    ----------
    space : Space
        The space R^p.
    dtype, device
        Dtype and device of the vectors.
    storage : Storage
        How they are stored. With half of the bits, a stored vector has an error of up to `kept_error`.
    """

    def __init__(
        self, space: Space, *, dtype: torch.dtype, device: torch.device, storage: Storage | None = None
    ) -> None:
        self._space, self.dtype, self.device = space, dtype, device
        self._storage = storage or Storage()
        self._blocks: list[Tensor] = []
        self._scales: list[float] = []
        # The same on the device, with room for more: copied there in each step, they would have it waited for.
        self._scales_there = torch.ones(0, dtype=torch.float64, device=device)
        self._sharpness: list[float] = []

    def __len__(self) -> int:
        """Number of vectors."""
        return len(self._scales)

    def __getitem__(self, index: int) -> Tensor:
        """Return the stored vector `index`, shape (p,); a view if it is stored in full precision on the device."""
        index = range(len(self))[index]
        row = self._blocks[index // BLOCK][index % BLOCK].to(device=self.device, dtype=self.dtype)
        return row.mul_(1 / self._scales[index]) if self._storage.half else row

    def append(self, vector: Tensor) -> None:
        """Append a unit vector (p,) that is orthogonal to all earlier ones."""
        row, scale = self._new_row(), 1.0
        if self._storage.half:
            sharpness, largest = self._shape_of(vector, 1.0)
            self._sharpness.append(sharpness)
            if row.dtype == torch.float16 and largest:
                scale = 2.0 ** math.floor(math.log2(LARGEST_HALF / largest))
            for kept, part in zip(torch.split(row, PIECE), torch.split(vector, PIECE), strict=True):
                kept.copy_(part * scale)
        else:
            row.copy_(vector)
        self._add_scale(scale)

    def _add_scale(self, scale: float) -> None:
        count = len(self)
        if count == len(self._scales_there):
            self._scales_there = torch.cat([self._scales_there, self._scales_there.new_ones(BLOCK)])
        if scale != 1.0:
            self._scales_there[count].fill_(scale)
        self._scales.append(scale)

    def _new_row(self) -> Tensor:
        count = len(self)
        if count == BLOCK * len(self._blocks):
            rows = min(BLOCK, self._space.size - count)
            self._blocks.append(self._storage.allocate(rows, self._space.length, dtype=self.dtype, device=self.device))
        return self._blocks[-1][count % BLOCK]

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored vector, for all ranks together."""
        return self._storage.row_bytes(self._space.size, self.dtype)

    def kept_row(self, index: int) -> Tensor:
        """Return vector `index` in its stored representation, (p,), for a snapshot."""
        return self._blocks[index // BLOCK][index % BLOCK]

    def state(self) -> dict[str, Any]:
        """State from which the basis can be restored, apart from its rows."""
        return {
            "scales": list(self._scales),
            "sharpness": list(self._sharpness),
            "half": self._storage.half,
            "place": self._storage.place,
        }

    @classmethod
    def restored(
        cls,
        state: dict[str, Any],
        space: Space,
        read: Callable[[int, Tensor], None],
        *,
        dtype: torch.dtype,
        device: Any,
    ) -> KrylovBasis:
        """Restore the basis from `state`.

        Parameters
        ----------
        state : dict
        space : Space
        read : callable
            Reads row `index`, as returned by `kept_row`, into a tensor (p,).
        dtype, device
            Dtype and device of the vectors.

        Raises
        ------
        ValueError
            If it is not a valid state.
        OSError
            If there is no space for it on the disk.
        """
        basis = cls(space, dtype=dtype, device=device, storage=restored_storage(state))
        scales, sharpness = (list(map(float, state[name])) for name in ("scales", "sharpness"))
        if len(sharpness) != (len(scales) if basis.rounded else 0) or not all(scales):
            raise ValueError("the scales of a basis do not match its vectors")
        for index, scale in enumerate(scales):
            read(index, basis._new_row())
            basis._add_scale(scale)
        basis._sharpness = sharpness
        return basis

    @property
    def rounded(self) -> bool:
        """Whether stored vectors are rounded."""
        return self._storage.half

    def kept_error(self, vector: Tensor, length: float) -> float:
        """Bound on the inner product of the unit vector vector/length with the rounding error of a stored vector.

        Rounding errors of entries are independent, up to half a unit u in the last place of each: their inner product
        with w has the standard deviation u ||q * w|| / sqrt(3) <= u ||q||_4 ||w||_4 / sqrt(3). The bound is three
        standard deviations, and at most u ||q|| ||w||.
        """
        if not self.rounded or not self._sharpness:
            return 0.0
        unit = torch.finfo(self._storage.dtype(self.dtype)).eps / 2
        return unit * min(1.0, 3**0.5 * max(self._sharpness) * self._shape_of(vector, length)[0])

    def around(self, rows: npt.NDArray[np.intp] | None) -> npt.NDArray[np.intp]:
        """Return indices of all vectors in the blocks that contain these, which cost no more, or of all vectors."""
        everything = np.arange(len(self))
        return everything if rows is None else everything[np.isin(everything // BLOCK, rows // BLOCK)]

    def orthogonalise(
        self, vector: Tensor, rows: npt.NDArray[np.intp] | None = None, length: float | None = None
    ) -> Tensor:
        """Remove from `vector` (p,), in place, its components along the basis.

        Classical Gram-Schmidt, with a second pass if cancellation requires it.

        Parameters
        ----------
        vector : Tensor (p,)
        rows : int array, optional
            Vectors to include, in whole blocks as returned by `around`; all by default.
        length : float, optional
            Norm of `vector`, if it is known.

        Returns
        -------
        Tensor (len(self),)
            Components that the first pass removed, float64, on the CPU; zero for vectors that were not included.
        """
        before = self._space.norm(vector) if length is None else length
        return self._orthogonalise([vector], [before], rows)[0]

    def orthogonalise_two(
        self, one: Tensor, other: Tensor, rows: npt.NDArray[np.intp], lengths: tuple[float, float]
    ) -> Tensor:
        """Remove from two vectors (p,), in place, their components along the basis, which is read once for both.

        Parameters
        ----------
        one, other : Tensor (p,)
        rows : int array
            Vectors to include, in whole blocks as returned by `around`.
        lengths : (float, float)
            Norms of the two vectors.

        Returns
        -------
        Tensor (2, len(self))
            Components that the first pass removed from each, as returned by `orthogonalise`.
        """
        return self._orthogonalise([one, other], lengths, rows)

    def _orthogonalise(
        self, vectors: Sequence[Tensor], lengths: Sequence[float], rows: npt.NDArray[np.intp] | None
    ) -> Tensor:
        blocks = set(range(len(self._blocks))) if rows is None else set((rows // BLOCK).tolist())
        removed = self._project_out(vectors, blocks)
        again = [
            vector
            for vector, part, before in zip(vectors, removed, lengths, strict=True)
            if norm(part) > REMOVED * before
        ]
        if again:
            self._project_out(again, blocks)
        return removed

    @full_float32()
    def _project_out(self, vectors: Sequence[Tensor], blocks: set[int]) -> Tensor:
        if not len(self):
            return torch.zeros(len(vectors), 0, dtype=torch.float64, device="cpu")
        scales = self._scales_there[: len(self)]
        components = torch.zeros(len(vectors), len(self), dtype=torch.float64, device=self.device)
        # Products of one piece with several vectors find it in the processor's cache.
        for rows, columns, parts in self._pieces(vectors, blocks):
            for found, part in zip(components, parts, strict=True):
                found[rows] += _products(columns, part)
        components /= scales
        self._space.ranks.sum_(components)
        coefficients = (components / scales).to(self.dtype)
        for rows, columns, parts in self._pieces(vectors, blocks):
            for found, part in zip(coefficients, parts, strict=True):
                part.addmv_(columns.T, found[rows], alpha=-1)
        return components.cpu()

    def _pieces(self, vectors: Sequence[Tensor], blocks: set[int]) -> Iterator[tuple[slice, Tensor, Sequence[Tensor]]]:
        """Yield chunks of blocks of rows, in the vectors' precision on their device, with those of the vectors."""
        length = self._space.length
        for number in sorted(blocks):
            block = self._blocks[number][: len(self) - BLOCK * number]
            rows = slice(BLOCK * number, BLOCK * number + len(block))
            # Elsewhere than on a CPU each call costs more than its arithmetic on a chunk: whole rows where they are.
            size = CHUNK if self.device.type == "cpu" else max(length, 1)
            places = (slice(begin, begin + size) for begin in range(0, max(length, 1), size))
            pieces: Iterable[tuple[slice, Tensor]] = ((place, block[:, place]) for place in places)
            if self.device.type != block.device.type:
                pieces = self._brought(block)
            for place, columns in pieces:
                yield rows, columns.to(device=self.device, dtype=self.dtype), [vector[place] for vector in vectors]

    def _brought(self, block: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield pieces of rows that are in the host's memory or on disk, on the device, with their places.

        A piece of a row is contiguous, and copied without a wait for the device where its memory is pinned; one of
        several rows would be gathered by the host first. All pieces are copied to one place, by the stream that reads
        them: they need little memory, and none is overwritten before it has been read.
        """
        length = self._space.length
        room = torch.empty(len(block), min(PIECE, length), dtype=block.dtype, device=self.device)
        for begin in range(0, max(length, 1), PIECE):
            place = slice(begin, min(begin + PIECE, length))
            here = room[:, : place.stop - begin]
            for into, row in zip(here, block[:, place], strict=True):
                into.copy_(row, non_blocking=True)
            yield place, here

    @full_float32()
    def subspace(self, coefficients: Tensor) -> KrylovBasis:
        """Basis of k orthonormal combinations of the vectors, in full precision on the device.

        Parameters
        ----------
        coefficients : Tensor (len(self), k)
            With orthonormal columns.
        """
        scales = torch.tensor(self._scales, dtype=torch.float64, device="cpu")
        weights = (coefficients.to("cpu", torch.float64) / scales[:, None]).to(device=self.device, dtype=self.dtype)
        result = KrylovBasis(self._space, dtype=self.dtype, device=self.device)
        # One block at a time, so that only one block is in memory in addition to both bases.
        for chosen in torch.split(weights, BLOCK, dim=1):
            combined = torch.zeros(chosen.shape[1], self._space.length, dtype=self.dtype, device=self.device)
            for rows, columns, (part,) in self._pieces([combined.T], set(range(len(self._blocks)))):
                part.T.addmm_(chosen[rows].T, columns)
            for vector in combined:
                result.append(vector)
        return result

    def orthonormal(self, coefficients: Tensor) -> Tensor:
        """Convert coefficients (len(self), k) of exactly orthonormal vectors to those of the stored vectors.

        The stored ones are Q = N R with N orthonormal, R upper triangular: N C = Q R^{-1} C. The Lanczos relation of T
        holds for N to the square of the error of orthogonality only, but for Q to this error itself.
        """
        gram = torch.zeros(len(self), len(self), dtype=torch.float64, device=self.device)
        for begin in range(0, self._space.length, CHUNK):
            rows = torch.cat([block[:, begin : begin + CHUNK].to(self.device) for block in self._blocks])
            part = rows[: len(self)].double()
            gram += part @ part.T
        self._space.ranks.sum_(gram)
        scales = torch.tensor(self._scales, dtype=torch.float64, device="cpu")
        root = torch.linalg.cholesky(gram.cpu() / scales / scales[:, None], upper=True)
        found: Tensor = torch.linalg.solve_triangular(root, coefficients.to("cpu", torch.float64), upper=True)
        return found

    def _shape_of(self, vector: Tensor, length: float) -> tuple[float, float]:
        """4-norm of vector/length, a unit vector, and the largest magnitude of this rank's entries of it.

        The first is 1 where it is one entry, (3/p)^(1/4) where entries are normal.
        """
        fourths, largest = [], [vector.new_zeros(())]
        for part in torch.split(vector, PIECE):
            squares = (part / length).square_()
            fourths.append(torch.dot(squares, squares))
            if len(squares):
                largest.append(squares.max())
        numbers = torch.stack([torch.stack(fourths).sum(dtype=torch.float64), torch.stack(largest).max().double()])
        mine, most = numbers.cpu().tolist()
        return math.sqrt(math.sqrt(self._space.ranks.total(mine))), math.sqrt(most)


def _products(rows: Tensor, vector: Tensor) -> Tensor:
    """Inner products (k,) of rows (k, n) with a vector (n,), in float64 if there is more than one chunk of n."""
    whole = len(vector) // CHUNK * CHUNK
    if whole < CHUNK or len(vector) == CHUNK:
        return torch.mv(rows, vector)
    # One batched product of all chunks, whose sums are in float64.
    chunks = rows[:, :whole].view(len(rows), -1, CHUNK).transpose(0, 1)
    found = torch.bmm(chunks, vector[:whole].view(-1, CHUNK, 1)).sum(0, dtype=torch.float64).squeeze(1)
    return found + torch.mv(rows[:, whole:], vector[whole:])
