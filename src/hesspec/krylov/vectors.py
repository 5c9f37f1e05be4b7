"""Inner products of long vectors, accumulated in float64 whatever the vectors' precision."""

import math

import torch
from torch import Tensor

__all__ = ["CHUNK", "inner", "norm", "random_vector"]

# Inner products are summed in float64 over chunks of this length. In float32 alone, one of 28 million terms is off by
# 1e-4 of ||q|| ||w||, which would spoil orthogonality and pass for asymmetry of the operator.
CHUNK = 1 << 16
# Sums of squares that neither overflow nor lose anything that matters to underflow: squares of entries below
# sqrt(tiny) vanish, and up to 2^31 of them are to be below eps of the sum.
SAFE_SQUARES = {torch.float32: (1e-20, 1e38), torch.float64: (1e-280, 1e300)}


def inner(a: Tensor, b: Tensor) -> float:
    """a·b of two vectors (p,): chunks in their dtype, the sum of the chunks in float64."""
    parts = [torch.dot(x, y) for x, y in zip(torch.split(a, CHUNK), torch.split(b, CHUNK), strict=True)]
    return float(torch.stack(parts).sum(dtype=torch.float64))


def norm(a: Tensor) -> float:
    """Euclidean norm of a vector (p,), accumulated in float64, without overflow or underflow of the squares."""
    low, high = SAFE_SQUARES[a.dtype]
    square = inner(a, a)
    if low < square < high:
        return math.sqrt(square)
    largest = float(a.abs().max())
    if largest == 0 or not largest < torch.inf:
        return largest
    scaled = a.to(torch.float64) / largest
    return largest * math.sqrt(inner(scaled, scaled))


def random_vector(size: int, generator: torch.Generator, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal vector (size,), the same for every dtype and device.

    Drawn in float32 on the CPU: its direction is uniform on the sphere up to rounding.
    """
    return torch.randn(size, generator=generator).to(device=device, dtype=dtype)
