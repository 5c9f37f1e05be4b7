"""Expected change of the loss in one step of stochastic gradient descent, to second order."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hesspec.applications.noise.one_step_record import ExpectedLossChange
from hesspec.backend.numbers import check_seed, is_whole
from hesspec.operators import Hessian, Preconditioned
from hesspec.operators.risk.empirical_risk import EmpiricalRisk
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.operators.risk.sample_gradients import check_samples, mean_gradient, sample_count

__all__ = ["expected_loss_change"]

# Minibatches whose gradients are held at a time, and for which the data is read once.
TOGETHER = 8


def expected_loss_change(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Iterable[Any],
    params: ParameterSpec = None,
    *,
    learning_rate: float,
    batch_size: int,
    batches: int = 32,
    preconditioner: Tensor | Optimizer | None = None,
    seed: int = 0,
) -> ExpectedLossChange:
    r"""Estimate the expected change of the loss on all data in one step with a random minibatch, to second order.

    For a step :math:`\theta - \eta P^{-1} g_B`, with the gradient g_B of a minibatch of b samples that are drawn
    without replacement,

    .. math:: E[L(\theta - \eta P^{-1} g_B) - L(\theta)] = -\eta\, \bar g^\top P^{-1} \bar g
              + \frac{\eta^2}{2} \mathrm{tr}(P^{-1} \mathrm{Hess}\, P^{-1} M_b) + O(\eta^3),

    which is exact if the loss is quadratic. M_b is the second moment of minibatch gradients (`hesspec.SecondMoment`).
    Its part :math:`\bar g \bar g^\top` is computed exactly, and that of the covariance is the mean over minibatches of
    :math:`d^\top P^{-1} \mathrm{Hess}\, P^{-1} d` with d = g_B - gbar.

    Parameters
    ----------
    model, loss_fn, data, params
        See `hesspec.Hessian`. The loss must be a mean over samples, each with one term.
    learning_rate : float
        Learning rate eta.
    batch_size : int
        Number b of samples of a minibatch.
    batches : int
        Number of random minibatches, at least two. Each costs the gradients of b samples and one product with the
        Hessian of all data.
    preconditioner : Tensor (p,) or torch.optim.Optimizer, optional
        Divisor P of the step: positive numbers, or an adaptive optimiser after a step (see `hesspec.Preconditioned`).
    seed : int
        Seed of the minibatches.

    Returns
    -------
    ExpectedLossChange

    Raises
    ------
    ValueError
        If a number is out of range; if gradients of minibatches are not known (see `hesspec.SecondMoment`), the loss is
        a sum, or samples have different numbers of terms; or for the reasons of `hesspec.Hessian` and
        `hesspec.Preconditioned`.
    NonFiniteError
        If a gradient or a product contains NaN or infinity.

    Notes
    -----
    The formula is a second-order Taylor expansion; that the data are drawn without replacement is in M_b. A step with
    momentum is not covered.
    """
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise ValueError(f"learning_rate is {learning_rate!r}; it must be positive and finite.")
    if not is_whole(batches, 2):
        raise ValueError(f"batches is {batches!r}; it must be an integer of at least 2, to have a standard error.")
    generator = torch.Generator().manual_seed(check_seed(seed))
    hessian = Hessian(model, loss_fn, data, params)
    risk = hessian._risk  # noqa: SLF001 - shares the operator's risk, as in class_structure
    count = _checked_count(risk)
    if not (is_whole(batch_size, 1) and batch_size <= count):
        raise ValueError(f"batch_size is {batch_size!r}; it must be an integer from 1 to {count:,}, all samples.")
    divisor = torch.ones(hessian.shape[0], dtype=torch.float64, device=hessian.device)
    kind = "none"
    if preconditioner is not None:
        scaled = Preconditioned(hessian, preconditioner)
        divisor, kind = scaled.diagonal.double(), scaled.preconditioner
    mean = mean_gradient(risk)
    step = mean.double() / divisor
    hessian.expect_products(1 + batches)
    gradient_term = float(step @ (hessian @ step.to(hessian.dtype)).double())
    curvatures: list[float] = []
    while len(curvatures) < batches:
        drawn = [
            torch.randperm(count, generator=generator, device="cpu")[:batch_size].sort().values
            for _ in range(min(TOGETHER, batches - len(curvatures)))
        ]
        deviations = (_minibatch_gradients(risk, drawn) - mean[:, None]).double() / divisor[:, None]
        products = (hessian @ deviations.to(hessian.dtype)).double()
        curvatures += (deviations * products).sum(0).tolist()
    samples = torch.tensor(curvatures, dtype=torch.float64)
    half = learning_rate**2 / 2
    return ExpectedLossChange(
        first_order=-learning_rate * float(step @ mean.double()),
        gradient_term=half * gradient_term,
        noise_term=half * float(samples.mean()),
        noise_standard_error=half * float(samples.std()) / math.sqrt(batches),
        learning_rate=float(learning_rate),
        batch_size=int(batch_size),
        samples=count,
        batches=int(batches),
        preconditioner=kind,
        attributes={"seed": seed, "products": hessian.matvecs},
    )


def _checked_count(risk: EmpiricalRisk) -> int:
    """Return the number of samples that can be drawn."""
    check_samples(risk, "The expected change of the loss")
    if risk.loss.reduction == "sum":
        raise ValueError("The loss is a sum over samples, and the step of a minibatch is that of a mean; use a mean.")
    count = sum(risk.batches.sizes)
    if sample_count(risk) != count:
        raise ValueError(
            f"The loss of {count:,} samples is a mean over {sample_count(risk):,} terms: minibatches are drawn from "
            "samples with one term each, without ignored targets."
        )
    return count


def _minibatch_gradients(risk: EmpiricalRisk, drawn: list[Tensor]) -> Tensor:
    """Gradients of the mean loss of each set of samples, (p, k)."""
    parameters = risk.parameters
    total = torch.zeros(parameters.count, len(drawn), dtype=parameters.dtype, device=parameters.device)
    start = 0
    for batch in risk.batches:
        for column, indices in enumerate(drawn):
            own = indices[(indices >= start) & (indices < start + batch.samples)] - start
            if own.numel():
                part = risk.batches.chosen(batch, own) if batch.samples > 1 else batch
                _, gradient = risk.gradient(part)
                flat = torch.cat([each.reshape(-1) for each in gradient])
                total[:, column].add_(flat, alpha=own.numel() / indices.numel())
        start += batch.samples
    return total
