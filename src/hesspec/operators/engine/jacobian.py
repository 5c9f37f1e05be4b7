"""Jacobian of a model's logits, batch by batch, and products that couple batches in the space of logits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vjp

from hesspec.errors import InputError, NonFiniteError
from hesspec.operators.engine.differences import Differences, settled
from hesspec.operators.engine.graph.tracing import Group, LinearTrace
from hesspec.operators.engine.graph_cache import GraphCache
from hesspec.operators.engine.passes import Passes, PrimalPass
from hesspec.operators.engine.reverse import pull_back
from hesspec.operators.engine.streaming import KeptPasses
from hesspec.operators.engine.trace_cost import GAUSS_NEWTON
from hesspec.operators.engine.without_values import without_values
from hesspec.operators.model.ambient import preserved_randomness
from hesspec.operators.model.plain import PlainModel
from hesspec.operators.risk.batches import Batch
from hesspec.operators.risk.empirical_risk import EmpiricalRisk, Named, OutputLoss, Predict
from hesspec.operators.risk.logits import LogitRows
from hesspec.operators.risk.losses import Loss
from hesspec.operators.risk.outputs import differentiable_outputs

__all__ = ["Couple", "CoupledPasses", "CoupledRisk", "JacobianPass", "JacobianPasses", "LinearisedModel", "rows_of"]

# May communicate with other ranks; nothing else between two couplings does.
Couple = Callable[[Sequence[LogitRows], Sequence[Tensor]], Sequence[Tensor]]


class JacobianPass(NamedTuple):
    """Result of the primal pass of a batch.

    Attributes
    ----------
    rows : LogitRows
        Logits as rows.
    push : callable
        Maps a tangent of the parameters to J v as rows (R, C), float64.
    pull : callable
        Maps a cotangent of the logits as rows to J^T u, with the shapes of the parameters.
    """

    rows: LogitRows
    push: Callable[[Sequence[Tensor]], Tensor]
    pull: Callable[[Tensor], Sequence[Tensor]]


class JacobianPasses(Passes):
    """Primal passes for products with J and J^T of the logits; see `Passes`.

    One graph contains both, so that they share the residuals of the primal pass.
    """

    # Rebuilding the graph for every product would cost more than differences.
    ways = ("traced", "double backward", "differences")
    summed = True
    # Products with J and J^T are what a Gauss-Newton product has of the model.
    shares = GAUSS_NEWTON

    def _traced_as(self) -> Hashable:
        return JacobianPasses

    def _tangents(self, batch: Batch) -> tuple[Sequence[Tensor], Sequence[Group]]:
        values = self.risk.parameters.values
        with without_values(self.risk, batch) as (theta, fixed, inputs, targets), torch.no_grad():
            predict, loss = self.risk.functions(fixed, inputs, targets)
            logits = _logits(loss, predict(theta))
            shape, dtype, device = tuple(logits.shape), logits.dtype, logits.device
            # Nothing may be held that was computed here.
            del logits
        cotangent = torch.empty(shape, dtype=dtype, device=device)
        return [*values, cotangent], [Group(len(values), 1), Group(1, len(values)), Group(0, 1)]

    def _products(
        self, predict: Predict, loss: OutputLoss, theta: Named, tangents: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        *v, u = tangents

        def logits(t: Named) -> Tensor:
            return _logits(loss, predict(t))

        pushed = jvp(logits, (theta,), (dict(zip(theta, v, strict=True)),))[1]
        pulled = vjp(logits, theta)[1](u)[0]
        return [pushed, *(pulled[name] for name in theta), logits(theta)]

    def _applied(self, trace: LinearTrace, residuals: Sequence[Tensor], batch: Batch) -> JacobianPass:
        push, pull, constant = trace.tangents
        (logits,) = constant(*residuals)
        return self._in_rows(
            batch, logits, lambda tangents: push(*residuals, *tangents)[0], lambda u: pull(*residuals, u)
        )

    def _retained(self, predict: Predict, loss: OutputLoss, theta: Named) -> Any:
        """Return logits, J v as the derivative of u -> J^T u in the direction v, and J^T u, from one retained graph."""
        leaves = tuple(theta.values())
        logits = _logits(loss, predict(theta))
        u = torch.zeros_like(logits, requires_grad=True)
        pulled = (
            torch.autograd.grad(logits, leaves, u, create_graph=True, allow_unused=True)
            if logits.requires_grad
            else (None,) * len(leaves)
        )
        reached = {i: part for i, part in enumerate(pulled) if part is not None and part.requires_grad}

        @torch.enable_grad()
        def push(tangents: Sequence[Tensor]) -> Tensor:
            if not reached:
                return torch.zeros_like(logits)
            return pull_back(tuple(reached.values()), [u], [tangents[i] for i in reached])[0]

        @torch.enable_grad()
        def pull(cotangent: Tensor) -> Sequence[Tensor]:
            if not reached:
                return tuple(map(torch.zeros_like, leaves))
            return pull_back([logits], leaves, [cotangent])

        return logits, push, pull

    def _plainly(self, plain: PlainModel, batch: Batch) -> JacobianPass:
        parameters, held = self.risk.parameters, functools.partial(self._held, plain)

        def at_logits(differences: Differences) -> tuple[int, Tensor]:
            with torch.enable_grad():
                outputs = differences.outputs()
            logits = _logits(self.risk.loss, outputs)
            place = next(i for i, head in enumerate(differentiable_outputs(outputs)[0]) if head is logits)
            return place, logits.detach()

        with held():
            place, logits = at_logits(Differences.of(self.risk, plain, batch))

        def push(tangents: Sequence[Tensor]) -> Tensor:
            with held():
                differences, given = Differences.of(self.risk, plain, batch), parameters.natural(tangents)
                if self.displacement is None:
                    found = settled(lambda h: differences.pushed(given, h), differences.dtype)
                    self.displacement = found.displacement
                return differences.pushed(given, self.displacement * self.stretch)[place]

        def pull(cotangent: Tensor) -> Sequence[Tensor]:
            with held():
                differences = Differences.of(self.risk, plain, batch)
                heads = differentiable_outputs(differences.outputs())[0]
                given = [torch.zeros_like(head) for head in heads]
                given[place] = cotangent.to(given[place].dtype)
                pulled = parameters.real(differences.pulled(given))
            return [part.to(parameters.dtype) for part in pulled]

        return self._in_rows(batch, logits, push, pull)

    def trial(self, batch: Batch, tangents: Sequence[Tensor]) -> list[Tensor]:
        """Compute J^T J v of the logits."""
        jacobian: JacobianPass = JacobianPasses.build(self, batch).apply
        with torch.no_grad():
            return list(jacobian.pull(jacobian.push(tangents)))

    def trial_by_differences(
        self, differences: Differences, tangents: Sequence[Tensor], displacement: float
    ) -> list[Tensor]:
        """Compute J^T J v of the logits by differences."""
        pushed = differences.pushed(tangents, displacement)
        outputs = differences.outputs()
        logits = _logits(self.risk.loss, outputs)
        heads = differentiable_outputs(outputs)[0]
        return differences.pulled(
            [u if head is logits else torch.zeros_like(u) for u, head in zip(pushed, heads, strict=True)]
        )

    def trial_in_place(
        self, predict: Predict, loss: OutputLoss, theta: Named, tangents: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Compute J^T J v of the logits by double backward."""
        _, push, pull = self._retained(predict, loss, theta)
        pulled: Sequence[Tensor] = pull(push(tangents))
        return pulled

    def _retain(self, batch: Batch) -> PrimalPass:
        value, (logits, push, pull), unused = super()._retain(batch)
        return PrimalPass(value, self._in_rows(batch, logits.detach(), push, pull), unused)

    def _in_rows(
        self,
        batch: Batch,
        logits: Tensor,
        push: Callable[[Sequence[Tensor]], Tensor],
        pull: Callable[[Tensor], Sequence[Tensor]],
    ) -> JacobianPass:
        rows = LogitRows.of(self.risk.loss, logits, batch.targets, batch.share)
        return JacobianPass(rows, lambda tangents: rows.flat(push(tangents)), lambda u: pull(rows.shaped(u, logits)))


class CoupledPasses(JacobianPasses):
    """Products J^T couple(J v) of a single batch, which `hesspec.plan` times."""

    def __init__(
        self, risk: EmpiricalRisk, couple: Couple, precision: str = "full", graphs: GraphCache | None = None
    ) -> None:
        super().__init__(risk, precision, graphs)
        self._couple = couple

    def build(self, batch: Batch) -> PrimalPass:
        """Run the primal pass of a batch. Raises the errors of `bytes`."""
        value, jacobian, unused = super().build(batch)

        def apply(tangents: Sequence[Tensor]) -> Sequence[Tensor]:
            (cotangent,) = self._couple([jacobian.rows], [jacobian.push(tangents)])
            parts: Sequence[Tensor] = jacobian.pull(cotangent)
            return parts

        return PrimalPass(value, apply, unused)


class LinearisedModel(KeptPasses):
    """Products J v and J^T u of the logits over all batches; see `KeptPasses`.

    Between the two, all batches are combined in the space of logits, N C numbers for each vector, in float64.
    Operations there may couple samples of different batches and cost little.

    Parameters
    ----------
    risk : EmpiricalRisk
        Its loss is a cross-entropy.
    budget : int
        Memory for cached primal passes and the running pass together, in bytes.
    precision : str
        Precision of products: "full", "tf32" or "bfloat16".
    graphs : GraphCache, optional
        Storage for traces.
    """

    def __init__(
        self, risk: EmpiricalRisk, budget: int, precision: str = "full", graphs: GraphCache | None = None
    ) -> None:
        super().__init__(risk, JacobianPasses(risk, precision, graphs), budget)

    def through(self, vectors: Sequence[Tensor], couple: Couple) -> list[Tensor]:
        """Compute this rank's part of J^T couple(rows, J v) for each flat vector (p,), in two passes over the data."""
        ranks = self._risk.ranks
        while True:
            rows, columns = self.pushed(vectors)
            parts, cotangents = dict(self._parts), [couple(rows, column) for column in columns]

            def attempt(
                parts: dict[int, int] = parts, cotangents: Sequence[Sequence[Tensor]] = cotangents
            ) -> list[Tensor] | None:
                # Rows belong to parts: if memory ran out and parts had to be split, all ranks start over.
                return self._pull(cotangents) if self._parts == parts else None

            products = ranks.together(functools.partial(self._surviving, attempt))
            again = ranks.total(float(products is None)) > 0
            if products is not None and not again:
                return products

    def pushed(self, vectors: Sequence[Tensor]) -> tuple[list[LogitRows], list[list[Tensor]]]:
        """Compute rows of this rank's batches, and J v of each flat vector in each batch, (R, C) in float64."""
        return self._risk.ranks.together(lambda: self._surviving(lambda: self._push(vectors)))

    def pulled(self, cotangents: Callable[[Sequence[LogitRows]], Sequence[Sequence[Tensor]]]) -> list[Tensor]:
        """Compute J^T u, flat (p,), for each u, given as rows (R, C) of all batches of all ranks.

        Parameters
        ----------
        cotangents : callable
            Maps the rows of this rank's batches to those of each u; it must not communicate.
        """
        ranks = self._risk.ranks
        parts = ranks.together(lambda: self._surviving(lambda: self._pull(cotangents(self._push([])[0]))))
        return [ranks.sum_(part) for part in parts]

    def rows_at(self, values: Sequence[Tensor]) -> list[LogitRows]:
        """Compute the rows of this rank's batches at other values of the parameters, by a forward pass."""
        return rows_of(self._risk.at(values), self.parts)

    def parts(self, batch: Batch) -> list[Batch]:
        """Return the parts into which a batch is split so that passes over each part fit."""
        return self._cut(batch)

    def _push(self, vectors: Sequence[Tensor]) -> tuple[list[LogitRows], list[list[Tensor]]]:
        rows: list[LogitRows] = []
        columns: list[list[Tensor]] = [[] for _ in vectors]
        split = [self._risk.parameters.split(vector) for vector in vectors]
        for _, _, jacobian in self._applications():
            rows.append(jacobian.rows)
            with torch.no_grad(), self._arithmetic():
                for column, tangents in zip(columns, split, strict=True):
                    column.append(jacobian.push(tangents))
        return rows, columns

    def _pull(self, cotangents: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        parameters = self._risk.parameters
        results = [torch.zeros(parameters.count, dtype=parameters.dtype, device=parameters.device) for _ in cotangents]
        split = [parameters.split(result) for result in results]
        for place, (_, _, jacobian) in enumerate(self._applications()):
            with torch.no_grad(), self._arithmetic():
                for sums, cotangent in zip(split, cotangents, strict=True):
                    torch._foreach_add_(sums, tuple(jacobian.pull(cotangent[place])))
        return results


class CoupledRisk(LinearisedModel):
    """Products M v = J^T couple(J v); see `LinearisedModel`."""

    def __init__(
        self,
        risk: EmpiricalRisk,
        couple: Couple,
        budget: int,
        precision: str = "full",
        graphs: GraphCache | None = None,
    ) -> None:
        super().__init__(risk, budget, precision, graphs)
        self._couple = couple

    def products(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Compute this rank's part of M v for each flat vector (p,)."""
        return self.through(vectors, self._couple)

    def diagnose(self, vector: Tensor) -> NonFiniteError:
        """Find the batch and the parameter where the gradient is not finite, or the batch where J v is not."""
        fault = self._surviving(self._fault)
        if fault is not None:
            return fault
        _, (column,) = self._surviving(lambda: self._push([vector]))
        for place, part in enumerate(column):
            if not part.isfinite().all():
                return NonFiniteError(f"J v is not finite in batch or part {place} of the data; the gradient is.")
        return NonFiniteError("The sum of the batches' matvecs is not finite, though J v is in each of them.")


def rows_of(risk: EmpiricalRisk, parts: Callable[[Batch], Sequence[Batch]] = lambda batch: [batch]) -> list[LogitRows]:
    """Compute the logits of all batches, or of their parts, as rows, by a forward pass.

    Parameters
    ----------
    risk : EmpiricalRisk
        Its loss is a cross-entropy.
    parts : callable, optional
        Splits a batch into parts.
    """
    found = []
    for batch in risk.batches:
        for part in parts(batch):
            predict, loss = risk.functions(risk.fixed, part.inputs, part.targets)
            with torch.no_grad(), preserved_randomness():
                logits = _logits(loss, predict(risk.leaves()))
            found.append(LogitRows.of(risk.loss, logits, part.targets, part.share))
    return found


def _logits(loss: OutputLoss | Loss, outputs: Any) -> Tensor:
    taken = loss.taken(outputs)
    if not isinstance(taken, Tensor):
        raise InputError(f"The model returned {type(taken).__name__}; the class structure requires a tensor of logits.")
    return taken
