"""Gauss-Newton part of the Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import grad, jvp, vjp

from hesspec.operators.engine.differences import Differences
from hesspec.operators.engine.graph_cache import GraphCache
from hesspec.operators.engine.matrix_passes import Apply
from hesspec.operators.engine.reverse import pull_back
from hesspec.operators.engine.trace_cost import GAUSS_NEWTON, TraceShares
from hesspec.operators.hessian import differentiate_gradient
from hesspec.operators.risk.empirical_risk import Named, OutputLoss, Predict
from hesspec.operators.risk.losses import LossFunction, as_module
from hesspec.operators.risk.output_curvature import OUTPUT_CURVATURES, check_output_curvature, is_convex
from hesspec.operators.risk.outputs import differentiable_outputs
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.operators.sum_over_batches import SumOverBatches

__all__ = ["GaussNewton"]


@dataclass(frozen=True)
class GaussNewtonForm:
    """Gauss-Newton matrix of a batch, with all or a part of the output curvature; see `CurvatureForm`."""

    shares: ClassVar[TraceShares] = GAUSS_NEWTON

    part: str = "full"

    def product(self, predict: Predict, loss: OutputLoss, theta: Named, v: Named) -> Named:
        """Product J^T (d^2 l / d f^2) J v: Jacobian-vector product, output curvature, vector-Jacobian product."""
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
        """Product with J v computed as the derivative of u -> J^T u in the direction v, from one retained graph."""
        leaves = tuple(theta.values())
        outputs, rebuild = differentiable_outputs(predict(theta))
        live = [i for i, output in enumerate(outputs) if output.requires_grad]
        heads = [outputs[i] for i in live]
        if not live:
            return lambda _: tuple(map(torch.zeros_like, leaves))
        # The product J^T u is linear in u, but some of PyTorch's rules have no derivative at u = 0: that of
        # logcumsumexp takes logarithms.
        u = [torch.ones_like(head, requires_grad=True) for head in heads]
        pulled = torch.autograd.grad(heads, leaves, u, create_graph=True, allow_unused=True)
        reached = {i: part for i, part in enumerate(pulled) if part is not None and part.requires_grad}
        return _RetainedProduct(leaves, heads, u, reached, _curve(loss, self.part, rebuild, outputs, live, theta))

    def difference(self, differences: Differences, tangents: Sequence[Tensor], displacement: float) -> list[Tensor]:
        """Product J^T A J v, with differences for J v and, if A is the full output curvature, for A (J v)."""
        return differences.gauss_newton(tangents, displacement, self.part)


class GaussNewton(SumOverBatches):
    r"""Generalised Gauss-Newton matrix, the part G of Hess = G + H.

    .. math:: G = \frac1N \sum_i J_i^\top \nabla^2_f \ell(f_i, y_i) J_i, \qquad J_i = \partial f(x_i) / \partial \theta

    It is positive semi-definite if the loss is convex in the outputs. For softmax cross-entropy the output curvature is
    diag(p) - p p^T and G is the Fisher information (Schraudolph 2002; Martens 2020).

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
    output_curvature : {"full", "true-vs-rest", "within-competitor"}, optional
        Part of the output curvature between the Jacobians. The last two are for softmax cross-entropy with class
        indices as targets (including weights, smoothing and ignored targets), and sum to the first (arXiv 2605.06081).
        "true-vs-rest", p_y (1 - p_y) (e_y - q)(e_y - q)^T with y the true class and q the softmax of all others, is the
        Gauss-Newton matrix of a scalar, the margin s = f_y - logsumexp_{c != y} f_c, with the loss softplus(-s).
        "within-competitor", (1 - p_y)(diag(q) - q q^T), distinguishes the other classes; it is zero for two classes.
        Both are positive semi-definite.

    Raises
    ------
    ValueError
        If `output_curvature` is unknown, or not "full" for another loss or for targets that are not classes.
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
            raise ValueError(f"output_curvature={output_curvature!r} is unknown; use one of {known}.")
        # Before reading the data, for which this loss might be wrong for other reasons.
        check_output_curvature(output_curvature, as_module(loss_fn), torch.empty(0, dtype=torch.int64, device="cpu"))
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
        """Attributes for the record of a measurement.

        They include "output_curvature" if it is not "full", and "positive_semidefinite" if the loss is known to be
        convex in the outputs.
        """
        part = {} if self._form.part == "full" else {"output_curvature": self._form.part}
        # Captured logits come before the outputs, and a loss may be convex in these and not in the logits.
        convex = self._risk.capture is None and is_convex(self._risk.loss.function)
        return {**super().attributes, **part, **({"positive_semidefinite": True} if convex else {})}

    def identity(self) -> dict[str, str]:
        """Content hashes that identify this operator; see `CurvatureOperator`."""
        return {**super().identity(), "output curvature": self._form.part}


class _RetainedProduct:
    """Product J^T A J v from the retained graphs of the outputs, `heads`, and of u -> J^T u, by place of its parts."""

    def __init__(
        self,
        leaves: Sequence[Tensor],
        heads: Sequence[Tensor],
        u: Sequence[Tensor],
        pulled: Mapping[int, Tensor],
        curve: Apply,
    ) -> None:
        self._leaves, self._heads, self._u, self._pulled, self._curve = leaves, heads, u, pulled, curve

    def __call__(self, tangents: Sequence[Tensor]) -> Sequence[Tensor]:
        return self.within(range(len(self._leaves)), tangents)

    def within(self, places: Sequence[int], tangents: Sequence[Tensor]) -> Sequence[Tensor]:
        """Part of the product at these places, for a vector that is zero elsewhere."""
        leaves = [self._leaves[i] for i in places]
        pairs = [(self._pulled[i], v) for i, v in zip(places, tangents, strict=True) if i in self._pulled]
        if not pairs:
            return tuple(map(torch.zeros_like, leaves))
        pushed = pull_back([part for part, _ in pairs], self._u, [v for _, v in pairs])
        return pull_back(self._heads, leaves, self._curve(pushed))


def _curve(
    loss: OutputLoss,
    part: str,
    rebuild: Callable[[tuple[Tensor, ...]], Any],
    outputs: Sequence[Tensor],
    live: Sequence[int],
    theta: Named,
) -> Apply:
    """Products with d^2 l / d f^2 in the outputs that depend on the parameters: closed form, or a retained graph."""
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
