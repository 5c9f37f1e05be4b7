"""What a first real pass over a few samples tells of a model: state, hooks, randomness, and where its loss reaches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from hesspec.backend.memory import is_out_of_memory
from hesspec.errors import InputError
from hesspec.operators.data.structures import map_tensors, tensors_of
from hesspec.operators.model.ambient import AutocastSeen, differentiable_kernels, neutral_modes, preserved_randomness
from hesspec.operators.model.constants import Detachments
from hesspec.operators.model.module import ModuleState, drop_user_hooks, user_hooks, without_user_hooks
from hesspec.operators.risk.batches import Batch, Batches
from hesspec.operators.risk.first_pass import copied

if TYPE_CHECKING:
    from hesspec.operators.risk.empirical_risk import EmpiricalRisk

__all__ = ["Inspection", "few_samples", "inspect_model"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Samples that a model is looked at with, at most.
FEW = 8
# Two passes that differ by no more than this many roundings are the same: sums that an accelerator orders freely.
ROUNDINGS = 1000


@dataclass
class Inspection:
    """What a first pass told.

    Attributes
    ----------
    volatile : list of str
        Attributes that the forward pass changes, such as caches; they are put back after every pass.
    moved : list of str
        Buffers that the forward pass overwrites; each pass gets copies of these.
    hooked : bool
        Whether hooks of the user's take part in the computation, so that they stay.
    observers : bool
        Whether the module has hooks of the user's that only look on; they are taken off.
    reaches : bool
        Whether the loss depends on the parameters on another way than through the outputs.
    autocast : AutocastSeen
        Autocast inside of the forward pass, which is switched off.
    double : bool
        Whether the model can be run in float64.
    detaches : bool
        Whether the forward pass or the loss detaches something that depends on the parameters.
    """

    volatile: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    hooked: bool = False
    observers: bool = False
    reaches: bool = False
    autocast: AutocastSeen = field(default_factory=AutocastSeen)
    double: bool = False
    detaches: bool = False


def inspect_model(risk: EmpiricalRisk, batch: Batch) -> Inspection:
    """Run model and loss twice on a batch, with different global random numbers, and look at what that does.

    Parameters
    ----------
    risk : EmpiricalRisk
    batch : Batch
        Of few samples, where it could be cut.

    Raises
    ------
    ValueError
        If the two passes differ, or there is no gradient.
    """
    found = Inspection()
    state = ModuleState(risk.model)
    with preserved_randomness(), neutral_modes():
        try:
            # The second pass begins where the first one left buffers, attributes and random number generators.
            fixed = {name: value.clone() for name, value in risk.fixed.items()}
            first = _forward(risk, batch, fixed, found.autocast)
            found.volatile = [f"{type(part).__name__}.{name}" for part, name in state.changed()]
            found.moved = [name for name, value in fixed.items() if not _close(value, risk.fixed[name])]
            _compare(first, _forward(risk, batch, fixed, found.autocast), [*found.volatile, *found.moved])
            state.restore()
            if user_hooks(risk.model):
                with without_user_hooks(risk.model):
                    fixed = {name: value.clone() for name, value in risk.fixed.items()}
                    bare = _forward(risk, batch, fixed, found.autocast)
                state.restore()
                found.observers = all(map(_close, bare, first)) and len(bare) == len(first)
                found.hooked = not found.observers
        finally:
            state.restore()
    if found.observers:
        drop_user_hooks(risk.model)
    found.reaches = _reaches(risk, batch, found)
    failure = _differentiate(risk, batch, found, double=True)
    if not found.double:
        failure = _differentiate(risk, batch, found, double=False)
    found.double |= risk.parameters.dtype == torch.float64
    if failure is not None:
        words = str(failure).strip().partition("\n")[0][:300].removesuffix(".")
        raise InputError(
            f"Batch {batch.index}: the gradient of the loss cannot be computed ({type(failure).__name__}: {words}). "
            "There are no second derivatives where loss.backward() fails: choose operations, or a device, that have a "
            "backward pass."
        ) from failure
    _compare_losses(risk, batch, found)
    if found.autocast:
        logger.info("autocast inside of the forward pass is switched off")
    return found


def few_samples(batches: Batches, batch: Batch, most: int = FEW) -> tuple[Batch, Batch, float]:
    """Take a few samples of a batch.

    Returns
    -------
    few : Batch
        Evenly spaced samples, of a number that divides the batch's; the whole batch where it cannot be cut.
    repeated : Batch
        The same samples over and over, as many as the batch has.
    ratio : float
        What the loss of `repeated` is in units of that of `few`.
    """
    samples = batch.samples
    if batch.indivisible:
        return batch, batch, 1.0
    count = next(k for k in range(min(most, samples), 0, -1) if samples % k == 0)
    for offset in range(samples // count):
        indices = torch.arange(count, device="cpu") * (samples // count) + offset
        few = batches.chosen(batch, indices)
        if batches.terms_of(few):
            ratio = samples / count if batches.summed else 1.0
            return few, batches.chosen(batch, indices.repeat(samples // count)), ratio
    return batch, batch, 1.0


def _forward(risk: EmpiricalRisk, batch: Batch, fixed: dict[str, Tensor], seen: AutocastSeen) -> list[Tensor]:
    """Output tensors of a pass, which may change the buffers among `fixed`."""
    with differentiable_kernels(seen):
        outputs = _without_graph(lambda: risk.outputs(fixed, copied(batch.inputs)))
    return [tensor.detach().clone() for tensor in tensors_of(outputs)]


def _without_graph(function: Callable[[], T]) -> T:
    """Result of a function under `torch.no_grad()`, or without, where it takes derivatives by itself."""
    try:
        with torch.no_grad():
            return function()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
    with torch.enable_grad():
        return function()


def _compare(first: list[Tensor], second: list[Tensor], state: list[str]) -> None:
    if len(first) == len(second) and all(map(_close, first, second)):
        return
    cause = f" It changes its own state in each pass: {', '.join(state[:6])}." if state else ""
    raise ValueError(
        "The model draws random numbers in its forward pass, or depends on something that changes from pass to pass: "
        f"two passes over the same samples differ, and every product would be of another matrix.{cause} Call "
        "model.eval(), and switch off whatever is random; pass noise as an input, or draw it with a seed of its own."
    )


def _compare_losses(risk: EmpiricalRisk, batch: Batch, found: Inspection) -> None:
    """Refuse a loss that is another one in a second call, as one with random numbers or a count of its calls."""
    plain = risk.plain(double=False, found=found)
    values = []
    # In one context, at whose end random number generators are put back.
    with plain.held(risk.parameters.natural(risk.parameters.values)), torch.enable_grad():
        evaluate = risk.plainly(plain, batch)
        for _ in range(2):
            outputs, loss = evaluate()
            values.append(loss(outputs).detach())
    if not _close(*values):
        raise ValueError(
            "The loss draws random numbers, or depends on something that changes from call to call: of the same "
            f"samples it was {float(values[0]):.6g} and then {float(values[1]):.6g}, and every product would be of "
            "another matrix. Switch off whatever is random, or draw it with a seed of its own in each call."
        )


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    scale = float(one.abs().nan_to_num(0, 0, 0).max()) if one.numel() else 0.0
    allowed = ROUNDINGS * torch.finfo(one.dtype).eps * scale
    return torch.allclose(one, other, rtol=0, atol=allowed, equal_nan=True)


def _reaches(risk: EmpiricalRisk, batch: Batch, found: Inspection) -> bool:
    """Whether the loss at constant outputs depends on the parameters of the user's module."""
    plain = risk.plain(double=False, found=found)
    with plain.held(risk.parameters.natural(risk.parameters.values)):
        evaluate = risk.plainly(plain, batch)
        outputs, loss = _without_graph(evaluate)
        with torch.enable_grad():
            try:
                value = loss(map_tensors(Tensor.detach, outputs))
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                # A loss that differentiates the outputs, by the inputs say, cannot do with constants.
                return True
            if not (isinstance(value, Tensor) and value.requires_grad):
                return False
            slopes = torch.autograd.grad(value, plain.leaves, allow_unused=True)
        return any(part is not None for part in slopes)


def _differentiate(risk: EmpiricalRisk, batch: Batch, found: Inspection, *, double: bool) -> Exception | None:
    """Compute loss and gradient, in float64 if `double`, and note whether that can be done, and what is detached.

    Returns
    -------
    Exception or None
        That which the user's module, loss or their derivative raised.
    """
    plain = risk.plain(double=double, found=found)
    try:
        with plain.held(risk.parameters.natural(risk.parameters.values)), torch.enable_grad():
            with Detachments() as detachments:
                outputs, loss = risk.plainly(plain, batch)()
                value = loss(outputs)
            gradient = torch.autograd.grad(value, plain.leaves, allow_unused=True) if value.requires_grad else ()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        logger.info("the model cannot be run in %s", "float64" if double else "its own dtype", exc_info=error)
        return error
    found.detaches = detachments.found
    wide = (torch.float64, torch.complex128)
    if double:
        found.double = value.dtype == torch.float64 and all(part is None or part.dtype in wide for part in gradient)
    return None
