"""Checks of losses whose gradients of single samples are needed: rows of the outputs, weights, likelihoods."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hesspec.errors import InputError
from hesspec.operators.data.structures import describe
from hesspec.operators.model.ambient import differentiable_kernels, preserved_randomness
from hesspec.operators.risk.inspection import few_samples
from hesspec.operators.risk.nature import AMBIGUOUS, NOT_ADDITIVE, UNTOLD
from hesspec.operators.risk.output_moment import of_classes, row_shares
from hesspec.operators.risk.outputs import differentiable_outputs

if TYPE_CHECKING:
    from hesspec.operators.risk.batches import Batch
    from hesspec.operators.risk.empirical_risk import EmpiricalRisk

__all__ = ["check_likelihood", "check_samples", "mean_gradient", "sample_count"]

# Relative difference up to which the gradient of a sample's rows is that of its own loss. Samples that are coupled
# change it by much more, rounding in float32 by much less.
SAME = 1e-2
# Roundings of the outputs by which they may differ in any case.
ROUNDINGS = 1000
# Largest number of samples that are compared.
MOST = 8
# Batches whose samples can be taken apart, whatever their losses add up to.
DIVISIBLE = ("", NOT_ADDITIVE, UNTOLD, AMBIGUOUS)

USE_ROWS = (
    "A loss that is a mean over tokens or positions is supported as torch.nn.CrossEntropyLoss on logits of shape "
    "(N, C, ...), whose samples are the positions."
)


def _length(tensors: Sequence[Tensor]) -> float:
    """2-norm of a list of tensors as one vector, accumulated in float64."""
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors]
    return math.hypot(*torch.stack(norms).tolist()) if norms else 0.0


def check_samples(risk: EmpiricalRisk, matrix: str) -> None:
    """Reject a loss of which the gradients of single samples are not known.

    A few samples are compared: the gradient from each one's rows of the outputs must be that of its own loss.

    Parameters
    ----------
    risk : EmpiricalRisk
    matrix : str
        Name of the matrix, for messages.

    Raises
    ------
    ValueError
        If the loss is a closure, depends on the parameters other than through the outputs, couples samples, or is a
        mean over anything else than samples; if the outputs of a sample are not a row.
    """
    loss = risk.loss
    if loss.closure is not None:
        raise InputError(
            f"{matrix} needs the gradients of single samples, which a closure does not show; pass "
            "loss_fn(outputs, targets) and batches (inputs, targets)."
        )
    if risk.inspection.reaches:
        raise InputError(
            "The loss depends on the parameters other than through the outputs, as by a penalty on the weights; "
            f"{matrix} is that of the samples' own gradients: leave the penalty out."
        )
    if of_classes(loss.function):
        function: Any = loss.function
        if getattr(function, "label_smoothing", 0) and function.weight is not None:
            raise InputError(
                f"The loss has class weights and label smoothing, with which the weight of a sample is not defined; "
                f"{matrix} takes one of them."
            )
    elif risk.batches.mean_over.kind not in ("samples", "module"):
        raise InputError(f"The loss is a mean over {risk.batches.mean_over}, not over samples. {USE_ROWS}")
    risk.ranks.together(lambda: _compare(risk, matrix))


def _compare(risk: EmpiricalRisk, matrix: str) -> None:
    """Compare the gradients from the rows of a few samples with those of each sample alone."""
    few, _, _ = few_samples(risk.batches, next(iter(risk.batches)))
    with preserved_randomness(), differentiable_kernels(), torch.enable_grad():
        predict, loss = risk.functions(risk.fixed, few.inputs, few.targets)
        leaves = risk.leaves()
        structure = predict(leaves)
        heads, rebuild = differentiable_outputs(structure)
        shares = _shares(risk, few, loss.taken(structure), heads, matrix)
        at = tuple(head.detach().requires_grad_() for head in heads)
        delta = torch.autograd.grad(loss(rebuild(at), leaves), at, allow_unused=True, materialize_grads=True)
    if few.indivisible not in DIVISIBLE or not any(head.requires_grad for head in heads):
        return
    for sample, share in enumerate(shares[:MOST]):
        if not share:
            continue
        alone = risk.batches.chosen(few, torch.tensor([sample], device="cpu"))
        # The loss of the sample alone is a mean over it, or a sum with its weight.
        own = share if risk.loss.reduction == "sum" else 1.0
        wanted = risk.gradient(alone)[1]
        found = _pulled(heads, leaves, [own / share * part for part in delta], sample)
        apart, size = _length([a - b for a, b in zip(found, wanted, strict=True)]), max(map(_length, (found, wanted)))
        # The gradients of samples that are fitted may be rounding.
        rounding = torch.finfo(heads[0].dtype).eps * _length(_pulled(heads, leaves, at, sample))
        if apart > SAME * size + ROUNDINGS * rounding:
            raise InputError(
                f"The gradient of a sample within its batch is not that of the sample alone (they are "
                f"{apart / size:.0%} apart): model or loss couple samples, and {matrix} needs single ones."
            )


def _shares(risk: EmpiricalRisk, few: Batch, taken: Any, heads: Sequence[Tensor], matrix: str) -> list[float]:
    """Weight of each sample in the loss of a few; none where the loss of a single one cannot be computed."""
    if of_classes(risk.loss.function):
        if not isinstance(few.targets, Tensor) or few.targets.dim() != 1:
            # Each position is a sample.
            return []
        shares: list[float] = row_shares(risk.loss.function, taken.detach(), few.targets, 1).tolist()
        return shares
    used = [head for head in heads if head is taken] or list(heads)
    if any(head.dim() == 0 or len(head) != few.samples for head in used):
        shapes = ", ".join(str(tuple(head.shape)) for head in used)
        raise InputError(
            f"The outputs of {few.samples} samples have the shape {shapes}; {matrix} needs a row for each sample. "
            + USE_ROWS
        )
    return [1.0 if risk.loss.reduction == "sum" else 1 / few.samples] * few.samples


def _pulled(
    heads: Sequence[Tensor], leaves: Mapping[str, Tensor], values: Sequence[Tensor], sample: int
) -> list[Tensor]:
    """Compute J^T u for the rows of a sample of these values."""
    live = [(head, value) for head, value in zip(heads, values, strict=True) if head.requires_grad]
    rows = [torch.zeros_like(value) for _, value in live]
    for row, (_, value) in zip(rows, live, strict=True):
        if row.dim() and len(row) > sample:
            row[sample] = value[sample].detach()
    return list(
        torch.autograd.grad(
            [head for head, _ in live],
            list(leaves.values()),
            rows,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    )


def sample_count(risk: EmpiricalRisk) -> int:
    """Return the number of samples on all ranks; see `hesspec.operators.risk.output_moment.output_moment`.

    Raises
    ------
    ValueError
        If they have different weights in the mean.
    """
    if not of_classes(risk.loss.function):
        return round(risk.ranks.total(risk.batches.samples))
    function: Any = risk.loss.function
    if function.weight is not None:
        raise ValueError("The loss has class weights: its samples have different weights, and do not count alike.")
    return round(risk.batches.terms)


def mean_gradient(risk: EmpiricalRisk) -> Tensor:
    """Compute the gradient of the loss on all data of all ranks, (p,), by plain reverse mode."""
    parameters = risk.parameters
    total = torch.zeros(parameters.count, dtype=parameters.dtype, device=parameters.device)

    def add() -> None:
        for batch in risk.batches:
            _, parts = risk.gradient(batch)
            total.add_(torch.cat([part.reshape(-1) for part in parts]), alpha=batch.share)

    risk.ranks.together(add)
    return risk.ranks.sum_(total)


def check_likelihood(risk: EmpiricalRisk) -> None:
    """Reject a loss of which a sample's is not known to be -log of a likelihood, up to a constant.

    Raises
    ------
    ValueError
        The message says which loss it is, and which losses are known.
    """
    function: Any = risk.loss.function
    forward = getattr(type(function), "forward", None)
    known = "torch.nn.CrossEntropyLoss (or NLLLoss) of classes, BCEWithLogitsLoss of one label, and MSELoss"
    if of_classes(function):
        if getattr(function, "label_smoothing", 0):
            raise InputError(
                f"The loss has label_smoothing={function.label_smoothing:g}: it is no likelihood of the labels, and "
                "LikelihoodResidual is not defined. Leave label_smoothing at 0."
            )
        if forward is nn.NLLLoss.forward:
            # One of log-probabilities is a cross-entropy by now.
            raise InputError(
                "The outputs are not known to be log-probabilities, which NLLLoss needs to be a log-likelihood; "
                "end the model with torch.nn.LogSoftmax, or return logits and pass torch.nn.CrossEntropyLoss()."
            )
        return _each_batch(risk, _refuse_probabilities)
    if forward is nn.MSELoss.forward:
        return None
    if forward is nn.BCEWithLogitsLoss.forward:
        if function.pos_weight is not None or function.weight is not None:
            raise InputError(
                "The loss has weights of labels (weight= or pos_weight=), and is no likelihood of them; leave them out."
            )
        return _each_batch(risk, _refuse_soft_labels if function.reduction == "sum" else _refuse_several_labels)
    raise InputError(
        f"The loss is {risk.loss.name}, of which it is not known whether it is the negative logarithm of a likelihood; "
        f"LikelihoodResidual, with Hess = M - H_p, is defined for these: {known}."
    )


def _each_batch(risk: EmpiricalRisk, check: Callable[[Batch], None]) -> None:
    def checked() -> None:
        for batch in risk.batches:
            check(batch)

    risk.ranks.together(checked)


def _refuse_probabilities(batch: Batch) -> None:
    if not isinstance(batch.targets, Tensor) or batch.targets.is_floating_point():
        seen = str(batch.targets.dtype) if isinstance(batch.targets, Tensor) else describe(batch.targets)
        raise InputError(
            f"The targets of batch {batch.index} are {seen}: a likelihood is that of observed classes; pass class "
            "indices (torch.int64)."
        )


def _refuse_soft_labels(batch: Batch) -> None:
    targets = batch.targets
    if not bool(((targets == 0) | (targets == 1)).all()):
        raise InputError(
            f"Batch {batch.index} has targets other than 0 and 1: a likelihood is that of observed labels, not of "
            "probabilities."
        )


def _refuse_several_labels(batch: Batch) -> None:
    if batch.targets.numel() != batch.samples:
        raise InputError(
            f"Batch {batch.index} has {batch.targets.numel() // batch.samples} labels for each sample, and the loss is "
            "their mean, which is no likelihood of a sample; use reduction='sum', or one label."
        )
    _refuse_soft_labels(batch)
