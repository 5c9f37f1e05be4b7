"""Products of a curvature matrix with vectors, with all that does not depend on the vector computed once."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hesspec._memory import free_memory
from hesspec.errors import NonFiniteError
from hesspec.operators.batches import Batch
from hesspec.operators.risk import EmpiricalRisk, Named, OutputLoss, Predict, differentiable_kernels
from hesspec.operators.tracing import LinearTrace, RandomOperationError, trace_linear

__all__ = ["CurvatureForm", "LinearisedRisk"]

logger = logging.getLogger(__name__)

# Of the memory that is free at the start, what kept primal passes may fill; the rest is for the Krylov basis.
KEPT_SHARE = 0.5

Apply = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class CurvatureForm(Protocol):
    """A curvature matrix of one batch, in the two forms in which its products can be had."""

    def product(self, predict: Predict, loss: OutputLoss, theta: Named, v: Named) -> Named:
        """M v, written with the transforms of torch.func."""
        ...

    def retained(self, predict: Predict, loss: OutputLoss, theta: Named) -> Apply:
        """v -> M v from a double-backward graph that is built here, once; theta are leaves of it."""
        ...


class LinearisedRisk:
    """M v for one curvature matrix M of a risk: traced once for each shape of batch, primal passes kept.

    Where tracing fails (an operation without a forward-mode rule, control flow that depends on values), retained
    double-backward graphs take its place. Primal passes are kept while they leave half of the free memory; those of
    further batches are repeated in every pass over the data and shared by all vectors of the pass.

    Parameters
    ----------
    risk : EmpiricalRisk
    form : CurvatureForm

    Attributes
    ----------
    mode : str
        "traced" or "double backward".
    reason : str
        Why, in words.
    value : float
        The risk at this point.
    seconds : float
        Time that building took.

    Raises
    ------
    ValueError
        If the model draws random numbers in its forward pass.
    NonFiniteError
        If the loss of a batch is NaN or infinite.
    """

    def __init__(self, risk: EmpiricalRisk, form: CurvatureForm) -> None:
        self._risk, self._form = risk, form
        self._traces: dict[Hashable, LinearTrace] = {}
        self._kept: dict[int, tuple[float, Apply]] = {}
        self._unused = set(risk.parameters.names)
        self.mode, self.reason, self.value = "traced", "one trace for each shape of batch", 0.0
        start = time.perf_counter()
        floor = free_memory(risk.parameters.device) * (1 - KEPT_SHARE)
        for batch in risk.batches:
            apply = self._build(batch)
            if free_memory(risk.parameters.device) > floor:
                self._kept[batch.index] = (batch.share, apply)
        self._all_kept = len(self._kept) == sum(share > 0 for share in risk.batches.shares)
        self.reason += f"; primal passes kept for {len(self._kept)} of {len(risk.batches)} batches"
        self.seconds = time.perf_counter() - start
        logger.info("%s: %s, in %.2f s", self.mode, self.reason, self.seconds)
        self._warn_unused()

    def products(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """M v for each flat vector (p,), in one pass over the data."""
        parameters = self._risk.parameters
        results = [torch.zeros_like(vector) for vector in vectors]
        split = [
            (parameters.split(vector), parameters.split(result))
            for vector, result in zip(vectors, results, strict=True)
        ]
        with torch.no_grad():
            for _, share, apply in self._applications():
                for tangents, sums in split:
                    for total, part in zip(sums, apply(tangents), strict=True):
                        total.add_(part, alpha=share)
        return results

    def diagnose(self, vector: Tensor) -> NonFiniteError:
        """Find the batch and the parameter where M v is NaN or infinite."""
        names = self._risk.parameters.names
        for batch in self._risk.batches:
            _, gradient = self._risk.gradient(batch)
            for name, part in zip(names, gradient, strict=True):
                if not part.isfinite().all():
                    return NonFiniteError(f"The gradient of {name!r} is not finite in batch {batch.index}.")
        tangents = self._risk.parameters.split(vector)
        with torch.no_grad():
            for index, _, apply in self._applications():
                for name, part in zip(names, apply(tangents), strict=True):
                    if not part.isfinite().all():
                        return NonFiniteError(
                            f"The matvec is not finite in batch {index}, parameter {name!r}; loss and gradient are."
                        )
        return NonFiniteError("The sum of the batches' matvecs is not finite, though each of them is: it overflows.")

    def _applications(self) -> Iterator[tuple[int, float, Apply]]:
        for index, (share, apply) in self._kept.items():
            yield index, share, apply
        if not self._all_kept:
            for batch in self._risk.batches:
                if batch.index not in self._kept:
                    yield batch.index, batch.share, self._build(batch)

    def _build(self, batch: Batch) -> Apply:
        if self.mode == "traced":
            try:
                trace = self._trace(batch)
            except RandomOperationError as error:
                raise ValueError(
                    f"The model draws random numbers in its forward pass ({error}): every matvec would be of another "
                    "matrix. Call model.eval(), and switch off whatever is random."
                ) from error
            except Exception as error:
                self.mode = "double backward"
                self.reason = f"no trace, {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
                logger.info("no trace of this model, double backward instead", exc_info=error)
        if self.mode == "double backward":
            return self._retain(batch)
        leaves, _ = batch.leaves()
        with torch.no_grad():
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            value, *residuals = trace.primal(*self._risk.parameters.values, *self._risk.fixed.values(), *tensors)
        self._note(batch, value, [self._risk.parameters.names[i] for i in trace.independent])
        return lambda tangents: trace.tangent(*residuals, *tangents)

    def _trace(self, batch: Batch) -> LinearTrace:
        risk = self._risk
        leaves, structure = batch.leaves()
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = (
            structure,
            tuple((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves),
        )
        if key in self._traces:
            return self._traces[key]
        names, fixed_names = risk.parameters.names, tuple(risk.fixed)
        p, q, b = len(names), len(fixed_names), len(tensors)

        def function(*arguments: Tensor) -> tuple[Tensor, ...]:
            theta = dict(zip(names, arguments[:p], strict=True))
            fixed = dict(zip(fixed_names, arguments[p : p + q], strict=True))
            supply = iter(arguments[p + q : p + q + b])
            filled = [next(supply) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            predict, loss = risk.functions(fixed, *pytree.tree_unflatten(filled, structure))
            v = dict(zip(names, arguments[p + q + b :], strict=True))
            with differentiable_kernels():
                product = self._form.product(predict, loss, theta, v)
                return (loss(predict(theta)), *(product[name] for name in names))

        with warnings.catch_warnings():
            # torch.func warns of how it is implemented, which is nothing that a user can act on.
            warnings.simplefilter("ignore")
            trace = trace_linear(
                function,
                [*risk.parameters.values, *risk.fixed.values(), *tensors],
                risk.parameters.values,
            )
        self._traces[key] = trace
        return trace

    def _retain(self, batch: Batch) -> Apply:
        theta = self._risk.leaves()
        predict, loss = self._risk.functions(self._risk.fixed, batch.inputs, batch.targets)
        with torch.enable_grad(), differentiable_kernels():
            value = loss(predict(theta))
            gradient = (
                torch.autograd.grad(value, tuple(theta.values()), allow_unused=True)
                if value.requires_grad
                else [None] * len(theta)
            )
            self._note(
                batch,
                value,
                [name for name, part in zip(theta, gradient, strict=True) if part is None],
            )
            apply = self._form.retained(predict, loss, theta)

        def enabled(tangents: Sequence[Tensor]) -> Sequence[Tensor]:
            with torch.enable_grad():
                return apply(tangents)

        return enabled

    def _note(self, batch: Batch, value: Tensor, unused: Sequence[str]) -> None:
        self._unused &= set(unused)
        if not value.isfinite():
            raise NonFiniteError(
                f"The loss of batch {batch.index} is {float(value)}; check its inputs and targets, and the weights."
            )
        self.value += batch.share * float(value.detach())

    def _warn_unused(self) -> None:
        if self._unused:
            shown = ", ".join(name for name in self._risk.parameters.names if name in self._unused)
            warnings.warn(
                f"These parameters do not influence the loss; their curvature is zero: {shown}.",
                stacklevel=5,
            )
