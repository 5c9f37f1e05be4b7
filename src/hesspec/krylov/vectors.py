"""Inner products of long vectors, accumulated in float64 whatever the vectors' precision."""

import torch
from torch import Tensor

__all__ = ["inner", "norm", "random_vector"]


def inner(a: Tensor, b: Tensor) -> float:
    """a·b of two vectors (p,); products in their dtype, the sum in float64."""
    return float((a * b).sum(dtype=torch.float64))


def norm(a: Tensor) -> float:
    """Euclidean norm of a vector (p,), accumulated in float64, without overflow or underflow of the squares."""
    plain = float(torch.linalg.vector_norm(a, dtype=torch.float64))
    if 1e-140 < plain < 1e140 or not a.numel():
        return plain
    largest = float(a.abs().max())
    if largest == 0 or not largest < torch.inf:
        return largest
    return largest * float(torch.linalg.vector_norm(a.to(torch.float64) / largest))


def random_vector(size: int, generator: torch.Generator, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal vector (size,), the same for every dtype and device.

    Drawn in float32 on the CPU: its direction is uniform on the sphere up to rounding.
    """
    return torch.randn(size, generator=generator).to(device=device, dtype=dtype)
