"""The residual part of the Hessian."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp

from hesspec.operators.base import SumOverBatches
from hesspec.operators.hessian import differentiate_gradient
from hesspec.operators.outputs import differentiable_outputs
from hesspec.operators.passes import Apply
from hesspec.operators.risk import Named, OutputLoss, Predict

__all__ = ["Residual"]


@dataclass(frozen=True)
class ResidualForm:
    """The residual part of a batch's Hessian; see `CurvatureForm`."""

    def product(self, predict: Predict, loss: OutputLoss, theta: Named, v: Named) -> Named:
        """Forward over reverse on <f, delta>."""
        outputs, rebuild = differentiable_outputs(predict(theta))
        delta = grad(lambda o: loss(rebuild(o)))(outputs)

        def weighted(t: Named) -> Tensor:
            tensors, _ = differentiable_outputs(predict(t))
            return _inner(tensors, delta)

        product: Named = jvp(grad(weighted), (theta,), (v,))[1]
        return product

    def retained(self, predict: Predict, loss: OutputLoss, theta: Named) -> Apply:
        """Reverse over reverse on <f, delta>."""
        outputs, rebuild = differentiable_outputs(predict(theta))
        at = tuple(output.detach().requires_grad_() for output in outputs)
        delta = torch.autograd.grad(loss(rebuild(at)), at, allow_unused=True, materialize_grads=True)
        return differentiate_gradient(_inner(outputs, delta), tuple(theta.values()))


class Residual(SumOverBatches):
    r"""Residual part H of Hess = G + H: the curvature of the network itself, weighted by the loss gradient.

    .. math:: H = \frac1N \sum_i \sum_c \frac{\partial \ell_i}{\partial f_c} \nabla^2_\theta f_c(x_i; \theta)

    It is the Hessian of <f(theta), delta> with delta = dl/df held constant.

    See `CurvatureOperator` for parameters, errors and conventions.
    """

    _form = ResidualForm()

    def _check_loss(self) -> None:
        self._risk.split("H")


def _inner(outputs: tuple[Tensor, ...], delta: tuple[Tensor, ...]) -> Tensor:
    total: Tensor = sum(((f * d).sum() for f, d in zip(outputs, delta, strict=True)), start=outputs[0].new_zeros(()))
    return total
