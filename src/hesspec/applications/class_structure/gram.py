"""Gram matrices of the class-conditional means of logit gradients."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from hesspec.operators.model.ambient import differentiable_kernels
from hesspec.operators.risk.batches import Batch
from hesspec.operators.risk.empirical_risk import EmpiricalRisk
from hesspec.operators.risk.logits import LogitRows

__all__ = ["Mean", "gram_of_means", "slices"]

# True class c, and coefficients (C,) over c' with which the gradients of its samples are summed:
# sum_{i in c, c'} w_{i,c'} k_{c'} g_{i,c'}.
Mean = tuple[int, Tensor]


# Number of entries of all means whose products are summed in float32 before accumulation in float64.
PIECE = 1 << 14


def slices(p: int, count: int, itemsize: int, budget: int) -> list[tuple[int, int]]:
    """Yield slices [a, b) of flat vectors (p,) such that a slice of `count` vectors fits into a budget of bytes.

    Raises
    ------
    MemoryError
        If not even one entry of each vector fits.
    """
    length = budget // (count * itemsize)
    if length < 1:
        raise MemoryError(f"{count} means do not fit into {budget} bytes, not even one entry of each.")
    pieces = math.ceil(p / length)
    bounds = [p * i // pieces for i in range(pieces + 1)]
    return list(itertools.pairwise(bounds))


def gram_of_means(
    risk: EmpiricalRisk,
    parts: Callable[[Batch], Sequence[Batch]],
    means: Sequence[Mean],
    budget: int,
    groups: Tensor | None = None,
) -> Tensor:
    """Compute inner products of means of the logit gradients.

    Each batch is split by class, so that the vector-Jacobian product for a mean of class c runs over the samples of
    class c only: one mean per class costs, for all classes together, one vector-Jacobian product over all data, which
    is half of a Gauss-Newton product, plus a forward pass. Batches that cannot be split (for example by positions of a
    sequence) cost a vector-Jacobian product for each mean.

    If the means do not fit into the budget at once, this is repeated for slices of the parameters; only the layers
    between the loss and the parameters of a slice are differentiated.

    Parameters
    ----------
    risk : EmpiricalRisk
        Model, loss and data.
    parts : callable
        Splits a batch into the parts over which passes run.
    means : sequence of Mean
        The K means.
    budget : int
        Memory for the means, in bytes.
    groups : Tensor (C,), optional
        Group of each class, which takes the place of the class in the means.

    Returns
    -------
    Tensor (K, K)
        Inner products in float64, on the parameters' device.
    """
    parameters = risk.parameters
    gram = torch.zeros(len(means), len(means), dtype=torch.float64, device=parameters.device)
    for first, last in slices(parameters.count, len(means), parameters.dtype.itemsize, budget):
        kept = torch.zeros(len(means), last - first, dtype=parameters.dtype, device=parameters.device)
        risk.ranks.together(functools.partial(_add_all, risk, parts, means, kept, first, groups))
        risk.ranks.sum_(kept)
        for piece in torch.split(kept, PIECE, dim=1):
            gram += piece @ piece.T
    return gram


def _add_all(
    risk: EmpiricalRisk,
    parts: Callable[[Batch], Sequence[Batch]],
    means: Sequence[Mean],
    kept: Tensor,
    first: int,
    groups: Tensor | None,
) -> None:
    for batch in risk.batches:
        for part in parts(batch):
            for of_class in _by_class(risk, part):
                _add(risk, of_class, means, kept, first, groups)


def _by_class(risk: EmpiricalRisk, batch: Batch) -> Iterator[Batch]:
    """Split a batch by class if it has one target for each sample; otherwise return it unchanged."""
    targets = batch.targets
    if batch.indivisible or not isinstance(targets, Tensor) or targets.dim() != 1:
        yield batch
        return
    groups = [(targets == c).nonzero().flatten().cpu() for c in sorted(set(targets.tolist()))]
    yield from risk.batches.select(batch, groups)


def _add(
    risk: EmpiricalRisk, batch: Batch, means: Sequence[Mean], kept: Tensor, first: int, groups: Tensor | None
) -> None:
    """Add the contribution of a batch to every mean, for the slice of the parameters that begins at `first`."""
    last = first + kept.shape[1]
    ends = torch.tensor(risk.parameters.sizes).cumsum(0).tolist()
    places = list(zip(risk.parameters.names, [0, *ends[:-1]], ends, strict=True))
    # Only the parameters of the slice: the others are constants, which the backward pass does not reach.
    inside = {name: (begin, end) for name, begin, end in places if begin < last and end > first}
    theta = risk.leaves()
    leaves = {name: theta[name] for name in inside}
    for name, leaf in theta.items():
        leaf.requires_grad_(name in inside)
    predict, loss = risk.functions(risk.fixed, batch.inputs, batch.targets)
    with torch.enable_grad(), differentiable_kernels():
        logits = loss.taken(predict(theta))
        rows = LogitRows.of(risk.loss, logits, batch.targets, batch.share)
        true = rows.true(groups)
        present = set(true[rows.scale > 0].tolist())
        wanted = [(number, c, k) for number, (c, k) in enumerate(means) if c in present]
        for number, c, k in wanted:
            coefficients = torch.where(true[:, None] == c, k if groups is None else k[groups], 0)
            cotangent = rows.shaped(rows.cotangent(coefficients), logits)
            if not logits.requires_grad:
                continue
            gradients = torch.autograd.grad(
                logits,
                tuple(leaves.values()),
                cotangent,
                retain_graph=number != wanted[-1][0],
                allow_unused=True,
                materialize_grads=True,
            )
            for (begin, end), gradient in zip(inside.values(), gradients, strict=True):
                low, high = max(begin, first), min(end, last)
                kept[number, low - first : high - first] += gradient.reshape(-1)[low - begin : high - begin]
