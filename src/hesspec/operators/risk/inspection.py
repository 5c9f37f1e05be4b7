"""Inspection of a model by a real pass over a few samples: state, hooks, randomness, dependence of the loss."""

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
from hesspec.operators.model.plain import leaves_held
from hesspec.operators.risk.batches import Batch, Batches
from hesspec.operators.risk.first_pass import copied
from hesspec.operators.risk.output_loss import Named

if TYPE_CHECKING:
    from hesspec.operators.risk.empirical_risk import EmpiricalRisk

__all__ = ["Inspection", "few_samples", "inspect_model"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Largest number of samples in an inspection.
FEW = 8
COMPUTED_EARLY = "Compute tensors that depend on parameters in the forward pass, not in __init__, for example."
# Two passes are equal if they differ by at most this many roundings: accelerators may reorder sums.
ROUNDINGS = 1000


@dataclass
class Inspection:
    """Result of the inspection of a model.

    Attributes
    ----------
    volatile : list of str
        Attributes that the forward pass changes, such as caches; they are restored after every pass.
    moved : list of str
        Buffers and constant parameters that the forward pass writes into; each pass gets copies of these.
    overwritten : list of str
        Selected parameters that it writes into and changes by no more than rounding; copied likewise.
    hooked : bool
        Whether hooks of the user take part in the computation, so that they are kept.
    observers : bool
        Whether the module has hooks of the user that only observe; they are removed.
    reaches : bool
        Whether the loss depends on the parameters other than through the outputs.
    autocast : AutocastSeen
        Autocast inside the forward pass, which is switched off.
    double : bool
        Whether the model can be run in float64.
    detaches : bool
        Whether the forward pass or the loss detaches something that depends on the parameters, to be held constant.
    """

    volatile: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    overwritten: list[str] = field(default_factory=list)
    hooked: bool = False
    observers: bool = False
    reaches: bool = False
    autocast: AutocastSeen = field(default_factory=AutocastSeen)
    double: bool = False
    detaches: bool = False


def inspect_model(risk: EmpiricalRisk, batch: Batch) -> Inspection:
    """Run model and loss twice on a batch, with different global random numbers, and record the effects.

    Parameters
    ----------
    risk : EmpiricalRisk
    batch : Batch
        Batch of a few samples, or whole if it cannot be split.

    Raises
    ------
    ValueError
        If the two passes differ, a pass changes parameters, or there is no gradient.
    """
    found = Inspection()
    state = ModuleState(risk.model, risk.holders)
    with preserved_randomness(), neutral_modes():
        try:
            # The second pass starts from the buffers, attributes and generators as the first one left them.
            fixed, named = _copies(risk)
            memory = {name: value.data_ptr() for name, value in {**fixed, **named}.items()}
            first = _forward(risk, batch, fixed, named, found.autocast)
            found.volatile = [f"{type(part).__name__}.{name}" for part, name in state.changed()]
            found.moved = _written(fixed, risk.fixed, memory)
            values = dict(zip(risk.parameters.names, risk.parameters.values, strict=True))
            found.overwritten = _written(named, values, memory)
            _refuse_changed_parameters(risk, {**fixed, **named}, {**risk.fixed, **values})
            _compare(first, _forward(risk, batch, fixed, named, found.autocast), [*found.volatile, *found.moved])
            state.restore()
            if user_hooks(risk.model):
                with without_user_hooks(risk.model):
                    bare = _forward(risk, batch, *_copies(risk), found.autocast)
                state.restore()
                found.observers = all(map(_close, bare, first)) and len(bare) == len(first)
                found.hooked = not found.observers
        finally:
            state.restore()
    if found.observers:
        drop_user_hooks(risk.model)
    found.reaches = _reaches(risk, batch, found)
    # Parameters with data of another dtype are no longer those of a graph that was made before the forward pass.
    failed, early = (
        _differentiate(risk, batch, found, double=False) if leaves_held(risk.module.parameters()) else (None, [])
    )
    failure, reached = _differentiate(risk, batch, found, double=True)
    if not found.double:
        failure, reached = _differentiate(risk, batch, found, double=False)
    failure = failed or failure
    found.double |= risk.parameters.dtype == torch.float64
    lost = [name for name in early if name not in reached]
    if failure is None and lost:
        raise InputError(
            f"The loss depends on {', '.join(lost[:4])} through a tensor that was computed before "
            f"the forward pass. {COMPUTED_EARLY}"
        )
    if failure is not None:
        words = str(failure).strip().partition("\n")[0].partition(" Saved intermediate")[0][:300].removesuffix(".")
        advice = (
            "There are no second derivatives if loss.backward() fails: use operations, or a device, with a backward "
            "pass."
        )
        if "a second time" in words:
            advice = COMPUTED_EARLY
        raise InputError(
            f"Batch {batch.index}: the gradient of the loss cannot be computed ({type(failure).__name__}: {words}). "
            f"{advice}"
        ) from failure
    _compare_losses(risk, batch, found)
    if found.autocast:
        logger.info("autocast inside the forward pass is switched off")
    return found


def few_samples(batches: Batches, batch: Batch) -> tuple[Batch, Batch, float]:
    """Take a few samples of a batch, at most `FEW`.

    Returns
    -------
    few : Batch
        Evenly spaced samples, whose number divides that of the batch; the whole batch if it cannot be split.
    repeated : Batch
        The same samples over and over, as many as the batch has.
    ratio : float
        Loss of `repeated` divided by that of `few`.
    """
    samples = batch.samples
    if batch.indivisible:
        return batch, batch, 1.0
    count = next(k for k in range(min(FEW, samples), 0, -1) if samples % k == 0)
    for offset in range(samples // count):
        indices = torch.arange(count, device="cpu") * (samples // count) + offset
        few = batches.chosen(batch, indices)
        if batches.terms_of(few):
            ratio = samples / count if batches.summed else 1.0
            return few, batches.chosen(batch, indices.repeat(samples // count)), ratio
    return batch, batch, 1.0


def _forward(risk: EmpiricalRisk, batch: Batch, fixed: Named, named: Named, seen: AutocastSeen) -> list[Tensor]:
    """Output tensors of a pass; the pass may change its arguments."""
    with differentiable_kernels(seen):
        outputs = _without_graph(lambda: risk.outputs(fixed, copied(batch.inputs), named))
    return [tensor.detach().clone() for tensor in tensors_of(outputs)]


def _copies(risk: EmpiricalRisk) -> tuple[Named, Named]:
    """Copies of buffers and constant parameters, and of the selected parameters as leaves."""
    fixed = {name: value.clone() for name, value in risk.fixed.items()}
    return fixed, {name: value.detach().clone().requires_grad_() for name, value in risk.leaves().items()}


def _written(after: Named, before: Named, memory: dict[str, int]) -> list[str]:
    """Names of copies that were written into or given other memory, whether that changed them or not."""
    # Changes through `Tensor.data` do not raise the version.
    return [
        name
        for name, value in after.items()
        if value._version or value.data_ptr() != memory[name] or not _close(value.detach(), before[name])  # noqa: SLF001
    ]


def _refuse_changed_parameters(risk: EmpiricalRisk, after: Named, before: Named) -> None:
    names = [name for name, _ in risk.module.named_parameters()]
    changed = [name for name in names if not _close(after[name].detach(), before[name])]
    if changed:
        rest = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise InputError(
            f"The forward pass changes parameters in place: {', '.join(changed[:4])}{rest}. The loss is then not a "
            "function of the weights that the model has now. If only the first call does so, as in models that "
            "rescale their weights once, call the model on a batch, in evaluation mode, before measuring it; otherwise "
            "compute with a changed copy of the weight in the forward pass. The model was left unchanged."
        )


def _without_graph(function: Callable[[], T]) -> T:
    """Call a function under `torch.no_grad()`, or without it if the function differentiates by itself."""
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
        f"two passes over the same samples differ, so every product would be with a different matrix.{cause} Call "
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


def _differentiate(
    risk: EmpiricalRisk, batch: Batch, found: Inspection, *, double: bool
) -> tuple[Exception | None, list[str]]:
    """Compute loss and gradient, in float64 if `double`; record whether it works and whether anything is detached.

    Returns
    -------
    failure : Exception or None
        The error raised by the user's module, loss or their derivative.
    reached : list of str
        Parameters that the gradient reaches.
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
        return error, []
    # Values computed to be written into parameters must depend on them.
    found.detaches = detachments.found and not found.overwritten
    wide = (torch.float64, torch.complex128)
    if double:
        found.double = value.dtype == torch.float64 and all(part is None or part.dtype in wide for part in gradient)
    names = risk.parameters.names
    return None, [name for name, part in zip(names, gradient or [None] * len(names), strict=True) if part is not None]
