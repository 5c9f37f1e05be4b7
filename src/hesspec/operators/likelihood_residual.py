"""Difference of the second moment of gradients and the Hessian, for losses that are negative log-likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad, jvp

from hesspec.operators.engine.differences import Differences
from hesspec.operators.engine.matrix_passes import Apply
from hesspec.operators.engine.trace_cost import HESSIAN, TraceShares
from hesspec.operators.hessian import differentiate_gradient
from hesspec.operators.risk.empirical_risk import Named, OutputLoss, Predict
from hesspec.operators.risk.output_loss import SECOND_MOMENT
from hesspec.operators.risk.output_moment import Moment
from hesspec.operators.risk.outputs import differentiable_outputs
from hesspec.operators.risk.sample_gradients import check_likelihood, check_samples
from hesspec.operators.sum_over_batches import SumOverBatches

__all__ = ["LikelihoodResidual"]


@dataclass(frozen=True)
class LikelihoodResidualForm:
    """H_p = M - Hess of a batch; see `CurvatureForm`.

    With the outputs f_0 at the point itself and the second moment S of the gradients there, it is the Hessian of (f -
    f_0)^T S (f - f_0) / 2 - L(f): one product with a Hessian instead of two products.
    """

    shares: ClassVar[TraceShares] = HESSIAN

    def product(self, predict: Predict, loss: OutputLoss, theta: Named, v: Named) -> Named:
        """Forward over reverse."""
        structure = predict(theta)
        here, _ = differentiable_outputs(structure)
        moment = loss.moment(structure)

        def risk(t: Named) -> Tensor:
            outputs, rebuild = differentiable_outputs(predict(t))
            return _half_square(outputs, here, moment) - loss(rebuild(outputs), t)

        product: Named = jvp(grad(risk), (theta,), (v,))[1]
        return product

    def retained(self, predict: Predict, loss: OutputLoss, theta: Named) -> Apply:
        """Reverse over reverse."""
        structure = predict(theta)
        outputs, rebuild = differentiable_outputs(structure)
        moment = loss.moment(structure)
        here = tuple(output.detach() for output in outputs)
        value = _half_square(outputs, here, moment) - loss(rebuild(outputs), theta)
        return differentiate_gradient(value, tuple(theta.values()))

    def difference(self, differences: Differences, tangents: Sequence[Tensor], displacement: float) -> list[Tensor]:
        """Difference of the products of the second moment and of the Hessian."""
        moment = differences.gauss_newton(tangents, displacement, SECOND_MOMENT)
        whole = differences.hessian(tangents, displacement)
        return [a - b for a, b in zip(moment, whole, strict=True)]


class LikelihoodResidual(SumOverBatches):
    r"""Residual H_p of Hess = M - H_p, with M the second moment of the samples' gradients, for a log-likelihood.

    .. math:: H_p = \sum_i a_i \frac{1}{p_i} \nabla^2_\theta\, p_i, \qquad \ell_i = -\log p_i

    where p_i is the likelihood of sample i, and a_i = 1/N for a mean over N samples. Its expectation over labels drawn
    from the model is zero, as that of M is then G. A product costs as much as one with the Hessian.

    Parameters
    ----------
    model : torch.nn.Module
        Model in evaluation mode, with parameters in float32 or float64.
    loss_fn : callable
        Negative log-likelihood, up to a constant: `CrossEntropyLoss` or `NLLLoss` of classes, `BCEWithLogitsLoss` of
        one label of 0 or 1 for each sample (or of several, summed), or `MSELoss`, which is that of a Gaussian of fixed
        variance. Class weights are part of a_i.
    data : iterable
        Batches (inputs, targets), which can be iterated repeatedly and are the same in each pass.
    params, terms, memory, precision, mode, verify, batch_statistics, graphs, group : optional
        See `CurvatureOperator`, which also describes errors and conventions. For samples, see `SecondMoment`.

    Raises
    ------
    ValueError
        If the loss is not known to be a negative log-likelihood, or for the reasons of `SecondMoment`.

    Notes
    -----
    The decomposition is used in Li, Gu, Zhou, Chen and Banerjee, "Hessian based analysis of SGD for Deep Nets" (arXiv
    1907.10732).
    """

    _form = LikelihoodResidualForm()

    def _check_loss(self) -> None:
        check_likelihood(self._risk)
        check_samples(self._risk, "LikelihoodResidual")


def _half_square(outputs: Sequence[Tensor], here: Sequence[Tensor], moment: Moment) -> Tensor:
    """(f - f_0)^T S (f - f_0) / 2, which is zero, with the gradient zero, where f = f_0."""
    moved = [output - constant for output, constant in zip(outputs, here, strict=True)]
    total: Tensor = sum(
        ((a * b).sum() for a, b in zip(moved, moment(moved), strict=True)), start=torch.zeros_like(outputs[0]).sum()
    )
    return total / 2
