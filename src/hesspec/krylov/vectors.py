"""Inner products of long vectors, accumulated in float64 whatever the vectors' precision."""

import math

import torch
from torch import Tensor

__all__ = ["CHUNK", "inner", "norm", "random_vector"]

# Sums over float32 vectors run in float64 over chunks. In float32 alone, an inner product of 28 million terms is off by
# 1e-4 of ||q|| ||w||, which would spoil orthogonality and pass for asymmetry of the operator.
CHUNK = 1 << 16
# Those that norms and the entries of T come of, over shorter ones: relative errors of squared norms were at most 9e-8,
# below eps, in 132 normal vectors of 6e4 to 3e7 entries.
SHORT_CHUNK = 1 << 14
# Where squares of float32 numbers, and their sums over a chunk, neither overflow nor vanish beside eps of the sum.
SAFE_SQUARES = (1e-20, 1e38)


def inner(a: Tensor, b: Tensor) -> float:
    """a·b of two vectors (p,), accumulated in float64."""
    if a.dtype == torch.float64:
        # Pairwise, which a plain dot product is not.
        return float((a * b).sum())
    pieces = zip(torch.split(a, SHORT_CHUNK), torch.split(b, SHORT_CHUNK), strict=True)
    return float(torch.stack([torch.dot(x, y) for x, y in pieces]).sum(dtype=torch.float64))


def norm(a: Tensor) -> float:
    """Euclidean norm of a vector (p,), accumulated in float64, without overflow or underflow of the squares."""
    if not a.numel():
        return 0.0
    if a.dtype == torch.float32:
        square = inner(a, a)
        if SAFE_SQUARES[0] < square < SAFE_SQUARES[1]:
            return math.sqrt(square)
    plain = float(torch.linalg.vector_norm(a, dtype=torch.float64))
    if 1e-140 < plain < 1e140:
        return plain
    largest = float(a.abs().max())
    if largest == 0 or not largest < torch.inf:
        return largest
    return largest * float(torch.linalg.vector_norm(a.double() / largest))


def random_vector(size: int, generator: torch.Generator, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal vector (size,), the same for every dtype and device.

    Drawn in float32 on the CPU: its direction is uniform on the sphere up to rounding.
    """
    return torch.randn(size, generator=generator).to(device=device, dtype=dtype)
