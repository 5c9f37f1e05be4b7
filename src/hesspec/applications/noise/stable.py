"""Symmetric alpha-stable random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hesspec.applications.noise.exit_laws import check_alpha

__all__ = ["stable_noise"]


def stable_noise(
    alpha: float,
    shape: int | Sequence[int],
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    r"""Draw independent symmetric alpha-stable numbers of scale 1, with characteristic function exp(-\|w\|^alpha).

    Parameters
    ----------
    alpha : float
        Tail index in (0, 2]: P(\|X\| > x) decreases like x^-alpha. 2 is the normal distribution of variance 2, 1 the
        Cauchy distribution.
    shape : int or sequence of int
        Shape of the result.
    generator : torch.Generator, optional
        Source of random numbers, whose device the result is on; by default PyTorch's global one on the CPU.
    dtype : torch.dtype
        Floating-point dtype of the result; numbers are drawn in float64. Numbers beyond the range of the dtype, which
        are common for a small alpha, are infinite.

    Returns
    -------
    Tensor

    Raises
    ------
    ValueError
        If alpha is not in (0, 2], or dtype is not a floating-point dtype.

    Notes
    -----
    Chambers, Mallows and Stuck (1976): with U uniform on (-pi/2, pi/2) and W exponential of mean 1, X = sin(alpha U) /
    cos(U)^(1/alpha) (cos((1 - alpha) U) / W)^((1 - alpha)/alpha).

    Examples
    --------
    >>> import torch, hesspec
    >>> draws = hesspec.noise.stable_noise(1.5, 100_000, torch.Generator().manual_seed(0))
    >>> round(float(draws.cos().mean()), 2)  # E cos(w X) = exp(-|w|^alpha) at w = 1
    0.37
    """
    alpha = check_alpha(alpha)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}; it must be a floating-point dtype, such as torch.float64.")
    size = (shape,) if isinstance(shape, int) else tuple(shape)
    found = torch.empty(size, dtype=torch.float64, device="cpu" if generator is None else generator.device)
    if alpha == 2:
        return found.normal_(std=math.sqrt(2), generator=generator).to(dtype)
    angle = torch.empty_like(found).uniform_(generator=generator).sub_(0.5).mul_(math.pi)
    # -log(1 - u) for u in [0, 1), which is 0 with probability 2^-53.
    exponential = found.uniform_(generator=generator).neg_().log1p_().neg_().clamp_(min=2.0**-54)
    # In logarithms, as powers take more time than exp and log together.
    power = ((1 - alpha) * angle).cos_().log_().sub_(exponential.log_()).mul_(1 - alpha)
    power.sub_(angle.cos().log_()).div_(alpha)
    return angle.mul_(alpha).sin_().mul_(power.exp_()).to(dtype)
