"""Simulation of first exit times from a ball around a minimum, all runs at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesspec.applications.noise.exit_laws import check_alpha, check_positive
from hesspec.applications.noise.exit_record import ExitTimes
from hesspec.applications.noise.stable import stable_noise
from hesspec.backend.algebra import SymmetricOperator, check_operator
from hesspec.backend.bars import steps_of
from hesspec.backend.numbers import check_counts, check_seed
from hesspec.backend.text import kind_of
from hesspec.errors import NonFiniteError
from hesspec.spectra.record import Integers

__all__ = ["first_exit_times"]

# Random numbers that are drawn at a time: more than PyTorch's overhead of a call, less than the cache of a core.
TOGETHER = 1 << 17


def first_exit_times(
    gradient: Callable[[Tensor], Tensor] | SymmetricOperator,
    radius: float,
    *,
    learning_rate: float,
    alpha: float = 2.0,
    scale: float = 0.0,
    gaussian: float = 0.0,
    minimum: Tensor | None = None,
    runs: int = 1000,
    max_steps: int = 10_000,
    seed: int = 0,
    progress: bool = True,
) -> ExitTimes:
    r"""Simulate when gradient descent with noise leaves a ball around a minimum for the first time.

    All runs start at the minimum and take the steps

    .. math:: w_{k+1} = w_k - \eta \nabla f(w_k) + \mathrm{scale} \, \eta^{1/\alpha} \zeta_k
              + \mathrm{gaussian} \, \eta^{1/2} \xi_k

    with independent components: zeta symmetric alpha-stable of scale 1 (`stable_noise`), xi standard normal. The exit
    time of a run is learning_rate times the smallest k with \|w_k - minimum\| > radius.

    Parameters
    ----------
    gradient : callable, or SymmetricOperator
        Gradient of the loss, from points (n, d), one per row, to gradients (n, d); or the Hessian at the minimum, whose
        local quadratic has the gradient Hess (w - minimum): an operator of hesspec, or a dense tensor (d, d). Each step
        then takes a product with one vector for each run that has not left the ball.
    radius : float
        Radius of the ball, in the units of the weights.
    learning_rate : float
        Step size eta.
    alpha, scale : float
        Tail index in (0, 2] and scale of the stable noise per time^(1/alpha). For alpha = 2 each component is normal of
        variance 2 scale^2 per unit of time.
    gaussian : float
        Standard deviation of the components of additional Gaussian noise, per square root of time.
    minimum : Tensor (d,), optional
        Minimum. Required for a callable, whose points have its dtype and device; by default zero for an operator, where
        it has no effect on exit times.
    runs : int
        Number of independent runs.
    max_steps : int
        Number of steps after which runs are stopped. Those still in the ball are censored.
    seed : int
        Seed of the noise; the same seed gives the same exit times.
    progress : bool
        Whether to show a bar after two seconds, in a terminal or a notebook.

    Returns
    -------
    ExitTimes

    Raises
    ------
    ValueError
        If a number is out of range, there is no noise, or the gradient has another shape than the points.
    NonFiniteError
        If the gradient contains NaN or infinity at a point in the ball.

    Notes
    -----
    Steps that are driven by the noise of minibatches, eta times a stable variable of scale s, have scale = eta^(1 -
    1/alpha) s in this convention.

    Exits by jumps are hardly affected by the step size, but Gaussian noise may cross the boundary and return within a
    step: exits are seen as late as those in continuous time from a ball whose radius is larger by 0.583 s
    sqrt(learning_rate), where s^2 = gaussian^2 + 2 scale^2. This holds for small steps.

    A quadratic with a step size of at least 2/lambda_max, or with negative eigenvalues, is left without any noise.

    Examples
    --------
    >>> import torch, hesspec
    >>> found = hesspec.noise.first_exit_times(
    ...     torch.eye(2), radius=1.0, learning_rate=0.5, alpha=1.5, scale=0.03, runs=2000
    ... )
    >>> found.censored, bool(abs(found.mean / found.expected - 1) < 0.1)
    (0, True)
    """
    check_positive(radius=radius, learning_rate=learning_rate)
    alpha = check_alpha(alpha)
    for name, number in (("scale", scale), ("gaussian", gaussian)):
        if number != 0:
            check_positive(**{name: number})
    if scale == 0 and gaussian == 0:
        raise ValueError("There is no noise: scale and gaussian are both 0. Pass one of them.")
    check_counts(runs=runs, max_steps=max_steps)
    slope, centre = _prepared(gradient, minimum)
    noise = _Noise(
        alpha,
        float(scale) * learning_rate ** (1 / alpha),
        float(gaussian) * math.sqrt(learning_rate),
        torch.Generator(centre.device).manual_seed(check_seed(seed)),
    )
    with steps_of("exit times", None, wanted=progress) as shown:
        steps = _simulated(slope, centre, radius, learning_rate, noise, int(runs), int(max_steps), shown)
    return ExitTimes(
        steps=np.where(steps > 0, steps, max_steps),
        exited=(steps > 0).astype(np.int64),
        max_steps=int(max_steps),
        dimension=centre.numel(),
        radius=float(radius),
        learning_rate=float(learning_rate),
        alpha=alpha,
        scale=float(scale),
        gaussian=float(gaussian),
        attributes={"seed": int(seed), "gradient": _name(gradient)},
    )


class _Noise:
    """Noise of steps, in the units of the weights."""

    def __init__(self, alpha: float, scale: float, gaussian: float, generator: torch.Generator) -> None:
        self._alpha, self._scale, self._gaussian, self._generator = alpha, scale, gaussian, generator

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        parts = [(2.0, self._gaussian / math.sqrt(2)), (self._alpha, self._scale)]
        drawn = [stable_noise(alpha, shape, self._generator).mul_(scale) for alpha, scale in parts if scale]
        found = drawn[0] if len(drawn) == 1 else drawn[0].add_(drawn[1])
        return found.to(dtype)


def _simulated(
    slope: Callable[[Tensor], Tensor],
    centre: Tensor,
    radius: float,
    rate: float,
    noise: _Noise,
    runs: int,
    most: int,
    shown: Callable[[int, int | None], None] | None,
) -> Integers:
    """Return the step at which each run left the ball (runs,), 0 for those that did not."""
    found = np.zeros(runs, dtype=np.int64)
    inside = torch.arange(runs, device=centre.device)
    points = centre.expand(runs, -1).clone()
    done = 0
    while done < most and inside.numel():
        count = min(most - done, max(1, TOGETHER // points.numel()))
        drawn = noise((count, *points.shape), points.dtype)
        # Rows of the noise, of which those of runs that leave the ball within the block remain unused.
        rows: Tensor | None = None
        for offset in range(count):
            steepest = slope(points)
            points = torch.add(points, steepest, alpha=-rate)
            points += drawn[offset] if rows is None else drawn[offset].index_select(0, rows)
            stays = (points - centre).norm(dim=1) <= radius
            if not bool(stays.all()):
                if not bool(steepest[~stays].isfinite().all()):
                    raise NonFiniteError(f"The gradient contains NaN or infinity in step {done + offset + 1}.")
                found[inside[~stays].cpu().numpy()] = done + offset + 1
                rows = (torch.arange(len(stays), device=centre.device) if rows is None else rows)[stays]
                points, inside = points[stays], inside[stays]
                if not inside.numel():
                    break
        done += count
        if shown is not None:
            shown(min(done, most), most)
    return found


def _prepared(gradient: Any, minimum: Tensor | None) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the gradient as a function of points (n, d), and the minimum."""
    if minimum is not None:
        known = isinstance(minimum, Tensor) and minimum.dim() == 1 and minimum.numel() > 0
        if not known or not minimum.is_floating_point() or not bool(minimum.isfinite().all()):
            what = f"has shape {tuple(minimum.shape)}, {minimum.dtype}" if isinstance(minimum, Tensor) else "is not one"
            raise ValueError(f"minimum must be a finite floating-point tensor of shape (d,), but it {what}.")
        minimum = minimum.detach()
    if hasattr(gradient, "__matmul__") and hasattr(gradient, "shape"):
        p = check_operator(gradient)
        if minimum is not None and minimum.numel() != p:
            raise ValueError(f"minimum has {minimum.numel()} entries, but the Hessian has shape ({p}, {p}).")
        # Displacements from the minimum, so that its size does not limit their precision.
        return lambda points: (gradient @ points.T).T, torch.zeros(p, dtype=gradient.dtype, device=gradient.device)
    if not callable(gradient):
        raise ValueError(
            f"gradient is {kind_of(gradient)}; pass a function from points (n, d) to gradients (n, d), or a "
            "symmetric operator."
        )
    if minimum is None:
        raise ValueError("A gradient that is a function needs minimum=, the centre of the ball, a tensor (d,).")

    def checked(points: Tensor) -> Tensor:
        found = gradient(points)
        if not isinstance(found, Tensor) or found.shape != points.shape:
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"type {type(found).__name__}"
            raise ValueError(
                f"The gradient of points of shape {tuple(points.shape)} has {what}; it must have the same shape, one "
                "row for each point."
            )
        return found.detach()

    return checked, minimum


def _name(gradient: Any) -> str:
    known = getattr(gradient, "attributes", {})
    return str(known.get("matrix", getattr(gradient, "__name__", type(gradient).__name__)))
