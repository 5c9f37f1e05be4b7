"""Negative log-likelihood of Gaussian targets whose outputs have noise of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hesspec.errors import InputError

__all__ = ["GaussianLikelihood", "noise_per_output"]


class GaussianLikelihood(nn.Module):
    r"""Negative log-likelihood of all targets, sum_{i,c} ((f_ic - y_ic)/s_c)^2/2 + log s_c + log(2 pi)/2.

    Parameters
    ----------
    noise : Tensor (C,)
        Standard deviation of each output, in units of the targets.
    """

    reduction = "sum"

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise: Tensor
        self.register_buffer("noise", noise)
        self.constant = float(noise.double().log().sum()) + len(noise) * math.log(2 * math.pi) / 2

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the negative log-likelihood of outputs and targets (N, C), a scalar in nats."""
        if outputs.dim() < 2 or outputs.shape != targets.shape or outputs.shape[-1] != len(self.noise):
            raise InputError(
                f"noise has {len(self.noise)} numbers, but the outputs have shape {tuple(outputs.shape)} and the "
                f"targets {tuple(targets.shape)}; both must have shape (N, {len(self.noise)})."
            )
        squares = ((outputs - targets) / self.noise).square().sum()
        return squares / 2 + self.constant * (targets.numel() // len(self.noise))


def noise_per_output(noise: Any) -> Tensor | None:
    """Return the noise of each output (C,) if it is given as a tensor or a sequence, None if it is one number.

    Raises
    ------
    ValueError
        If a number is not positive and finite, or the tensor has more than one dimension.
    """
    if (
        not isinstance(noise, Tensor | Sequence)
        or isinstance(noise, str)
        or (isinstance(noise, Tensor) and not noise.dim())
    ):
        return None
    found = torch.as_tensor(noise, dtype=torch.float64)
    if found.dim() != 1 or not found.numel() or not bool(((found > 0) & found.isfinite()).all()):
        raise InputError(
            f"noise is {noise!r}; it must be a positive finite number, or one for each output, as a tensor (C,)."
        )
    return found
