"""Second moment of the gradients of single samples with respect to the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad

from hesspec.operators.risk.losses import Loss
from hesspec.operators.risk.outputs import differentiable_outputs

__all__ = ["Moment", "of_classes", "output_moment", "row_shares"]

Moment = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]


def of_classes(function: Any) -> bool:
    """Whether a loss is a cross-entropy of classes, `CrossEntropyLoss` or `NLLLoss`, with one term for each row."""
    return getattr(type(function), "forward", None) in (nn.CrossEntropyLoss.forward, nn.NLLLoss.forward)


def row_shares(function: Any, outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Return the weight of each row's loss in that of the batch, with the shape of the outputs without their classes.

    Parameters
    ----------
    function : torch.nn.CrossEntropyLoss or torch.nn.NLLLoss
    outputs : Tensor (N, C, ...)
    targets : Tensor
        Classes (N, ...) or probabilities (N, C, ...).
    classes : int
        Dimension of the classes.
    """
    if targets.is_floating_point():
        # The mean over probabilities is one over rows, whatever the weights of the classes.
        rows = torch.ones_like(outputs.select(classes, 0))
        return rows / rows.numel() if function.reduction == "mean" else rows
    counted = targets != function.ignore_index
    if function.weight is None:
        own = counted.to(outputs.dtype)
    else:
        own = function.weight.to(outputs.dtype)[torch.where(counted, targets, 0)] * counted
    shares: Tensor = own / own.sum() if function.reduction == "mean" else own
    return shares


def output_moment(loss: Loss, outputs: Any, targets: Any) -> Moment:
    r"""Return products with the second moment of the samples' gradients with respect to the outputs.

    With the loss of the batch :math:`\sum_i a_i \ell_i` and :math:`\delta_i = \partial \ell_i / \partial f_i`, a
    product is :math:`a_i \delta_i \delta_i^\top u_i` for each sample i. The derivative of the batch's loss gives
    :math:`a_i \delta_i`. Samples are rows of logits for a cross-entropy of classes, otherwise rows of the outputs.

    Parameters
    ----------
    loss : Loss
    outputs
        Outputs of the model, of any structure, taken as constants.
    targets
        Targets of the loss.

    Returns
    -------
    callable
        Maps tangents of the differentiable tensors of `outputs` to the products, one for each.
    """
    heads, rebuild = differentiable_outputs(outputs)
    # A transform, as traces do not let tensors require a gradient.
    scaled = grad(lambda at: loss(rebuild(at), targets))(tuple(head.detach() for head in heads))
    taken = loss.taken(outputs)
    place = next((i for i, head in enumerate(heads) if head is taken), None)
    if place is not None and of_classes(loss.function) and isinstance(targets, Tensor):
        classes = 1 if taken.dim() > 1 else 0
        shares = row_shares(loss.function, taken, targets, classes).unsqueeze(classes)
        # Rows that are ignored have no gradient.
        inverse = torch.where(shares > 0, 1 / torch.where(shares > 0, shares, 1), 0)
        delta = scaled[place]

        def of_rows(tangent: Tensor) -> Tensor:
            product: Tensor = delta * ((delta * tangent).sum(classes, keepdim=True) * inverse)
            return product

        return lambda tangents: tuple(
            of_rows(tangent) if i == place else torch.zeros_like(tangent) for i, tangent in enumerate(tangents)
        )
    parts = {i: scaled[i] for i in (range(len(heads)) if place is None else [place])}
    samples = len(next(iter(parts.values())))
    factor = 1.0 if loss.reduction == "sum" else float(samples)

    def product(tangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        slopes = sum((delta * tangents[i]).reshape(samples, -1).sum(1) for i, delta in parts.items()) * factor
        return tuple(
            parts[i] * slopes.reshape(-1, *[1] * (tangent.dim() - 1)) if i in parts else torch.zeros_like(tangent)
            for i, tangent in enumerate(tangents)
        )

    return product
