"""Hessian of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad, jvp

from hesspec.operators.engine.differences import Differences
from hesspec.operators.engine.matrix_passes import Apply
from hesspec.operators.engine.reverse import pull_back
from hesspec.operators.engine.trace_cost import HESSIAN, TraceShares
from hesspec.operators.risk.empirical_risk import Named, OutputLoss, Predict
from hesspec.operators.sum_over_batches import SumOverBatches

__all__ = ["Hessian", "differentiate_gradient"]


@dataclass(frozen=True)
class HessianForm:
    """Hessian of a batch; see `CurvatureForm`."""

    shares: ClassVar[TraceShares] = HESSIAN

    def product(self, predict: Predict, loss: OutputLoss, theta: Named, v: Named) -> Named:
        """Forward over reverse: d/dt grad L(theta + t v)."""

        def risk(t: Named) -> Tensor:
            return loss(predict(t), t)

        product: Named = jvp(grad(risk), (theta,), (v,))[1]
        return product

    def retained(self, predict: Predict, loss: OutputLoss, theta: Named) -> Apply:
        """Reverse over reverse: the gradient of <grad L, v>."""
        return differentiate_gradient(loss(predict(theta), theta), tuple(theta.values()))

    def difference(self, differences: Differences, tangents: Sequence[Tensor], displacement: float) -> list[Tensor]:
        """Difference of two gradients."""
        return differences.hessian(tangents, displacement)


class Hessian(SumOverBatches):
    r"""Hessian of the empirical risk, Hess = d^2 L / d theta^2 = G + H.

    .. math:: \mathrm{Hess} = \nabla^2_\theta \frac1N \sum_i \ell(f(x_i; \theta), y_i)

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

    Examples
    --------
    For a linear model with squared error the Hessian is 2/(N C) X^T X for each output:

    >>> import torch, hesspec
    >>> from torch import nn
    >>> x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    >>> model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    >>> hessian = hesspec.Hessian(model, nn.MSELoss(), [(x[:2], y[:2]), (x[2:], y[2:])])
    >>> v = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    >>> torch.allclose(hessian @ v, 2 / 5 * x.T @ (x @ v))
    True
    """

    _form = HessianForm()


def differentiate_gradient(value: Tensor, leaves: Sequence[Tensor]) -> Apply:
    """Return v -> (d^2 value / d leaves^2) v by reverse over reverse, from one retained graph.

    Parameters
    ----------
    value : scalar Tensor
    leaves : sequence of Tensor
        Leaves of the graph of `value`.
    """
    gradient = (
        torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
        if value.requires_grad
        else (None,) * len(leaves)
    )
    # Parts of the gradient that do not depend on the parameters have no graph and no curvature.
    return _GradientDerivative(
        leaves, {i: part for i, part in enumerate(gradient) if part is not None and part.requires_grad}
    )


class _GradientDerivative:
    """Products with the derivative of a gradient, whose parts with a graph are given by their places."""

    def __init__(self, leaves: Sequence[Tensor], curved: Mapping[int, Tensor]) -> None:
        self._leaves, self._curved = leaves, curved

    def __call__(self, tangents: Sequence[Tensor]) -> Sequence[Tensor]:
        return self.within(range(len(self._leaves)), tangents)

    def within(self, places: Sequence[int], tangents: Sequence[Tensor]) -> Sequence[Tensor]:
        """Part of the product at these places, for a vector that is zero elsewhere."""
        leaves = [self._leaves[i] for i in places]
        pairs = [(self._curved[i], v) for i, v in zip(places, tangents, strict=True) if i in self._curved]
        if not pairs:
            return tuple(map(torch.zeros_like, leaves))
        return pull_back([part for part, _ in pairs], leaves, [v for _, v in pairs])
