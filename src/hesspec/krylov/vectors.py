"""Operations on long vectors, on one rank or many, with inner products accumulated in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hesspec.backend.heap import for_large
from hesspec.backend.ranks import ALONE, Ranks

__all__ = ["CHUNK", "PIECE", "Space", "inner", "norm", "random_vector", "reduce_and_scale"]

# Sums over float32 vectors run in float64 over chunks. In float32 alone, an inner product of 28 million terms has an
# error of 1e-4 ||q|| ||w||, which would destroy orthogonality and look like an asymmetric operator.
CHUNK = 1 << 16
# Norms and the entries of T use shorter chunks, each a row of a matrix: for 132 normal vectors of 6e4 to 3e7 entries,
# relative errors of squared norms were at most 1.5e-8 (2.1e-8 with sums by PyTorch), below eps = 1.2e-7.
ROW = 1 << 12
# Entries of each vector that a step of several operations processes at a time: few enough for the processor's cache, so
# that memory is read once for all of them, and enough to amortise the overhead of PyTorch calls. A step with p = 28
# million took 0.09 s, with an eighth of this 0.14 s, with twice as many 0.08 to 0.10 s (two cores, 32 MB cache).
PIECE = 1 << 19
# Range in which squares of numbers, and their sums over a chunk, neither overflow nor fall below eps of the sum.
SAFE_SQUARES = {torch.float32: (1e-20, 1e38), torch.float64: (1e-280, 1e280)}
# PyTorch draws normal numbers 16 at a time, so pieces of such lengths agree with a single draw.
DRAWN = 1 << 20


def inner(a: Tensor, b: Tensor) -> float:
    """Compute a·b of two vectors (p,), accumulated in float64."""
    if a.dtype == torch.float64 or a.device.type != "cpu":
        return float(_inner(a, b))
    whole = len(a) // ROW * ROW
    rows = a[:whole].reshape(-1, ROW), b[:whole].reshape(-1, ROW)
    # A loop in C over BLAS dot products, without temporary memory: 6 ms at p = 28 million; a Python loop takes 12 ms.
    # Overflow is visible in the result.
    with np.errstate(all="ignore"):
        sums = float(np.vecdot(rows[0].numpy(), rows[1].numpy()).sum(dtype=np.float64))
    return sums + float(torch.dot(a[whole:], b[whole:]))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Compute a·b of two vectors (p,) as a float64 scalar on their device, which does not wait for it."""
    if a.dtype == torch.float64:
        # Pairwise summation, unlike a plain dot product.
        exact: Tensor = (a * b).sum()
        return exact
    whole = len(a) // ROW * ROW
    sums: Tensor = torch.linalg.vecdot(a[:whole].reshape(-1, ROW), b[:whole].reshape(-1, ROW)).sum(dtype=torch.float64)
    return sums + torch.dot(a[whole:], b[whole:])


def _inner_and_square(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Compute a·b and b·b; on devices other than the CPU with one wait for both."""
    if a.device.type == "cpu":
        return inner(a, b), inner(b, b)
    product, square = torch.stack([_inner(a, b), _inner(b, b)]).cpu().tolist()
    return product, square


def norm(a: Tensor) -> float:
    """Compute the norm of a vector (p,), accumulated in float64, without overflow or underflow of squares."""
    if not a.numel():
        return 0.0
    return _root(inner(a, a), a) if a.dtype == torch.float32 else _careful_norm(a)


def _root(square: float, a: Tensor) -> float:
    """Return the norm of a vector, given its square from `inner`."""
    low, high = SAFE_SQUARES[a.dtype]
    return math.sqrt(square) if low < square < high else _careful_norm(a)


def _careful_norm(a: Tensor) -> float:
    """Compute the norm of a vector of any scale."""
    if not a.numel():
        return 0.0
    plain = float(torch.linalg.vector_norm(a, dtype=torch.float64))
    if 1e-140 < plain < 1e140:
        return plain
    largest = float(a.abs().max())
    if largest == 0 or not largest < torch.inf:
        return largest
    return largest * float(torch.linalg.vector_norm(a.double() / largest))


def random_vector(size: int, generator: torch.Generator, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Draw a standard normal vector (size,), the same for every dtype and device.

    It is drawn in float32 on the CPU; its direction is uniform on the sphere up to rounding.
    """
    return torch.randn(size, generator=generator, device="cpu").to(device=device, dtype=dtype)


def reduce_and_scale(w: Tensor, share: float, q: Tensor, length: float) -> Tensor:
    """Compute (w - share q) / length of vectors (p,), in place in w and in one pass over memory."""
    for part, other in _pieces(w, q):
        if share:
            part.add_(other, alpha=-share)
        part.div_(length)
    return w


def _pieces(*vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield corresponding pieces of vectors; whole vectors on devices other than the CPU, where calls are queued."""
    size = PIECE if vectors[0].device.type == "cpu" else max(len(vectors[0]), 1)
    if len(vectors[0]) <= size:
        # Nothing to split; these calls were a seventh of the time of small runs, under a profiler.
        return iter((vectors,))
    return zip(*(torch.split(vector, size) for vector in vectors), strict=True)


class Space:
    """The space R^p, with a slice of each vector on every rank.

    Parameters
    ----------
    size : int
        Dimension p.
    ranks : Ranks, optional
        Processes that share the vectors. By default there is one.

    Attributes
    ----------
    size : int
        Dimension p.
    begin, end : int
        Bounds of this rank's slice of each vector.
    ranks : Ranks
        Processes that share the vectors.
    """

    def __init__(self, size: int, ranks: Ranks = ALONE) -> None:
        self.size, self.ranks = size, ranks
        self.begin, self.end = ranks.part(size)

    @property
    def length(self) -> int:
        """Number of entries of this rank's slice."""
        return self.end - self.begin

    def inner(self, a: Tensor, b: Tensor) -> float:
        """Compute a·b of two vectors from their slices, accumulated in float64; bitwise identical on all ranks."""
        return self.ranks.total(inner(a, b))

    def norm(self, a: Tensor) -> float:
        """Compute the Euclidean norm of a vector from its slices; bitwise identical on all ranks."""
        return self.ranks.norm(norm(a))

    def inner_and_norm(self, a: Tensor, b: Tensor) -> tuple[float, float]:
        """Compute a·b and the norm of b, in one pass over memory."""
        product = square = 0.0
        for part, other in _pieces(a, b):
            along, own = _inner_and_square(part, other)
            product, square = product + along, square + own
        return self._added(product, _root(square, b))

    def combine(
        self, image: Tensor, terms: Sequence[tuple[float, Tensor]], along: Tensor
    ) -> tuple[Tensor, float, float]:
        """Compute w = image + sum of c v over terms (c, v), its inner product with `along`, and its norm, in one pass.

        Parameters
        ----------
        image : Tensor (p,)
            First summand, which is left unchanged.
        terms : sequence of (float, Tensor (p,))
            At least one term.
        along : Tensor (p,)
            Vector for the inner product.
        """
        # Where memory is retained, that of the vector before the last one, which was released in the previous step.
        with for_large(image.nbytes):
            w = torch.empty_like(image)
        vectors = [vector for _, vector in terms]
        product = square = 0.0
        for result, part, other, *parts in _pieces(w, image, along, *vectors):
            torch.add(part, parts[0], alpha=terms[0][0], out=result)
            for (factor, _), vector in zip(terms[1:], parts[1:], strict=True):
                result.add_(vector, alpha=factor)
            along_part, own = _inner_and_square(other, result)
            product, square = product + along_part, square + own
        return (w, *self._added(product, _root(square, w)))

    def _added(self, product: float, length: float) -> tuple[float, float]:
        if self.ranks.size == 1:
            return product, length
        found = self.ranks.numbers(product, length)
        return sum(found[:, 0].tolist()), math.hypot(*found[:, 1].tolist())

    def random_vector(self, generator: torch.Generator, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw this rank's slice of the vector of `random_vector`; it is never whole, and the same for any ranks."""
        if self.ranks.size == 1:
            return random_vector(self.size, generator, dtype=dtype, device=device)
        found = torch.empty(self.length, device="cpu")
        # The last piece is longer than 16 rather than shorter, for which PyTorch draws differently.
        starts = range(0, max(self.size - 16, 1), DRAWN)
        for first, last in zip(starts, [*starts[1:], self.size], strict=True):
            piece = torch.randn(last - first, generator=generator, device="cpu")
            begin, end = max(first, self.begin), min(last, self.end)
            if begin < end:
                found[begin - self.begin : end - self.begin] = piece[begin - first : end - first]
        return found.to(device=device, dtype=dtype)
