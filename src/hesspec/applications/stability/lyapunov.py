"""Lyapunov exponents along a training run, by QR decompositions of products with the linearised steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesspec.applications.stability.exponents import LinearStep
from hesspec.applications.stability.record import LyapunovExponents
from hesspec.backend.algebra import SymmetricOperator, check_operator
from hesspec.backend.numbers import check_counts, check_seed, is_whole
from hesspec.errors import NonFiniteError

__all__ = ["StepJacobian", "lyapunov_exponents"]


class StepJacobian:
    r"""Derivative of a gradient-descent step, a linear map on vectors (p,), or (2p,) with momentum.

    Without momentum it is I - eta (Hess + decay). With momentum it maps :math:`(w_t, w_{t-1})`,

    .. math:: w_{t+1} = (1 + \mu - \eta \, \mathrm{decay}) w_t - \eta \, \mathrm{Hess} \, w_t - \mu k w_{t-1},

    where k = 1 - eta decay if weight decay is decoupled, and k = 1 if it is part of the gradient.

    Parameters
    ----------
    hessian
        Hess at the starting point of the step: any symmetric operator with `shape`, `dtype`, `device` and `@`.
    learning_rate, momentum, weight_decay, decoupled
        See `sharpness_dimension`. With momentum the learning rate must be the same in all steps.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    def __init__(
        self,
        hessian: SymmetricOperator,
        learning_rate: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        self._step = LinearStep(learning_rate, momentum, weight_decay, decoupled)
        self._hessian, self._count = hessian, check_operator(hessian)
        size = self._count * (2 if momentum > 0 else 1)
        self.shape, self.dtype, self.device = (size, size), hessian.dtype, hessian.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Product with a vector (p,) or the columns of a matrix (p, k); with momentum, 2p instead of p."""
        step = self._step
        now = vectors[: self._count]
        kept = 1 + step.momentum - step.learning_rate * step.weight_decay
        image: Tensor = kept * now - step.learning_rate * (self._hessian @ now)
        if not step.momentum > 0:
            return image
        return torch.cat([image - step.determinant * vectors[self._count :], now])


def lyapunov_exponents(jacobians: Iterable[Any], *, count: int, discard: int = 0, seed: int = 0) -> LyapunovExponents:
    """Compute the largest Lyapunov exponents along a run: mean growth rates of perturbations under its steps.

    Parameters
    ----------
    jacobians : iterable
        Derivative of each step at its starting point, in order: anything with `shape` (d, d), `dtype`, `device` and
        `@`, such as `StepJacobian`, or a dense tensor. The iterable is read once, and each derivative is used before
        the next is requested, so a generator may train the model in between.
    count : int
        Number of exponents, k; each step takes k products.
    discard : int
        Number of initial steps, during which the directions settle, that are excluded from the means.
    seed : int
        Seed of the random initial directions.

    Returns
    -------
    LyapunovExponents

    Raises
    ------
    ValueError
        If a number is out of range, the maps differ in size, or there are at most `discard` of them.
    NonFiniteError
        If a product contains NaN or infinity.

    Notes
    -----
    Benettin, Galgani, Giorgilli and Strelcyn (1980): the directions are orthonormalised after each step by a QR
    decomposition, and the exponents are the means of ln|R_ii|. For the given maps, their error is due to the settling
    of the directions and decreases like 1/steps.

    Examples
    --------
    >>> import torch, hesspec
    >>> hessian = torch.diag(torch.tensor([25.0, 2.0, 5.0, 9.0]))
    >>> steps = [hesspec.stability.StepJacobian(hessian, learning_rate=0.1)] * 60
    >>> hesspec.stability.lyapunov_exponents(steps, count=2, discard=30).exponents.round(4)
    array([ 0.4055, -0.2231])
    """
    check_counts(count=count)
    if not is_whole(discard, 0):
        raise ValueError(f"discard is {discard!r}; it must be a nonnegative integer.")
    directions: Tensor | None = None
    size, growth = 0, []
    for index, jacobian in enumerate(jacobians):
        if directions is None:
            size = int(jacobian.shape[0])
            if count > size:
                raise ValueError(f"count is {count}, but there are only {size} exponents.")
            generator = torch.Generator().manual_seed(check_seed(seed))
            drawn = torch.randn(size, int(count), generator=generator, dtype=torch.float64, device="cpu")
            directions = torch.linalg.qr(drawn)[0].to(device=jacobian.device, dtype=jacobian.dtype)
        if tuple(jacobian.shape) != (size, size):
            raise ValueError(
                f"The map of step {index} has shape {tuple(jacobian.shape)}, but earlier ones have ({size}, {size})."
            )
        image = (jacobian @ directions).detach()
        if not image.isfinite().all():
            raise NonFiniteError(
                f"The product with the map of step {index} contains NaN or infinity; the run may have diverged."
            )
        directions, lengths = torch.linalg.qr(image)
        with np.errstate(divide="ignore"):
            growth.append(np.log(lengths.diagonal().abs().double().cpu().numpy()))
    if len(growth) <= discard:
        raise ValueError(f"There are {len(growth)} steps, of which {discard} are discarded; provide more steps.")
    kept = np.array(growth[discard:])
    return LyapunovExponents(
        exponents=kept.mean(axis=0),
        growth=kept,
        dimension=size,
        discarded=int(discard),
        products=int(count) * len(growth),
    )
