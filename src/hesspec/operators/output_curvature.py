"""Products with the curvature of common losses in the model's outputs, d^2 l / d f^2, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["output_curvature"]

Curve = Callable[[Tensor], Tensor]

# Numbers that a temporary of the product holds at most, 64 MiB in float32: the outputs of a language model, samples x
# tokens x vocabulary, can fill the memory several times over.
CHUNK = 2**24


def output_curvature(loss: Any, outputs: Tensor, targets: Any) -> Curve | None:
    r"""`tangent -> (d^2 l / d f^2) tangent` at these outputs, for losses of which it is known in closed form.

    Parameters
    ----------
    loss : callable
        `CrossEntropyLoss` (class indices or probabilities, with all its options), `MSELoss` or `BCEWithLogitsLoss` of
        `torch.nn`; a subclass counts where it has the same `forward`.
    outputs : Tensor
        Shaped as the loss takes it.
    targets

    Returns
    -------
    callable or None
        From a tangent of the shape of `outputs` to the product, of the same shape; None for any other loss.

    Notes
    -----
    Softmax cross-entropy has the curvature a (diag(p) - p p^T) in every row, with a the weight of the row: the target
    does not enter otherwise. The usual order of the product, p (u - <p, u>), cancels where one p_k is near 1, as it is
    in every sample that is fitted well. With d = u - u_k for the likeliest class k, and s = sum_{c != k} p_c d_c,

    .. math:: \bigl((\mathrm{diag}(p) - p p^\top) u\bigr)_c = p_c (d_c - s),

    which is -p_k s for c = k: 1 - p_k never appears, and each entry keeps the relative accuracy of a few roundings.
    p = exp(f - f_k) / sum exp(f - f_k) is all that is kept beside k.
    """
    if not isinstance(targets, Tensor):
        return None
    forward = getattr(type(loss), "forward", None)
    if forward is nn.CrossEntropyLoss.forward:
        return _cross_entropy(loss, outputs, targets)
    if outputs.shape != targets.shape:
        return None
    if forward is nn.MSELoss.forward:
        factor = 2.0 / (outputs.numel() if loss.reduction == "mean" else 1)
        return lambda tangent: tangent * factor
    if forward is nn.BCEWithLogitsLoss.forward:
        return _binary_cross_entropy(loss, outputs, targets)
    return None


def _cross_entropy(loss: nn.CrossEntropyLoss, outputs: Tensor, targets: Tensor) -> Curve:
    classes = 1 if outputs.dim() > 1 else 0
    rows = _row_weights(loss, outputs, targets, classes).unsqueeze(classes)
    p = torch.softmax(outputs, classes)
    likeliest = outputs.argmax(classes, keepdim=True)

    def product(tangent: Tensor, p: Tensor, likeliest: Tensor, rows: Tensor) -> Tensor:
        d = tangent - tangent.gather(classes, likeliest)
        # d is zero in the likeliest class, so that the sum over the others is the sum over all.
        return p * (d - (p * d).sum(classes, keepdim=True)) * rows

    samples = max(1, CHUNK * len(outputs) // max(outputs.numel(), 1))
    if not classes or samples >= len(outputs):
        return lambda tangent: product(tangent, p, likeliest, rows)
    pieces = list(zip(*(torch.split(part, samples) for part in (p, likeliest, rows)), strict=True))
    return lambda tangent: torch.cat(
        [product(part, *piece) for part, piece in zip(torch.split(tangent, samples), pieces, strict=True)]
    )


def _row_weights(loss: nn.CrossEntropyLoss, outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """What diag(p) - p p^T of each row is multiplied by, shaped as the outputs without their classes."""
    smoothing, count = loss.label_smoothing, outputs.shape[classes]
    weight = torch.ones(count, dtype=outputs.dtype, device=outputs.device) if loss.weight is None else loss.weight
    even = smoothing * weight.mean()
    if targets.is_floating_point():
        # Probabilities, which need not sum to one; the mean is over rows, whatever their weights.
        by_class = weight.view([-1 if i == classes else 1 for i in range(outputs.dim())])
        rows = (1 - smoothing) * (targets * by_class).sum(classes) + even
        return rows / rows.numel() if loss.reduction == "mean" else rows
    counted = targets != loss.ignore_index
    own = weight[torch.where(counted, targets, 0)] * counted
    rows = (1 - smoothing) * own + even * counted
    return rows / own.sum() if loss.reduction == "mean" else rows


def _binary_cross_entropy(loss: nn.BCEWithLogitsLoss, outputs: Tensor, targets: Tensor) -> Curve:
    # sigmoid(f) sigmoid(-f), each accurate in its tail, where sigmoid (1 - sigmoid) would cancel.
    factor = torch.sigmoid(outputs) * torch.sigmoid(-outputs)
    if loss.pos_weight is not None:
        factor = factor * (1 + (loss.pos_weight - 1) * targets)
    if loss.weight is not None:
        factor = factor * loss.weight
    if loss.reduction == "mean":
        factor = factor / outputs.numel()
    return lambda tangent: factor * tangent
