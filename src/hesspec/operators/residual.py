"""Residual part of the Hessian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad, jvp

from hesspec.operators.engine.differences import Differences
from hesspec.operators.engine.matrix_passes import Apply
from hesspec.operators.engine.trace_cost import RESIDUAL, TraceShares
from hesspec.operators.gauss_newton import GaussNewtonForm
from hesspec.operators.hessian import HessianForm, differentiate_gradient
from hesspec.operators.risk.empirical_risk import Named, OutputLoss, Predict
from hesspec.operators.risk.outputs import differentiable_outputs
from hesspec.operators.sum_over_batches import SumOverBatches

__all__ = ["Residual"]


@dataclass(frozen=True)
class ResidualForm:
    """Residual part of a batch's Hessian; see `CurvatureForm`."""

    shares: ClassVar[TraceShares] = RESIDUAL

    def product(self, predict: Predict, loss: OutputLoss, theta: Named, v: Named) -> Named:
        """Forward over reverse on <f, delta>."""
        if loss.reaches:
            whole, part = (form.product(predict, loss, theta, v) for form in (HessianForm(), GaussNewtonForm()))
            return {name: whole[name] - part[name] for name in whole}
        outputs, rebuild = differentiable_outputs(predict(theta))
        delta = grad(lambda o: loss(rebuild(o), theta))(outputs)

        def weighted(t: Named) -> Tensor:
            tensors, _ = differentiable_outputs(predict(t))
            return _inner(tensors, delta)

        product: Named = jvp(grad(weighted), (theta,), (v,))[1]
        return product

    def retained(self, predict: Predict, loss: OutputLoss, theta: Named) -> Apply:
        """Reverse over reverse on <f, delta>."""
        if loss.reaches:
            whole, part = (form.retained(predict, loss, theta) for form in (HessianForm(), GaussNewtonForm()))
            return lambda tangents: [a - b for a, b in zip(whole(tangents), part(tangents), strict=True)]
        outputs, rebuild = differentiable_outputs(predict(theta))
        at = tuple(output.detach().requires_grad_() for output in outputs)
        delta = torch.autograd.grad(loss(rebuild(at), theta), at, allow_unused=True, materialize_grads=True)
        return differentiate_gradient(_inner(outputs, delta), tuple(theta.values()))

    def difference(self, differences: Differences, tangents: Sequence[Tensor], displacement: float) -> list[Tensor]:
        """Difference of the products of the Hessian and of the Gauss-Newton matrix."""
        return differences.residual(tangents, displacement)


class Residual(SumOverBatches):
    r"""Residual part H of Hess = G + H: the curvature of the network itself, weighted by the loss gradient.

    .. math:: H = \frac1N \sum_i \sum_c \frac{\partial \ell_i}{\partial f_c} \nabla^2_\theta f_c(x_i; \theta)

    It is the Hessian of <f(theta), delta> with delta = dl/df held constant. If the loss depends on the parameters other
    than through the outputs, for example by a penalty on the weights, H is defined as Hess - G.

    Parameters
    ----------
    model : torch.nn.Module
        Model in evaluation mode, with parameters in float32 or float64.
    loss_fn : callable
        `loss_fn(outputs, targets)`, or `hesspec.closure(function)` of `function(model, batch)`.
    data : iterable
        Batches (inputs, targets), which can be iterated repeatedly and are the same in each pass.
    params, terms, memory, precision, mode, verify, batch_statistics, graphs, group : optional
        See `CurvatureOperator`, which also describes errors and conventions.
    """

    _form = ResidualForm()

    def _check_loss(self) -> None:
        self._risk.split()


def _inner(outputs: tuple[Tensor, ...], delta: tuple[Tensor, ...]) -> Tensor:
    total: Tensor = sum(((f * d).sum() for f, d in zip(outputs, delta, strict=True)), start=outputs[0].new_zeros(()))
    return total
