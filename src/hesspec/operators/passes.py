"""The primal pass of one batch, which leaves a product with vectors: traced, or as a double-backward graph."""

from __future__ import annotations

import copy
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hesspec._memory import is_out_of_memory
from hesspec.operators.batches import Batch
from hesspec.operators.budget import PassBytes, RandomOperationError, count_work, saved_bytes, trace_pays
from hesspec.operators.precision import arithmetic
from hesspec.operators.risk import EmpiricalRisk, Named, OutputLoss, Predict, differentiable_kernels
from hesspec.operators.structures import map_tensors, tensors_of
from hesspec.operators.tracing import Group, JointTrace, LinearTrace, cut, trace_linear

__all__ = ["Apply", "CurvatureForm", "MatrixPasses", "Passes", "PrimalPass"]

logger = logging.getLogger(__name__)

Apply = Callable[[Sequence[Tensor]], Sequence[Tensor]]

# Gradients that are alive at once in a product by double backward, in units of what its graph keeps. Measured on two
# CNNs with torch's allocator: 0.8 to 1.4.
GRADIENTS = 1.5


class CurvatureForm(Hashable, Protocol):
    """A curvature matrix of one batch, in the two forms in which its products can be had.

    Its hash tells its traces from those of other matrices.
    """

    def product(self, predict: Predict, loss: OutputLoss, theta: Named, v: Named) -> Named:
        """M v, written with the transforms of torch.func."""
        ...

    def retained(self, predict: Predict, loss: OutputLoss, theta: Named) -> Apply:
        """v -> M v from a double-backward graph that is built here, once; theta are leaves of it."""
        ...


class PrimalPass(NamedTuple):
    """What the primal pass of a batch leaves: its loss, v -> M v, and parameters without influence on the loss.

    `JacobianPasses` leave a `JacobianPass` in the place of v -> M v.
    """

    value: Tensor
    apply: Any
    unused: Sequence[str]


class Passes(ABC):
    """Primal passes of the batches of a risk, in the mode that costs least.

    Traced, one trace serves all batches of a shape. Double-backward graphs take its place where tracing fails (an
    operation without a forward-mode rule, control flow that depends on values) and where it does not pay.

    Parameters
    ----------
    risk : EmpiricalRisk
    precision : str
        Of the products: "full", "tf32" or "bfloat16".

    Attributes
    ----------
    mode : str
        "traced" or "double backward"; chosen with the first batch.
    why : str
        Why, in words.
    """

    def __init__(self, risk: EmpiricalRisk, precision: str = "full") -> None:
        self.precision = precision
        self.mode, self.why = ("", "") if precision == "full" else ("traced", f"precision {precision!r} takes a trace")
        self._risk = risk
        self._graphs: dict[Hashable, PassBytes] = {}
        self._shared: dict[Callable[..., Any], Sequence[Tensor]] = {}

    @abstractmethod
    def _traced_as(self) -> Hashable:
        """What tells the traces of these passes from others."""

    def at_full_precision(self) -> Self:
        """The same passes at full precision, which share all traces with these."""
        other = copy.copy(self)
        other.precision = "full"
        return other

    def bytes(self, batch: Batch) -> PassBytes:
        """Bytes that passes over a batch of this shape allocate. Nothing is run, where PyTorch can do without.

        Raises
        ------
        ValueError
            If the model draws random numbers in its forward pass, or cannot be traced and has to be.
        """
        trace = self._traced(batch)
        return trace.bytes if trace else self._graph_bytes(batch)

    def build(self, batch: Batch) -> PrimalPass:
        """Run the primal pass of a batch. Errors are those of `bytes`."""
        trace = self._traced(batch)
        with arithmetic(self._risk.parameters.device):
            if trace is None:
                return self._retain(batch)
            with torch.no_grad():
                if trace.shared not in self._shared:
                    self._shared[trace.shared] = trace.shared(*self._fixed)
                value, *residuals = trace.primal(*self._constants(batch))
        names = self._risk.parameters.names
        applied = self._applied(trace, [*self._shared[trace.shared], *residuals], batch)
        return PrimalPass(value, applied, [names[i] for i in trace.independent])

    @abstractmethod
    def _tangents(self, batch: Batch) -> tuple[Sequence[Tensor], Sequence[Group]]:
        """Examples of the tangents of a trace, and their groups."""

    @abstractmethod
    def _products(
        self, predict: Predict, loss: OutputLoss, theta: Named, tangents: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """What is traced, beside the loss."""

    @abstractmethod
    def _applied(self, trace: LinearTrace, residuals: Sequence[Tensor], batch: Batch) -> Any:
        """What a traced primal pass leaves."""

    @abstractmethod
    def _retained(self, predict: Predict, loss: OutputLoss, theta: Named) -> Any:
        """What a primal pass leaves in double backward."""

    def _constants(self, batch: Batch) -> list[Tensor]:
        """All tensors that a primal pass takes."""
        return [*self._fixed, *batch.leaves()[0]]

    @property
    def _fixed(self) -> list[Tensor]:
        """Tensors that are the same for all batches."""
        return [*self._risk.parameters.values, *self._risk.fixed.values()]

    def _traced(self, batch: Batch) -> LinearTrace | None:
        """The trace of this shape of batch, made where there is none yet; None in double backward."""
        try:
            if batch.opaque:
                self._leave_untraced()
            elif not self.mode:
                self._choose(batch)
            return self._trace(batch) if self.mode == "traced" else None
        except RandomOperationError as error:
            raise ValueError(
                f"The model draws random numbers in its forward pass ({error}): every matvec would be of another "
                "matrix. Call model.eval(), and switch off whatever is random."
            ) from error
        except Exception as error:
            if is_out_of_memory(error):
                raise
            why = f"no trace, {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
            if self.precision != "full":
                raise ValueError(
                    f"precision={self.precision!r} needs a trace of the model, and there is {why}. Leave precision at "
                    "'full'."
                ) from error
            self.mode, self.why = "double backward", why
            logger.info("no trace of this model, double backward instead", exc_info=error)
            return None

    def _leave_untraced(self) -> None:
        why = "the data holds objects besides tensors, whose content a trace would take for constant"
        if self.precision != "full":
            raise ValueError(why)
        self.mode, self.why = "double backward", why

    def _choose(self, batch: Batch) -> None:
        self.mode, self.why = "traced", "one trace for each shape of batch"
        risk, batches = self._risk, self._risk.batches
        try:
            with self._fake(batch) as (theta, fixed, inputs, targets), torch.no_grad(), differentiable_kernels():
                predict, loss = risk.functions(fixed, inputs, targets)
                work = count_work(lambda: loss(predict(theta)))
        except RandomOperationError:
            raise
        except Exception as error:
            logger.debug("no forward pass with fake tensors", exc_info=error)
            return
        pays, self.why = trace_pays(
            work,
            batches=len(batches),
            scale=batches.samples / batch.samples,
            shapes=len(set(batches.sizes)),
            points=risk.traces.points,
            device=risk.parameters.device,
        )
        self.mode = "traced" if pays else "double backward"

    def _key(self, batch: Batch) -> Hashable:
        tensors, structure = batch.leaves()
        return structure, tuple((tensor.shape, tensor.dtype) for tensor in tensors)

    def _trace(self, batch: Batch) -> LinearTrace:
        key, bfloat16 = self._key(batch), self.precision == "bfloat16"
        found = self._risk.traces.of(self._risk, self._traced_as())
        if (bfloat16, key) not in found.linear:
            if key not in found.joint:
                found.joint[key] = self._trace_jointly(batch)
            found.linear[bfloat16, key] = cut(found.joint[key], bfloat16=bfloat16)
        return found.linear[bfloat16, key]

    def _trace_jointly(self, batch: Batch) -> JointTrace:
        risk = self._risk
        tensors, structure = batch.leaves()
        names, fixed_names = risk.parameters.names, tuple(risk.fixed)
        p, q, b = len(names), len(fixed_names), len(tensors)

        def function(*arguments: Tensor) -> tuple[Tensor, ...]:
            theta = dict(zip(names, arguments[:p], strict=True))
            fixed = dict(zip(fixed_names, arguments[p : p + q], strict=True))
            predict, loss = risk.functions(fixed, *structure.fill(arguments[p + q : p + q + b]))
            with differentiable_kernels():
                products = self._products(predict, loss, theta, arguments[p + q + b :])
                return (loss(predict(theta)), *products)

        tangents, groups = self._tangents(batch)
        with warnings.catch_warnings():
            # torch.func warns of how it is implemented, which is nothing that a user can act on.
            warnings.simplefilter("ignore")
            return trace_linear(function, self._constants(batch), tangents, groups, len(self._fixed))

    def _retain(self, batch: Batch) -> PrimalPass:
        theta = self._risk.leaves()
        predict, loss = self._risk.functions(self._risk.fixed, batch.inputs, batch.targets)
        with torch.enable_grad(), differentiable_kernels():
            value = loss(predict(theta))
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
                with self._fake(batch) as stand_ins:
                    kept = self._saved(*stand_ins)
            except Exception as error:
                logger.debug("no double-backward graph with fake tensors", exc_info=error)
                kept = self._saved(self._risk.leaves(), self._risk.fixed, batch.inputs, batch.targets)
            products = self._risk.parameters.count * self._risk.parameters.dtype.itemsize
            self._graphs[key] = PassBytes(kept, kept, int(GRADIENTS * kept) + products)
        return self._graphs[key]

    def _saved(self, theta: Named, fixed: Named, inputs: Any, targets: Any) -> int:
        """Bytes of the double-backward graph of a batch."""
        given = tensors_of((theta, fixed, inputs, targets))
        with torch.enable_grad(), differentiable_kernels():
            return saved_bytes(
                lambda: self._retained(*self._risk.functions(fixed, inputs, targets), theta),
                given,
            )

    @contextmanager
    def _fake(self, batch: Batch) -> Iterator[tuple[Named, Named, Any, Any]]:
        """Parameters, buffers, inputs and targets as tensors of the same shapes that hold nothing, and their mode."""
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        given = self._risk.leaves(), self._risk.fixed, batch.inputs, batch.targets
        stand_ins = map_tensors(mode.from_tensor, given)
        with mode, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield stand_ins


class MatrixPasses(Passes):
    """Primal passes that leave v -> M v, for a matrix that is a sum over batches; see `Passes`.

    Parameters
    ----------
    risk : EmpiricalRisk
    form : CurvatureForm
    precision : str
    """

    def __init__(self, risk: EmpiricalRisk, form: CurvatureForm, precision: str = "full") -> None:
        super().__init__(risk, precision)
        self._form = form

    def _traced_as(self) -> Hashable:
        return self._form

    def _tangents(self, batch: Batch) -> tuple[Sequence[Tensor], Sequence[Group]]:  # noqa: ARG002
        values = self._risk.parameters.values
        return values, [Group(len(values), len(values))]

    def _products(
        self, predict: Predict, loss: OutputLoss, theta: Named, tangents: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        product = self._form.product(predict, loss, theta, dict(zip(theta, tangents, strict=True)))
        return [product[name] for name in theta]

    def _applied(self, trace: LinearTrace, residuals: Sequence[Tensor], batch: Batch) -> Apply:  # noqa: ARG002
        (tangent,) = trace.tangents
        return lambda tangents: tangent(*residuals, *tangents)

    def _retained(self, predict: Predict, loss: OutputLoss, theta: Named) -> Apply:
        apply = self._form.retained(predict, loss, theta)

        def enabled(tangents: Sequence[Tensor]) -> Sequence[Tensor]:
            with torch.enable_grad():
                return apply(tangents)

        return enabled
