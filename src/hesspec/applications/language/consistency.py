"""The curvature test of calibration: second moment of the samples' gradients against the Gauss-Newton matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from hesspec.applications.language.consistency_record import LabelConsistency
from hesspec.errors import InputError, NonFiniteError
from hesspec.measure.calibration import TWO_SIDED_95
from hesspec.operators.data.division import Division
from hesspec.operators.data.structures import describe, flatten
from hesspec.operators.model.ambient import differentiable_kernels, preserved_randomness
from hesspec.operators.risk.batches import Batch
from hesspec.operators.risk.empirical_risk import EmpiricalRisk, Named
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.operators.risk.sample_gradients import check_samples
from hesspec.spectra.record import Array

__all__ = ["label_consistency"]

# Bytes of Jacobians that are computed at once; larger values are not faster.
BYTES: Final = 1 << 28
# Relative difference between the same sample computed with others at once and alone, in float32, that is rounding.
SAME: Final = 1e-3

Traces = tuple[Tensor, Tensor]
"""Of F and G of each sample and parameter, (n, b) each."""


def label_consistency(
    model: nn.Module, loss_fn: LossFunction, data: Iterable[Any], params: ParameterSpec = None
) -> LabelConsistency:
    r"""Compare the second moment F of the samples' gradients with the Gauss-Newton matrix G, by their traces.

    For a cross-entropy, :math:`F = \frac1N \sum_i g_i g_i^\top` with the gradient of sample i at its own label, and G
    is the expectation of F over labels drawn from the predicted probabilities. If these are calibrated, tr F = tr G in
    expectation, in every block of parameters. Predictions that are too certain make tr F / tr G larger than 1, as the
    gradients of samples that are confidently wrong are large. For the bias of a single logit, tr F is the Brier score
    and tr G the mean of p (1 - p).

    Parameters
    ----------
    model, loss_fn, data, params
        As for `hesspec.GaussNewton`, with the loss `CrossEntropyLoss` of one class for each sample, with logits (N, C),
        or `BCEWithLogitsLoss` of one logit for each sample. Labels are those to test the model on: classes or outcomes,
        or shares of them. A share t counts as outcomes of 1 and 0 with the weights t and 1 - t, but as one
        sample in the interval.

    Returns
    -------
    LabelConsistency
        Traces and their ratio for all parameters and for each, with intervals of 95%.

    Raises
    ------
    ValueError
        If the loss is another one, has weights of classes or label smoothing, couples samples, or has several labels
        for each sample; if there are fewer than two samples, or all gradients are zero.
    NonFiniteError
        If an output or a gradient is NaN or infinite.

    Notes
    -----
    Ours. For a single logit r with the probability p and the label t, F and G of a sample differ by
    (t - p) (1 - 2 p) grad r grad r^T: errors at p = 1/2 have no effect, and opposite ones of several samples cancel.

    One pass over the data, with C backward passes for each sample (1 for a single logit), several samples at once
    where `torch.func.vmap` supports the model. The interval is that of a ratio of two means over independent samples,
    by linearisation of its logarithm. F as an operator is `hesspec.SecondMoment`, and F - Hess is
    `hesspec.LikelihoodResidual`.

    Examples
    --------
    >>> import torch, hesspec
    >>> logits = torch.tensor([[2.0], [-1.0], [0.0], [3.0]])
    >>> data = [(logits, torch.tensor([[1.0], [0.0], [1.0], [0.0]]))]
    >>> model = torch.nn.Linear(1, 1)
    >>> _ = model.weight.data.fill_(1.0), model.bias.data.zero_()
    >>> found = hesspec.language.label_consistency(model, torch.nn.BCEWithLogitsLoss(), data, params="bias")
    >>> round(found.ratio, 4)
    2.0844
    """
    risk = EmpiricalRisk(model, loss_fn, data, params)
    _check_loss(risk)
    check_samples(risk, "label_consistency")
    made = [_of_batch(risk, batch) for batch in risk.batches]
    moment, newton = (np.concatenate([found[side] for found in made]) for side in (0, 1))
    if not (np.isfinite(moment).all() and np.isfinite(newton).all()):
        raise NonFiniteError("An output or a gradient of a sample is NaN or infinite.")
    if len(moment) < 2:
        raise InputError("There is one labelled sample; the interval of label_consistency needs at least 2.")
    if not newton.any():
        raise InputError("The gradients of all samples are zero, so that tr F / tr G is not defined.")
    # The matrices of a sum over samples are sums as well.
    scale = len(moment) if risk.loss.reduction == "sum" else 1
    ratio, low, high = _ratios(moment.sum(axis=1, keepdims=True), newton.sum(axis=1, keepdims=True))
    blocks = _ratios(moment, newton)
    return LabelConsistency(
        second_moment=float(moment.sum(axis=1).mean()) * scale,
        gauss_newton=float(newton.sum(axis=1).mean()) * scale,
        ratio=float(ratio[0]),
        low=float(low[0]),
        high=float(high[0]),
        samples=len(moment),
        parameters=risk.parameters.count,
        blocks=np.array(risk.parameters.names),
        block_second_moment=moment.mean(axis=0) * scale,
        block_gauss_newton=newton.mean(axis=0) * scale,
        block_ratio=blocks[0],
        block_low=blocks[1],
        block_high=blocks[2],
    )


def _ratios(moment: Array, newton: Array) -> tuple[Array, Array, Array]:
    """Return ratios of the sums over samples (n, b), with intervals of 95%; NaN where there are no gradients."""
    count, totals = len(moment), newton.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = moment.sum(axis=0) / totals
        rest = ((moment - ratio * newton) ** 2).sum(axis=0) * count / (count - 1)
        # The logarithm of a ratio is closer to normal than the ratio, which is positive.
        reach = np.exp(TWO_SIDED_95 * np.sqrt(rest) / moment.sum(axis=0))
        return ratio, ratio / reach, ratio * reach


def _check_loss(risk: EmpiricalRisk) -> None:
    function: Any = risk.loss.function
    forward = getattr(type(function), "forward", None)
    if forward not in (nn.CrossEntropyLoss.forward, nn.BCEWithLogitsLoss.forward):
        raise InputError(
            f"The loss is {risk.loss.name}; label_consistency compares labels with predicted probabilities, and takes "
            "torch.nn.CrossEntropyLoss or BCEWithLogitsLoss."
        )
    for name in ("weight", "pos_weight"):
        if getattr(function, name, None) is not None:
            raise InputError(f"The loss has {name}=, with which it is not a likelihood of the labels; leave it out.")
    if getattr(function, "label_smoothing", 0):
        raise InputError(
            f"The loss has label_smoothing={function.label_smoothing:g}, with which it is not a likelihood of the "
            "labels; leave it at 0."
        )


def _of_batch(risk: EmpiricalRisk, batch: Batch) -> tuple[Array, Array]:
    """Return the traces of F and G of each sample of a batch and each parameter, (n, b)."""
    labels = _labels(risk, batch)
    structure = (batch.inputs, labels)
    tensors, rest = flatten(structure)
    division = Division.of_pair(structure, batch.samples)
    rows = [path in division.rows for path in rest.paths]
    named = {name: value.detach() for name, value in risk.leaves().items()}

    def one(*taken: Tensor) -> Traces:
        given = [part.unsqueeze(0) if row else part for part, row in zip(taken, rows, strict=True)]
        inputs, label = rest.fill(given)
        return _of_sample(risk, named, inputs, label)

    def alone(sample: int) -> Traces:
        return one(*(tensor[sample] if row else tensor for tensor, row in zip(tensors, rows, strict=True)))

    with preserved_randomness(), differentiable_kernels():
        found = _together(one, alone, tensors, rows, _chunk(risk, labels, batch.samples))
        if found is None:
            each = [alone(sample) for sample in range(batch.samples)]
            found = torch.stack([moment for moment, _ in each]), torch.stack([newton for _, newton in each])
    counted = ~labels.isnan().reshape(batch.samples, -1).any(1)
    moment, newton = (part[counted].double().cpu().numpy() for part in found)
    return moment, newton


def _together(
    one: Callable[..., Traces],
    alone: Callable[[int], Traces],
    tensors: Sequence[Tensor],
    rows: Sequence[bool],
    chunk: int,
) -> Traces | None:
    """Return the traces of all samples at once; None if the model cannot be vectorised, or not rightly."""
    try:
        found: Traces = vmap(one, in_dims=tuple(0 if row else None for row in rows), chunk_size=chunk)(*tensors)
    except (RuntimeError, ValueError, NotImplementedError):
        # What vmap cannot do (data-dependent branches, in-place work) has many errors; samples are then taken one by
        # one, which raises those of the model itself.
        return None
    right = all(torch.allclose(part[0], whole, rtol=SAME, atol=0) for part, whole in zip(found, alone(0), strict=True))
    return found if right or any(not part[0].isfinite().all() for part in found) else None


def _chunk(risk: EmpiricalRisk, labels: Tensor, samples: int) -> int:
    classes = labels.shape[1] if labels.dim() > 1 else 1
    size = classes * risk.parameters.count * risk.parameters.dtype.itemsize
    return max(1, min(samples, BYTES // size))


def _labels(risk: EmpiricalRisk, batch: Batch) -> Tensor:
    """Return the weights of labels: outcomes (n,), or of classes (n, C); NaN for ignored samples."""
    function: Any = risk.loss.function
    targets = batch.targets
    if not isinstance(targets, Tensor):
        raise InputError(f"The targets are {describe(targets)}; label_consistency needs a tensor of labels.")
    with torch.no_grad(), preserved_randomness():
        outputs = risk.loss.taken(risk.outputs(dict(risk.fixed), batch.inputs))
    if isinstance(function, nn.BCEWithLogitsLoss):
        if targets.numel() != batch.samples:
            raise InputError(
                f"There are {targets.numel()} labels for {batch.samples} samples; label_consistency takes one logit "
                "and label for each sample."
            )
        return targets.reshape(-1)
    if outputs.dim() != 2:
        raise InputError(
            f"The logits have the shape {tuple(outputs.shape)}; label_consistency takes logits (N, C) and one class "
            "for each sample."
        )
    if targets.is_floating_point():
        return targets
    ignored = targets == function.ignore_index
    weights = nn.functional.one_hot(torch.where(ignored, 0, targets), outputs.shape[1]).to(outputs.dtype)
    return torch.where(ignored[:, None], torch.nan, weights)


def _of_sample(risk: EmpiricalRisk, named: Named, inputs: Any, label: Tensor) -> Traces:
    """Return the traces of F and G of one sample, a number for each parameter."""
    fixed = dict(risk.fixed)

    def logits(theta: Named) -> tuple[Tensor, Tensor]:
        found = risk.loss.taken(risk.outputs(fixed, inputs, theta)).reshape(-1)
        return found, found

    jacobian, found = jacrev(logits, has_aux=True)(named)
    rows = [part.flatten(1) for part in jacobian.values()]
    if label.dim() == 1:
        share, squares = torch.sigmoid(found), torch.stack([row.square().sum() for row in rows])
        # Outcomes of 1 with the weight t, and of 0 with the weight 1 - t.
        misfit = label * torch.sigmoid(-found).square() + (1 - label) * share.square()
        return squares * misfit, squares * share * torch.sigmoid(-found)
    shares = found.softmax(0)
    # Rows J^T (e_c - p), whose squared lengths the labels of F and those of the model in G weight.
    lengths = torch.stack([(row - shares @ row).square().sum(1) for row in rows])
    return lengths @ label[0], lengths @ shares
