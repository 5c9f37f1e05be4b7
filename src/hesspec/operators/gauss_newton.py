"""The Gauss-Newton part of the Hessian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

from hesspec.operators.base import CurvatureOperator
from hesspec.operators.hessian import differentiate_gradient
from hesspec.operators.outputs import differentiable_outputs
from hesspec.operators.passes import Apply
from hesspec.operators.risk import Named, OutputLoss, Predict

__all__ = ["GaussNewton"]


class GaussNewton(CurvatureOperator):
    r"""Generalised Gauss-Newton matrix, the part G of Hess = G + H.

    .. math:: G = \frac1N \sum_i J_i^\top \nabla^2_f \ell(f_i, y_i) J_i, \qquad J_i = \partial f(x_i) / \partial \theta

    Positive semi-definite where the loss is convex in the outputs; for softmax cross-entropy its output curvature is
    diag(p) - p p^T and G is the Fisher information (Schraudolph 2002; Martens 2020).

    See `CurvatureOperator` for parameters, errors and conventions.
    """

    def product(self, predict: Predict, loss: OutputLoss, theta: Named, v: Named) -> Named:
        """J^T (d^2 l / d f^2) J v: Jacobian forward, output curvature, Jacobian transposed."""
        structure = predict(theta)
        outputs, rebuild = differentiable_outputs(structure)

        def tensors(t: Named) -> tuple[Tensor, ...]:
            return differentiable_outputs(predict(t))[0]

        def of_outputs(o: tuple[Tensor, ...]) -> Tensor:
            return loss(rebuild(o))

        tangent = jvp(tensors, (theta,), (v,))[1]
        curve = loss.curvature(structure)
        curved = curve(tangent) if curve else jvp(grad(of_outputs), (outputs,), (tangent,))[1]
        product: Named = vjp(tensors, theta)[1](curved)[0]
        return product

    def retained(self, predict: Predict, loss: OutputLoss, theta: Named) -> Apply:
        """J v as the derivative of u -> J^T u in the direction v, all from one kept graph."""
        leaves = tuple(theta.values())
        outputs, rebuild = differentiable_outputs(predict(theta))
        live = [i for i, output in enumerate(outputs) if output.requires_grad]
        heads = [outputs[i] for i in live]
        if not live:
            return lambda _: tuple(map(torch.zeros_like, leaves))
        u = [torch.zeros_like(head, requires_grad=True) for head in heads]
        pulled = torch.autograd.grad(heads, leaves, u, create_graph=True, allow_unused=True)
        reached = [i for i, part in enumerate(pulled) if part is not None and part.requires_grad]
        curve = _curve(loss, rebuild, outputs, live)

        def apply(tangents: Sequence[Tensor]) -> Sequence[Tensor]:
            pushed = torch.autograd.grad(
                [pulled[i] for i in reached],
                u,
                [tangents[i] for i in reached],
                retain_graph=True,
                materialize_grads=True,
            )
            return torch.autograd.grad(
                heads,
                leaves,
                curve(pushed),
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )

        return apply


def _curve(
    loss: OutputLoss, rebuild: Callable[[tuple[Tensor, ...]], Any], outputs: Sequence[Tensor], live: Sequence[int]
) -> Apply:
    """d^2 l / d f^2 in those outputs that depend on the parameters: in closed form, else from a kept graph."""
    at = tuple(output.detach().requires_grad_(i in live) for i, output in enumerate(outputs))
    with torch.no_grad():
        known = loss.curvature(rebuild(at))
    if known is None:
        return differentiate_gradient(loss(rebuild(at)), [at[i] for i in live])

    def apply(tangents: Sequence[Tensor]) -> Sequence[Tensor]:
        given = dict(zip(live, tangents, strict=True))
        curved = known([given.get(i, torch.zeros_like(output)) for i, output in enumerate(at)])
        return [curved[i] for i in live]

    return apply
