"""Primal pass of a batch, from which products with vectors are computed, in one of four modes."""

from __future__ import annotations

import copy
import functools
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from hesspec.backend.arithmetic import full_float32
from hesspec.backend.bars import phase
from hesspec.backend.memory import is_out_of_memory
from hesspec.backend.user_warnings import warn
from hesspec.errors import InputError
from hesspec.operators.data.structures import tensors_of
from hesspec.operators.engine.budget import PassBytes, saved_bytes
from hesspec.operators.engine.differences import Differences
from hesspec.operators.engine.graph.kept import traces_dropped
from hesspec.operators.engine.graph.tracing import Group, JointTrace, LinearTrace, cut, trace_linear
from hesspec.operators.engine.graph_cache import GraphCache
from hesspec.operators.engine.reference import AGREE
from hesspec.operators.engine.surrogate import NOT_OF_THE_LOSS
from hesspec.operators.engine.trace_cost import TraceShares, count_work, trace_pays
from hesspec.operators.engine.verification import Verdict, verify
from hesspec.operators.engine.without_values import without_values
from hesspec.operators.model.ambient import differentiable_kernels, preserved_randomness
from hesspec.operators.model.module import conversions_refused
from hesspec.operators.model.plain import PlainModel
from hesspec.operators.risk.batches import Batch
from hesspec.operators.risk.empirical_risk import EmpiricalRisk, Named, OutputLoss, Predict
from hesspec.operators.risk.inspection import few_samples

__all__ = ["MODES", "WAYS", "Passes", "PrimalPass"]

logger = logging.getLogger(__name__)

WAYS = ("traced", "double backward", "double backward in place", "differences")
"""Modes of computing products, fastest first. "In place" runs the user's own module, with its parameters set to those
of the operator meanwhile, so that every dependence of the loss on them counts."""
MODES = ("auto", *WAYS)
# The error E of products is measured along one random direction v: if E has rank four, |E v| has a chi distribution
# with four degrees of freedom, whose upper 5% quantile is 3.7 times the lower one.
MEASURED_ONCE = 4.0

# Memory of gradients in a product by double backward, relative to its graph. Measured for two CNNs with torch's
# allocator: 0.8 to 1.4.
GRADIENTS = 1.5


class PrimalPass(NamedTuple):
    """Result of the primal pass of a batch: its loss, v -> M v, and parameters without influence on the loss.

    `JacobianPasses` return a `JacobianPass` instead of v -> M v.
    """

    value: Tensor
    apply: Any
    unused: Sequence[str]


class Passes(ABC):
    """Primal passes of the batches of a risk, in the fastest of four modes that is correct.

    In traced mode, one trace serves all batches of a shape. Double-backward graphs replace it if tracing fails (an
    operation without a forward-mode rule, control flow that depends on values) or does not pay off. Double backward in
    place runs the user's own module, for models whose copies as functions of their parameters behave differently.
    Differences need only first derivatives. `settle` compares products with differences
    (`hesspec.operators.engine.verification`), and switches to the next mode if they disagree.

    Parameters
    ----------
    risk : EmpiricalRisk
    precision : str
        Of the products: "full", "tf32" or "bfloat16".
    graphs : GraphCache, optional
        Storage for traces; by default they are not shared.

    Attributes
    ----------
    mode : str
        One of `WAYS`; chosen with the first batch.
    why : str
        Reason, as text.
    verdict : Verdict or None
        Result of the verification of this mode.
    displacement : float or None
        Relative displacement of differences; None before the first product.
    products : int or None
        Number of products for which the mode is chosen; by default those that the risk expects.
    """

    ways: ClassVar[tuple[str, ...]] = WAYS
    summed: ClassVar[bool] = False
    """Whether the product that verification compares is a sum over samples, whatever the loss is."""
    shares: TraceShares
    """Seconds of a trace, relative to one of the Hessian."""

    def __init__(self, risk: EmpiricalRisk, precision: str = "full", graphs: GraphCache | None = None) -> None:
        self.precision, self.risk, self.products = precision, risk, risk.products
        self._cached_graphs = GraphCache() if graphs is None else graphs
        self.mode, self.why = ("", "") if precision == "full" else ("traced", f"precision {precision!r} takes a trace")
        if risk.mode != "auto":
            self.mode, self.why = risk.mode, f"mode={risk.mode!r} was asked for"
        # Before any pass with fake tensors, which must not come first.
        self._inspection = risk.inspection
        self.verdict: Verdict | None = None
        # Whether what was verified is one sample, several, or both.
        self._verified: frozenset[bool] = frozenset()
        self.displacement: float | None = None
        self.stretch = 1.0
        self._steps: list[str] = []
        # Whether a trace pays off, by the number of products; None if that does not decide the mode.
        self._pays: Callable[..., tuple[bool, str]] | None = None
        self._graphs: dict[Hashable, PassBytes] = {}
        self._shared: dict[Callable[..., Any], Sequence[Tensor]] = {}

    @abstractmethod
    def _traced_as(self) -> Hashable:
        """Key that distinguishes the traces of these passes from others."""

    def at_full_precision(self) -> Self:
        """The same passes at full precision, which share all traces with these."""
        other = copy.copy(self)
        other.precision = "full"
        return other

    def at_twice_the_displacement(self) -> Self:
        """The same passes with differences over twice the displacement, to measure their error by."""
        other = copy.copy(self)
        other.stretch = 2.0
        return other

    def at(self, risk: EmpiricalRisk) -> Self:
        """The same passes at another point."""
        other = copy.copy(self)
        other.risk, other._shared = risk, {}  # noqa: SLF001 - it is of this class
        return other

    # Choice of the mode -----------------------------------------------------------------------------------------------

    @property
    def reason(self) -> str:
        """Reason for this mode, the modes that were rejected, and the result of verification, as text."""
        verified = [] if self.verdict is None else [f"verified, {self.verdict.text}"]
        dtypes = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in self._inspection.autocast.dtypes))
        autocast = [f"autocast to {dtypes} in the forward pass is switched off"] if dtypes else []
        return "; ".join([self.why, *self._steps, *verified, *autocast])

    @property
    def error(self) -> float:
        """Error of products relative to their norm, from verification; 0 if it is rounding."""
        if self.verdict is None:
            return 0.0
        return MEASURED_ONCE * self.verdict.error if self.verdict.error > AGREE[self.risk.parameters.dtype] else 0.0

    def settle(self, part: Batch) -> bool:
        """Verify products of a part of the data in the present mode, and switch to the next mode if they are wrong.

        One part of several samples is verified, and one of a single sample, if there are any: other code runs with one
        sample (`squeeze`, broadcasting, memory layouts), in models and in PyTorch.

        Returns
        -------
        bool
            Whether they are right. If not, call this again to verify the next mode.

        Raises
        ------
        ValueError
            If no mode is left; the message names the parameters that differ most.
        """
        if (part.samples == 1) in self._verified:
            return True
        if not self.risk.verify:
            self._verified = frozenset({False, True} if self._runs(part) else {})
            return bool(self._verified)
        verdict = verify(self, part)
        if not verdict.agrees:
            self.step_down(verdict.text, verdict)
            return False
        self._verified |= {part.samples == 1}
        logger.info("%s: verified, %s", self.mode, verdict.text)
        told = self.verdict is not None and self.verdict.surrogate
        if self.verdict is None or verdict.error > self.verdict.error:
            self.verdict = verdict
        if verdict.surrogate and not told:
            warn(f"Products are with the derivatives of the backward passes, by double backward: {NOT_OF_THE_LOSS}.")
        return True

    def _runs(self, part: Batch) -> bool:
        """Whether a product can be computed."""
        few, repeated, _ = few_samples(self.risk.batches, part)
        try:
            self.trial(repeated if self.mode == "traced" else few, self.risk.parameters.values)
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, InputError):
                raise
            self.step_down(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}")
            return False
        return True

    def step_down(self, why: str, verdict: Verdict | None = None) -> None:
        """Switch to the next mode.

        Raises
        ------
        ValueError
            If there is none, or it was not asked for.
        """
        step = f"not {self.mode}: {why}"
        if self.precision != "full":
            raise ValueError(
                f"precision={self.precision!r} needs a trace of the model, and that cannot be used: {why}. Leave "
                "precision at 'full'."
            )
        place = self.ways.index(self.mode)
        if place + 1 == len(self.ways) or self.risk.mode != "auto":
            where = f" Parameters that differ most: {', '.join(verdict.worst)}." if verdict and verdict.worst else ""
            tried = "; ".join([*self._steps, step])
            if self.risk.mode not in ("auto", "differences") and (verdict is None or math.isinf(verdict.error)):
                raise ValueError(
                    f"mode={self.mode!r} is not possible here: {why.removesuffix('.')}. mode='auto' takes another one."
                )
            raise ValueError(
                f"No product with this matrix can be trusted: {tried}.{where} Look for operations there whose "
                "derivatives are not those of their values (custom autograd Functions, casts to low precision, random "
                "or stateful parts), or, if you know better, pass verify=False."
            )
        self._steps.append(step)
        self.mode, self.why, self.verdict = self.ways[place + 1], "fallback", None
        self._verified, self._pays = frozenset(), None
        logger.info("%s; %s instead", step, self.mode)
        if self.mode == "differences":
            digits = "about 7 digits" if self._inspection.double else "about 3 digits"
            warn(
                f"Products are computed by central differences of gradients, with {digits}, as the second derivatives "
                f"of this model cannot be used ({why}). Their error is measured and is part of all bounds."
            )

    @abstractmethod
    def trial(self, batch: Batch, tangents: Sequence[Tensor]) -> list[Tensor]:
        """Compute the product for verification, with the shapes of the parameters."""

    def trial_by_rules(self, batch: Batch, tangents: Sequence[Tensor]) -> list[Tensor]:
        """The product for verification of a batch of any shape, by the derivative rules of this mode but no trace."""
        return self.trial(batch, tangents)

    @abstractmethod
    def trial_by_differences(
        self, differences: Differences, tangents: Sequence[Tensor], displacement: float
    ) -> list[Tensor]:
        """The same product by differences."""

    @abstractmethod
    def trial_in_place(
        self, predict: Predict, loss: OutputLoss, theta: Named, tangents: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """The same product by double backward."""

    # Passes ----------------------------------------------------------------------------------------------------------

    def bytes(self, batch: Batch) -> PassBytes:
        """Predict the bytes that passes over a batch of this shape allocate, without running them if possible.

        Raises
        ------
        ValueError
            If the model cannot be traced and must be.
        """
        with preserved_randomness():
            return self._bytes(batch)

    def _bytes(self, batch: Batch) -> PassBytes:
        trace = self._traced(batch)
        if trace is not None:
            return trace.bytes
        if self.mode in ("double backward", "double backward in place"):
            try:
                size = self._graph_bytes(batch)
            except Exception as error:
                if is_out_of_memory(error) or isinstance(error, InputError):
                    raise
                self.step_down(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}")
                return self._bytes(batch)
            if self.mode == "double backward":
                return size
            return PassBytes(0, size.primal, size.kept + size.tangent)
        return self._gradient_bytes(batch)

    def build(self, batch: Batch) -> PrimalPass:
        """Run the primal pass of a batch. Raises the errors of `bytes`."""
        with preserved_randomness():
            trace = self._traced(batch)
        with full_float32():
            if trace is None:
                with preserved_randomness():
                    return self._untraced(batch)
            with torch.no_grad():
                if trace.shared not in self._shared:
                    self._shared[trace.shared] = trace.shared(*self._fixed)
                value, *residuals = trace.primal(*self._constants(batch))
        names = self.risk.parameters.names
        applied = self._applied(trace, [*self._shared[trace.shared], *residuals], batch)
        return PrimalPass(value, applied, [names[i] for i in trace.independent])

    def _untraced(self, batch: Batch) -> PrimalPass:
        if self.mode == "double backward":
            return self._retain(batch)
        plain = self.risk.plain(double=self.mode == "differences" and self._inspection.double)
        value, unused = self._plain_pass(plain, batch)
        return PrimalPass(value, self._plainly(plain, batch), unused)

    @abstractmethod
    def _tangents(self, batch: Batch) -> tuple[Sequence[Tensor], Sequence[Group]]:
        """Examples of the tangents of a trace, and their groups."""

    @abstractmethod
    def _products(
        self, predict: Predict, loss: OutputLoss, theta: Named, tangents: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Products that are traced, besides the loss."""

    @abstractmethod
    def _applied(self, trace: LinearTrace, residuals: Sequence[Tensor], batch: Batch) -> Any:
        """Result of a traced primal pass."""

    @abstractmethod
    def _retained(self, predict: Predict, loss: OutputLoss, theta: Named) -> Any:
        """Result of a primal pass in double backward."""

    @abstractmethod
    def _plainly(self, plain: PlainModel, batch: Batch) -> Any:
        """Result of a primal pass if products run the user's own module, which caches nothing."""

    def _constants(self, batch: Batch) -> list[Tensor]:
        """All tensor arguments of a primal pass."""
        return [*self._fixed, *batch.leaves()[0]]

    @property
    def _fixed(self) -> list[Tensor]:
        """Tensors that are the same for all batches."""
        return [*self.risk.parameters.values, *self.risk.fixed.values()]

    def _traced(self, batch: Batch) -> LinearTrace | None:
        """Return the trace for this batch shape, created if necessary; None if products are not traced."""
        try:
            if not self.mode:
                self._choose(batch)
            return self._trace(batch) if self.mode == "traced" else None
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, InputError):
                raise
            logger.debug("no trace of this model", exc_info=error)
            self.step_down(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}")
            return None

    def _choose(self, batch: Batch) -> None:
        self.mode, self.why = "traced", "one trace for each shape of batch"
        risk, batches = self.risk, self.risk.batches
        try:
            with without_values(risk, batch) as given, torch.no_grad(), differentiable_kernels():
                theta, fixed, inputs, targets = given
                predict, loss = risk.functions(fixed, inputs, targets)
                work = count_work(lambda: predict(theta), lambda outputs: loss(outputs, theta), self.shares)
        except Exception as error:
            logger.debug("no forward pass with fake tensors", exc_info=error)
            return
        self._pays = functools.partial(
            trace_pays,
            work,
            batches=len(batches),
            scale=batches.samples / batch.samples,
            shapes=len(set(batches.sizes)),
            points=self._cached_graphs.points,
            device=risk.parameters.device,
        )
        pays, self.why = self._pays(products=self.products)
        self.mode = "traced" if pays else "double backward"

    def reconsider(self) -> bool:
        """Switch to a trace if it did not pay off before and does for the products that are expected now."""
        if self._pays is None or self.mode != "double backward":
            return False
        pays, why = self._pays(products=self.risk.products)
        if pays:
            self.mode, self.why, self.verdict, self._verified = "traced", why, None, frozenset()
        return pays

    def _key(self, batch: Batch) -> Hashable:
        """Key of the shape of a batch: shapes and dtypes of tensors, and the rest of the structure."""
        tensors, structure = batch.leaves()
        return structure, tuple((tensor.shape, tensor.dtype) for tensor in tensors)

    def _trace(self, batch: Batch) -> LinearTrace:
        if batch.opaque:
            raise TypeError("the data holds objects besides tensors, whose content a trace would take for constant")
        if self._inspection.hooked:
            raise TypeError("hooks of the user's own take part in the computation")
        key, bfloat16 = self._key(batch), self.precision == "bfloat16"
        found = self._cached_graphs.of(self.risk, self._traced_as())
        if (bfloat16, key) not in found.linear:
            if key not in found.joint:
                found.joint[key] = self._trace_jointly(batch)
            found.linear[bfloat16, key] = cut(found.joint[key], bfloat16=bfloat16)
        return found.linear[bfloat16, key]

    def _trace_jointly(self, batch: Batch) -> JointTrace:
        phase("tracing")
        risk = self.risk
        tensors, structure = batch.leaves()
        names, fixed_names = risk.parameters.names, tuple(risk.fixed)
        p, q, b = len(names), len(fixed_names), len(tensors)

        def function(*arguments: Tensor) -> tuple[Tensor, ...]:
            theta = dict(zip(names, arguments[:p], strict=True))
            fixed = dict(zip(fixed_names, arguments[p : p + q], strict=True))
            predict, loss = risk.functions(fixed, *structure.fill(arguments[p + q : p + q + b]))
            with called, differentiable_kernels():
                products = self._products(predict, loss, theta, arguments[p + q + b :])
                return (loss(predict(theta), theta), *products)

        tangents, groups = self._tangents(batch)
        with traces_dropped(risk.model, risk.holders) as called, conversions_refused():
            return trace_linear(function, self._constants(batch), tangents, groups, len(self._fixed))

    def _retain(self, batch: Batch) -> PrimalPass:
        theta = self.risk.leaves()
        predict, loss = self.risk.functions(self.risk.fixed, batch.inputs, batch.targets)
        with torch.enable_grad(), differentiable_kernels():
            value = loss(predict(theta), theta)
            gradient = (
                torch.autograd.grad(value, tuple(theta.values()), allow_unused=True)
                if value.requires_grad
                else [None] * len(theta)
            )
            unused = [name for name, part in zip(theta, gradient, strict=True) if part is None]
            apply = self._retained(predict, loss, theta)
        return PrimalPass(value.detach(), apply, unused)

    def _graph_bytes(self, batch: Batch) -> PassBytes:
        key = self._key(batch)
        if key not in self._graphs:
            try:
                with without_values(self.risk, batch) as stand_ins:
                    kept = self._saved(*stand_ins)
            except Exception as error:
                logger.debug("no double-backward graph with fake tensors", exc_info=error)
                kept = self._saved(self.risk.leaves(), self.risk.fixed, batch.inputs, batch.targets)
            products = self.risk.parameters.count * self.risk.parameters.dtype.itemsize
            self._graphs[key] = PassBytes(kept, kept, int(GRADIENTS * kept) + products)
        return self._graphs[key]

    def _saved(self, theta: Named, fixed: Named, inputs: Any, targets: Any) -> int:
        """Bytes of the double-backward graph of a batch."""
        given = tensors_of((theta, fixed, inputs, targets))
        with torch.enable_grad(), differentiable_kernels():
            return saved_bytes(lambda: self._retained(*self.risk.functions(fixed, inputs, targets), theta), given)

    # The user's own module -------------------------------------------------------------------------------------------

    @contextmanager
    def _held(self, plain: PlainModel) -> Iterator[PlainModel]:
        with plain.held(self.risk.parameters.natural(self.risk.parameters.values)):
            yield plain

    def _plain_pass(self, plain: PlainModel, batch: Batch) -> tuple[Tensor, Sequence[str]]:
        """Compute the loss of a batch, and the names of parameters on which it does not depend."""
        with self._held(plain), torch.enable_grad():
            outputs, loss = self.risk.plainly(plain, batch)()
            value = loss(outputs)
            found: Sequence[Tensor | None] = [None] * len(plain.leaves)
            if value.requires_grad:
                found = plain.gradients([value])
        names = self.risk.parameters.names
        unused = [name for name, part in zip(names, found, strict=True) if part is None]
        return value.detach().to(self.risk.parameters.dtype), unused

    def _gradient_bytes(self, batch: Batch) -> PassBytes:
        """Bytes of a gradient of the user's own module."""
        key = ("gradient", self._key(batch))
        if key not in self._graphs:
            plain = self.risk.plain(double=self._inspection.double)
            with self._held(plain), torch.enable_grad():
                evaluate = self.risk.plainly(plain, batch)

                def graph() -> Tensor:
                    outputs, loss = evaluate()
                    return loss(outputs)

                kept = saved_bytes(graph, plain.leaves)
            products = 4 * self.risk.parameters.count * (8 if plain.double else self.risk.parameters.dtype.itemsize)
            self._graphs[key] = PassBytes(0, kept, int(GRADIENTS * kept) + products)
        return self._graphs[key]
