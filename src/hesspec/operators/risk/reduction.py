"""Reduction of a loss over its batch (mean, sum or neither), determined from the losses of two parts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hesspec.backend.memory import is_out_of_memory
from hesspec.operators.data.division import Division
from hesspec.operators.data.structures import describe, rows_of
from hesspec.operators.risk.first_pass import Evaluation, Forward, copied, evaluate
from hesspec.operators.risk.loss_calls import LossCall, LossCalls
from hesspec.operators.risk.losses import Loss
from hesspec.operators.risk.outputs import differentiable_outputs
from hesspec.operators.risk.terms import SUM, Terms

__all__ = [
    "LOOKED_AT",
    "SMALLER",
    "Finding",
    "Groups",
    "Part",
    "by_calls",
    "check_broadcast",
    "compare_outputs",
    "compare_parts",
    "mixed_parts",
    "two_parts",
]

Groups = tuple[Tensor, Tensor]
"""Indices of the samples of two parts, ascending."""

# Number of samples that are evaluated, and of those in the smaller part: the parts are uneven to distinguish a mean of
# the parts' means from the mean of all.
LOOKED_AT, SMALLER = 16, 5

# Tolerance of a loss, in roundings of itself and of the outputs: the order of sums over samples and channels depends on
# the number of samples.
ROUNDINGS = 1024

# Means with a guarded denominator (the total of a mask + 1e-6) do not add up to rounding, but are means.
NEARLY = 1e-5

# A candidate that fits worse than the best by this factor, and by more than this many roundings, is rejected.
WORSE, ALIKE = 8.0, 256


@dataclass(frozen=True)
class Part:
    """Some samples of a batch."""

    inputs: Any
    targets: Any
    samples: int


@dataclass(frozen=True)
class Finding:
    """Result of comparing the loss of a batch with those of two parts.

    Attributes
    ----------
    fits : tuple of Terms
        Terms that the mean may be over, or `SUM`; empty if no candidate fits.
    exact : frozenset of Terms
        Those for which the losses of the parts add up to that of the batch to rounding, so that it may be split.
    backed : frozenset of Terms
        Those that are the terms of the loss functions that were called.
    words : str
        The losses, as text.
    cut : bool
        Whether the model was run on parts of the batch.
    of_one : bool
        Whether it is the loss of one sample, for which a sum over samples and their mean are the same: a factor of the
        number of samples does not show.
    """

    fits: tuple[Terms, ...]
    exact: frozenset[Terms]
    backed: frozenset[Terms]
    words: str
    cut: bool
    of_one: bool = False

    def and_of(self, other: Finding | None) -> Finding:
        """Return what fits both this batch and an earlier one."""
        if other is None:
            return self
        fits = tuple(terms for terms in other.fits if terms in self.fits)
        return replace(other, fits=fits, exact=self.exact & other.exact, backed=self.backed & other.backed)


def two_parts(loss: Loss, whole: Part, terms: Sequence[Terms], *, limit: int = LOOKED_AT) -> tuple[Tensor, Tensor]:
    """Return indices of two uneven parts, ascending, for which the candidate terms differ most.

    Parameters
    ----------
    loss : Loss
    whole : Part
        A batch of at least two samples.
    terms : sequence of Terms
    limit : int
        Number of samples of both parts together.
    """
    count = min(limit, whole.samples)
    smaller = max(1, count * SMALLER // LOOKED_AT)
    order, spread = torch.arange(whole.samples, device="cpu"), 0.0
    for candidate in terms:
        each = candidate.of_each(loss, whole.inputs, whole.targets, whole.samples)
        if each is None or not each.sum() > 0:
            continue
        deviation = float((each / each.sum() - 1 / whole.samples).abs().sum())
        if deviation > spread + 1e-9:
            order, spread = each.argsort(stable=True), deviation
    return order[:smaller].sort().values, order[whole.samples - (count - smaller) :].sort().values


def mixed_parts(loss: Loss, whole: Part, groups: Groups, terms: Terms) -> Groups:
    """Return other parts of the same samples, which differ least in their numbers of terms.

    Parameters
    ----------
    loss : Loss
    whole : Part
    groups : tuple of Tensor
        Parts of its samples.
    terms : Terms
    """
    chosen = torch.cat(groups).sort().values
    each = terms.of_each(loss, whole.inputs, whole.targets, whole.samples)
    if each is not None:
        chosen = chosen[each[chosen].argsort(descending=True, stable=True)]
    return chosen[1::2].sort().values, chosen[::2].sort().values


def compare_parts(
    index: int,
    whole: Evaluation,
    parts: tuple[Part, Part, Part],
    terms: Sequence[Terms],
    forward: Forward,
    loss: Loss,
    *,
    strict: bool = False,
) -> Finding | None:
    """Compare the loss of some samples with those of two parts of them, by two more forward passes.

    Parameters
    ----------
    index : int
        Of the batch.
    whole : Evaluation
        Of the first of `parts`.
    parts : tuple of Part
        The samples, and two parts of them.
    terms : sequence of Terms
        What the mean may be over.
    forward : callable
    loss : Loss
    strict : bool
        Whether the loss of a part without terms must be zero or not finite.

    Returns
    -------
    Finding or None
        The result; None if it is not informative: the loss is not finite or changes from call to call, or the model
        cannot process either part.
    """
    if not math.isfinite(whole.value):
        return None
    found = [_tried(index, part, forward, loss) for part in parts[1:]]
    if not any(found):
        return None
    values = [part and (part.value, part.calls) for part in found]
    compared = _compared(loss, parts, whole, values, terms, strict=strict)
    if not compared.fits:
        again = _tried(index, parts[0], forward, loss)
        if again is None or again.value != whole.value:
            return None
    return compared


def compare_outputs(
    whole: Evaluation, batch: Part, groups: tuple[Tensor, Tensor], terms: Sequence[Terms], loss: Loss
) -> Finding | None:
    """Compare the loss of a batch with those of two parts of its outputs, without a forward pass.

    A model may mix samples although its loss does not, as for the nodes of a graph: then batches are never split, but
    this determines what the loss is a mean over.

    Parameters
    ----------
    whole : Evaluation
        Of the batch.
    batch : Part
    groups : tuple of Tensor
        Indices of its samples in two parts, all of them.
    terms : sequence of Terms
    loss : Loss

    Returns
    -------
    Finding or None
        The result; None if outputs or targets are not organised by samples.
    """
    places = Division.of(batch.targets, batch.samples)
    leaves, structure = pytree.tree_flatten(loss.taken(whole.outputs))
    rows = [isinstance(leaf, Tensor) and rows_of(leaf) == batch.samples for leaf in leaves]
    if not math.isfinite(whole.value) or not any(rows) or (batch.targets is not None and not places.divides):
        return None
    parts, found = [Part(None, batch.targets, batch.samples)], []
    for group in groups:
        taken = [leaf[group.to(leaf.device)] if of_rows else leaf for leaf, of_rows in zip(leaves, rows, strict=True)]
        parts.append(Part(None, places.taken(batch.targets, group), len(group)))
        try:
            with warnings.catch_warnings(), torch.no_grad(), LossCalls() as recorder:
                warnings.simplefilter("ignore")
                value = loss.of_taken(pytree.tree_unflatten(taken, structure), copied(parts[-1].targets))
        except Exception as error:
            # A loss that fails for a subset of the samples is not a mean over them.
            if is_out_of_memory(error):
                raise
            return None
        found.append((float(value.detach().double()), recorder.calls))
    compared = _compared(loss, (parts[0], parts[1], parts[2]), whole, found, terms, strict=True)
    return replace(compared, exact=frozenset(), cut=False)


def check_broadcast(index: int, whole: Evaluation, batch: Part, terms: Sequence[Terms], loss: Loss) -> None:
    """Reject outputs (N, 1) with targets (N,), or the reverse, if the loss is a mean only for equal shapes.

    Parameters
    ----------
    index : int
    whole : Evaluation
        Of the batch, whose loss is neither a mean nor a sum of its samples.
    batch : Part
    terms : sequence of Terms
    loss : Loss

    Raises
    ------
    ValueError
        If every output is compared with every target.
    """
    outputs, targets = loss.taken(whole.outputs), batch.targets
    if (
        not isinstance(outputs, Tensor)
        or not isinstance(targets, Tensor)
        or len(outputs.shape[:1] + targets.shape[:1]) < 2
    ):
        return
    column, row = sorted((outputs, targets), key=Tensor.dim, reverse=True)
    if column.shape != (len(row), 1) or row.dim() != 1:
        return
    alike = outputs[:, 0] if outputs.dim() == 2 else outputs[:, None]
    try:
        with torch.no_grad():
            value, other = (float(loss.of_taken(alike, copied(each)).detach()) for each in (targets, targets.flip(0)))
    except Exception as error:
        # A loss that pairs samples on purpose may need its shapes.
        if is_out_of_memory(error):
            raise
        return
    groups = two_parts(loss, batch, terms, limit=batch.samples)
    found = compare_outputs(replace(whole, outputs=alike, value=value), batch, groups, terms, loss)
    if value != other and found is not None and found.fits:
        raise ValueError(
            f"Batch {index}: the model returned {describe(outputs)}, and the targets are {describe(targets)}: the loss "
            "compares all outputs with all targets. Give both the same shape, with .squeeze(1) or .unsqueeze(1)."
        )


def by_calls(whole: Evaluation, batch: Part, terms: Sequence[Terms], loss: Loss) -> Finding | None:
    """Infer the reduction of a batch without parts from calls of loss functions; None if the loss is not their result.

    Parameters
    ----------
    whole : Evaluation
        Of the batch.
    batch : Part
    terms : sequence of Terms
    loss : Loss
    """
    noise = ROUNDINGS * _rounding(whole) * abs(whole.value)
    same = [
        call
        for call in whole.calls
        if call.result.dim() == 0 and abs(float(call.result.detach()) - whole.value) <= noise
    ]
    if not same:
        return None
    summed, of_one = same[0].given["reduction"] == "sum", batch.samples == 1
    # The sum of one term is its mean.
    number = (1.0 if of_one else None) if summed else same[0].terms
    means = tuple(
        each for each in terms if each != SUM and _is(number, each.of(loss, batch.inputs, batch.targets, batch.samples))
    )
    fits = (SUM, *means) if summed else means
    backed = frozenset({SUM}) if summed else frozenset(means)
    words = f"{whole.value:.6g}, of {same[0].name}"
    return Finding(fits, frozenset(), backed, words, cut=False, of_one=of_one) if fits else None


def _tried(index: int, part: Part, forward: Forward, loss: Loss) -> Evaluation | None:
    """Evaluate some of the samples; None if the model or the loss fails on them."""
    try:
        with warnings.catch_warnings():
            # Such as those of standard deviations of one sample, which the user's own batches do not give.
            warnings.simplefilter("ignore")
            return evaluate(index, part.inputs, part.targets, forward, loss)
    except ValueError:
        return None


def _compared(
    loss: Loss,
    parts: tuple[Part, Part, Part],
    whole: Evaluation,
    found: Sequence[Any],
    terms: Sequence[Terms],
    *,
    strict: bool = False,
) -> Finding:
    """Return the candidates that fit the losses and calls of two parts, each of which may be None."""
    evaluated = [(whole.value, whole.calls), *found]
    values = [math.nan if one is None else one[0] for one in evaluated]
    scale = sum(abs(value) for value in values if math.isfinite(value))
    numbers = {each: [each.of(loss, part.inputs, part.targets, part.samples) for part in parts] for each in terms}
    calls = [one[1] for one in evaluated if one is not None]
    off = {
        each: _off(each, values, number, strict) if all(_has_weights(each, of_part) for of_part in calls) else math.inf
        for each, number in numbers.items()
    }
    noise = ROUNDINGS * _rounding(whole) * scale
    if min(off.values()) > noise:
        # Rounding of the outputs may exceed that of the loss, if the loss is a small difference of them.
        noise += ROUNDINGS * _rounding(whole) * _effect(loss, whole, parts[0].targets)
    best = min(off.values())
    limit = min(max(noise, NEARLY * scale), max(WORSE * best, ALIKE * _rounding(whole) * scale))
    fits = tuple(each for each in terms if off[each] <= limit)
    backed = frozenset(
        each
        for each in fits
        if each != SUM and all(_backs(one, number) for one, number in zip(evaluated, numbers[each], strict=True))
    )
    counts = [part.samples for part in parts]
    words = (
        f"{values[0]:.6g} for {counts[0]} samples, {values[1]:.6g} for {counts[1]} of them and {values[2]:.6g} for the "
        f"other {counts[2]}"
    )
    return Finding(fits, frozenset(each for each in fits if off[each] <= noise), backed, words, cut=True)


def _has_weights(terms: Terms, calls: Sequence[LossCall]) -> bool:
    """Whether class weights, if the terms are those, are the same in these calls, and not computed from the batch."""
    given = (call.given.get("weight") for call in calls)
    return terms.kind != "weights" or any(
        isinstance(weight, Tensor) and tuple(weight.double().flatten().tolist()) == terms.weights for weight in given
    )


def _off(terms: Terms, values: Sequence[float], numbers: Sequence[float], strict: bool) -> float:
    """Difference between the loss and the sum of its parts."""
    if terms == SUM:
        weights = [1.0, 1.0]
    elif numbers[0] > 0 and math.isclose(numbers[0], numbers[1] + numbers[2], rel_tol=NEARLY):
        # Not to rounding in float64: terms may be sums of weights in float32.
        weights = [number / numbers[0] for number in numbers[1:]]
    else:
        return math.inf
    if strict and any(not weight and math.isfinite(v) and v for weight, v in zip(weights, values[1:], strict=True)):
        return math.inf
    # The mean of a part without terms is 0/0.
    total = sum(weight * value for weight, value in zip(weights, values[1:], strict=True) if weight)
    return abs(values[0] - total) if math.isfinite(total) else math.inf


def _backs(evaluated: tuple[float, Sequence[LossCall]] | None, number: float) -> bool:
    """Whether calls of loss functions show that a loss is a mean over this number of terms.

    They do if all of them are such means, or if none is a mean and the loss is the sum of all their results divided by
    the number: for example the summed loss of tokens, possibly in chunks, over the number of tokens that are not
    ignored.
    """
    value, calls = evaluated or (math.nan, ())
    if not calls or all(call.is_mean for call in calls):
        return bool(calls) and all(_is(call.terms, number) for call in calls)
    if any(call.is_mean for call in calls):
        return False
    total = sum(float(call.result.detach().double().sum()) for call in calls)
    if number == 0:
        return total == 0
    return total != 0 and math.isclose(value * number, total, rel_tol=NEARLY)


def _is(one: float | None, other: float) -> bool:
    return one is not None and math.isclose(one, other, rel_tol=1e-6)


def _rounding(whole: Evaluation) -> float:
    """Rounding unit of the outputs."""
    dtypes = [leaf.dtype for leaf in pytree.tree_leaves(whole.outputs) if isinstance(leaf, Tensor)]
    return max((torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point), default=2.0**-23)


def _effect(loss: Loss, whole: Evaluation, targets: Any) -> float:
    """Return sum |f dl/df| over the outputs, the factor from relative errors of outputs to the error of the loss."""
    if loss.closure is not None:
        return 0.0
    try:
        outputs, rebuild = differentiable_outputs(whole.outputs)
        with torch.enable_grad():
            at = [output.detach().requires_grad_() for output in outputs]
            value = loss(rebuild(tuple(at)), copied(targets))
            slopes = torch.autograd.grad(value, at, allow_unused=True, materialize_grads=True)
    except (RuntimeError, ValueError):
        # It is undefined for a loss that bypasses the outputs.
        return 0.0
    return sum(float((slope.detach() * output.detach()).abs().sum()) for slope, output in zip(slopes, at, strict=True))
