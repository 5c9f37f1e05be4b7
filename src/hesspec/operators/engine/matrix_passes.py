"""Primal passes of a matrix that is a sum over batches: each leaves v -> M v, in one of the four modes of `Passes`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from hesspec.operators.engine.differences import Differences, settled
from hesspec.operators.engine.graph.detached import Detached
from hesspec.operators.engine.graph.tracing import Group, LinearTrace
from hesspec.operators.engine.graph_cache import GraphCache
from hesspec.operators.engine.passes import Passes
from hesspec.operators.engine.trace_cost import TraceShares
from hesspec.operators.model.ambient import differentiable_kernels, preserved_randomness
from hesspec.operators.model.plain import PlainModel
from hesspec.operators.risk.batches import Batch
from hesspec.operators.risk.empirical_risk import EmpiricalRisk, Named, OutputLoss, Predict

__all__ = ["Apply", "CurvatureForm", "MatrixPasses"]

Apply = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class TracedProduct:
    """Products of a batch from the residuals of its primal pass: v -> M v, and those within a block of parameters."""

    trace: LinearTrace
    residuals: Sequence[Tensor]

    def __call__(self, tangents: Sequence[Tensor]) -> Sequence[Tensor]:
        """Product M v."""
        (tangent,) = self.trace.tangents
        return tangent(*self.residuals, *tangents)

    def within(self, places: tuple[int, ...], tangents: Sequence[Tensor]) -> Sequence[Tensor]:
        """Part of M v at these places, for v that is zero elsewhere."""
        return self.trace.restrict(places)(*self.residuals, *tangents)


class RetainedProduct:
    """Products of a batch from its double-backward graph, with gradients enabled.

    It has `within`, as `TracedProduct`, if the form's product has.
    """

    def __init__(self, apply: Apply) -> None:
        self._apply = torch.enable_grad()(apply)
        if (within := getattr(apply, "within", None)) is not None:
            self.within = torch.enable_grad()(within)

    def __call__(self, tangents: Sequence[Tensor]) -> Sequence[Tensor]:
        """Product M v."""
        return self._apply(tangents)


class CurvatureForm(Hashable, Protocol):
    """A curvature matrix of one batch, with three methods that compute its products.

    Its hash tells its traces from those of other matrices.
    """

    shares: ClassVar[TraceShares]
    """Seconds of a trace, relative to one of the Hessian."""

    def product(self, predict: Predict, loss: OutputLoss, theta: Named, v: Named) -> Named:
        """M v, written with the transforms of torch.func."""
        ...

    def retained(self, predict: Predict, loss: OutputLoss, theta: Named) -> Apply:
        """v -> M v from a double-backward graph that is built here, once; theta are leaves of it."""
        ...

    def difference(self, differences: Differences, tangents: Sequence[Tensor], displacement: float) -> list[Tensor]:
        """M v by differences of first derivatives at a relative displacement."""
        ...


class MatrixPasses(Passes):
    """Primal passes that leave v -> M v, for a matrix that is a sum over batches; see `Passes`.

    Parameters
    ----------
    risk : EmpiricalRisk
    form : CurvatureForm
    precision : str
    graphs : GraphCache, optional
    """

    def __init__(
        self, risk: EmpiricalRisk, form: CurvatureForm, precision: str = "full", graphs: GraphCache | None = None
    ) -> None:
        super().__init__(risk, precision, graphs)
        self._form, self.shares = form, form.shares

    def _traced_as(self) -> Hashable:
        return self._form

    def _tangents(self, batch: Batch) -> tuple[Sequence[Tensor], Sequence[Group]]:  # noqa: ARG002
        values = self.risk.parameters.values
        return values, [Group(len(values), len(values))]

    def _products(
        self, predict: Predict, loss: OutputLoss, theta: Named, tangents: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        product = self._form.product(predict, loss, theta, dict(zip(theta, tangents, strict=True)))
        return [product[name] for name in theta]

    def _applied(self, trace: LinearTrace, residuals: Sequence[Tensor], batch: Batch) -> Apply:  # noqa: ARG002
        return TracedProduct(trace, residuals)

    def _retained(self, predict: Predict, loss: OutputLoss, theta: Named) -> Apply:
        return RetainedProduct(self._form.retained(predict, loss, theta))

    def _plainly(self, plain: PlainModel, batch: Batch) -> Apply:
        return (self._differences if self.mode == "differences" else self._in_place)(plain, batch)

    def _in_place(self, plain: PlainModel, batch: Batch) -> Apply:
        parameters = self.risk.parameters

        def apply(tangents: Sequence[Tensor]) -> Sequence[Tensor]:
            with self._held(plain), torch.enable_grad(), differentiable_kernels():
                theta: Named = dict(zip(parameters.names, plain.leaves, strict=True))
                predict, loss = self.risk.in_place(plain, batch.inputs, batch.targets)
                product = self.trial_in_place(predict, loss, theta, parameters.natural(tangents))
                return [part.detach() for part in parameters.real(product)]

        return apply

    def _differences(self, plain: PlainModel, batch: Batch) -> Apply:
        parameters = self.risk.parameters

        def apply(tangents: Sequence[Tensor]) -> Sequence[Tensor]:
            with self._held(plain):
                differences, given = Differences.of(self.risk, plain, batch), parameters.natural(tangents)
                if self.displacement is None:
                    found = settled(lambda h: self._form.difference(differences, given, h), differences.dtype)
                    self.displacement = found.displacement
                product = self._form.difference(differences, given, self.displacement * self.stretch)
            return [part.to(parameters.dtype) for part in parameters.real(product)]

        return apply

    def trial(self, batch: Batch, tangents: Sequence[Tensor]) -> list[Tensor]:
        """Product with the matrix of the batch."""
        apply = self.build(batch).apply
        with torch.no_grad():
            return list(apply(tangents))

    def trial_by_rules(self, batch: Batch, tangents: Sequence[Tensor]) -> list[Tensor]:
        """Product with the matrix of the batch, by forward over reverse in traced mode."""
        if self.mode != "traced":
            return self.trial(batch, tangents)
        risk = self.risk
        predict, loss = risk.functions(risk.fixed, batch.inputs, batch.targets)
        theta: Named = dict(zip(risk.parameters.names, risk.parameters.values, strict=True))
        with preserved_randomness(), differentiable_kernels(), Detached():
            return [part.detach() for part in self._products(predict, loss, theta, tangents)]

    def trial_by_differences(
        self, differences: Differences, tangents: Sequence[Tensor], displacement: float
    ) -> list[Tensor]:
        """The product by differences."""
        return self._form.difference(differences, tangents, displacement)

    def trial_in_place(
        self, predict: Predict, loss: OutputLoss, theta: Named, tangents: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """The product by double backward."""
        return self._form.retained(predict, loss, theta)(tangents)
