"""The Gauss-Newton part of the Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import grad, jvp, vjp

from hesspec.operators.base import SumOverBatches
from hesspec.operators.engine.differences import Differences
from hesspec.operators.engine.graph_cache import GraphCache
from hesspec.operators.engine.matrix_passes import Apply
from hesspec.operators.hessian import differentiate_gradient, materialised
from hesspec.operators.risk.empirical_risk import Named, OutputLoss, Predict
from hesspec.operators.risk.losses import LossFunction, as_module
from hesspec.operators.risk.output_curvature import OUTPUT_CURVATURES, check_output_curvature
from hesspec.operators.risk.outputs import differentiable_outputs
from hesspec.operators.risk.parameters import ParameterSpec

__all__ = ["GaussNewton"]


@dataclass(frozen=True)
class GaussNewtonForm:
    """The Gauss-Newton matrix of a batch, with a part of the output curvature; see `CurvatureForm`."""

    part: str = "full"

    def product(self, predict: Predict, loss: OutputLoss, theta: Named, v: Named) -> Named:
        """J^T (d^2 l / d f^2) J v: Jacobian forward, output curvature, Jacobian transposed."""
        structure = predict(theta)
        outputs, rebuild = differentiable_outputs(structure)

        def tensors(t: Named) -> tuple[Tensor, ...]:
            return differentiable_outputs(predict(t))[0]

        def of_outputs(o: tuple[Tensor, ...]) -> Tensor:
            return loss(rebuild(o), theta)

        tangent = jvp(tensors, (theta,), (v,))[1]
        curve = loss.curvature(structure, self.part)
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
        live_parts = [pulled[i] for i in reached]
        curve = _curve(loss, self.part, rebuild, outputs, live, theta)

        def apply(tangents: Sequence[Tensor]) -> Sequence[Tensor]:
            given = [tangents[i] for i in reached]
            pushed = torch.autograd.grad(live_parts, u, given, retain_graph=True, allow_unused=True)
            curved = curve(materialised(pushed, u))
            return materialised(
                torch.autograd.grad(heads, leaves, curved, retain_graph=True, allow_unused=True), leaves
            )

        return apply

    def difference(self, differences: Differences, tangents: Sequence[Tensor], displacement: float) -> list[Tensor]:
        """J^T A J v, with differences for J v and, where A is all of the output curvature, for A (J v)."""
        return differences.gauss_newton(tangents, displacement, self.part)


class GaussNewton(SumOverBatches):
    r"""Generalised Gauss-Newton matrix, the part G of Hess = G + H.

    .. math:: G = \frac1N \sum_i J_i^\top \nabla^2_f \ell(f_i, y_i) J_i, \qquad J_i = \partial f(x_i) / \partial \theta

    Positive semi-definite where the loss is convex in the outputs; for softmax cross-entropy its output curvature is
    diag(p) - p p^T and G is the Fisher information (Schraudolph 2002; Martens 2020).

    See `CurvatureOperator` for all other parameters, errors and conventions.

    Parameters
    ----------
    output_curvature : {"full", "true-vs-rest", "within-competitor"}, optional
        Which part of the output curvature is between the Jacobians; the last two are for softmax cross-entropy with
        class indices as targets (weighted, smoothed and ignored ones too), and add up to the first (arXiv 2605.06081).
        "true-vs-rest", p_y (1 - p_y) (e_y - q)(e_y - q)^T with y the true class and q the softmax of all others, is the
        Gauss-Newton matrix of a scalar, the margin f_y - logsumexp_{c != y} f_c, of which the loss is softplus of minus
        it. "within-competitor", (1 - p_y)(diag(q) - q q^T), tells the other classes apart; it is zero with two classes.
        Both are positive semi-definite.

    Raises
    ------
    ValueError
        If `output_curvature` is none of these, or not "full" for another loss or for targets that are no classes.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Iterable[Any],
        params: ParameterSpec = None,
        *,
        terms: Callable[[Any], float] | None = None,
        memory: str | int | None = None,
        precision: str = "full",
        output_curvature: str = "full",
        mode: str = "auto",
        verify: bool = True,
        batch_statistics: bool = False,
        graphs: GraphCache | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if output_curvature not in OUTPUT_CURVATURES:
            known = ", ".join(map(repr, OUTPUT_CURVATURES))
            raise ValueError(f"output_curvature={output_curvature!r} is unknown; it is one of {known}.")
        # Before the data is looked at, of which this loss might be wrong for other reasons.
        check_output_curvature(output_curvature, as_module(loss_fn), torch.empty(0, dtype=torch.int64))
        super().__init__(
            model,
            loss_fn,
            data,
            params,
            terms=terms,
            memory=memory,
            precision=precision,
            mode=mode,
            verify=verify,
            batch_statistics=batch_statistics,
            graphs=graphs,
            group=group,
        )
        self._form: GaussNewtonForm = GaussNewtonForm(output_curvature)
        if output_curvature != "full":
            first = next(iter(self._risk.batches))
            check_output_curvature(output_curvature, self._risk.loss.function, first.targets)

    def _check_loss(self) -> None:
        self._risk.split()

    @property
    def attributes(self) -> dict[str, str | int | float]:
        """What this operator is, for the record of a measurement; with "output_curvature" where that is not "full"."""
        part = {} if self._form.part == "full" else {"output_curvature": self._form.part}
        return {**super().attributes, **part}

    def identity(self) -> dict[str, str]:
        """What this operator is, by its content; see `CurvatureOperator`."""
        return {**super().identity(), "output curvature": self._form.part}


def _curve(
    loss: OutputLoss,
    part: str,
    rebuild: Callable[[tuple[Tensor, ...]], Any],
    outputs: Sequence[Tensor],
    live: Sequence[int],
    theta: Named,
) -> Apply:
    """d^2 l / d f^2 in those outputs that depend on the parameters: in closed form, else from a kept graph."""
    at = tuple(output.detach().requires_grad_(i in live) for i, output in enumerate(outputs))
    with torch.no_grad():
        known = loss.curvature(rebuild(at), part)
    if known is None:
        return differentiate_gradient(loss(rebuild(at), theta), [at[i] for i in live])

    def apply(tangents: Sequence[Tensor]) -> Sequence[Tensor]:
        given = dict(zip(live, tangents, strict=True))
        curved = known([given.get(i, torch.zeros_like(output)) for i, output in enumerate(at)])
        return [curved[i] for i in live]

    return apply
