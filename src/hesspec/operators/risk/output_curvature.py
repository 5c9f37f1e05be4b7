"""Closed-form products with the output curvature d^2 l / d f^2 of common losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hesspec.backend.text import kind_of
from hesspec.errors import InputError
from hesspec.operators.risk.token_loss import TokenLoss

__all__ = ["OUTPUT_CURVATURES", "check_output_curvature", "is_convex", "output_curvature", "row_weights"]

Curve = Callable[[Tensor], Tensor]

OUTPUT_CURVATURES = ("full", "true-vs-rest", "within-competitor")
"""The full output curvature d^2 l / d f^2, and its two parts for softmax cross-entropy."""

# Largest number of entries of a temporary in a product, 64 MiB in float32: the outputs of a language model, samples x
# tokens x vocabulary, could fill the memory several times over.
CHUNK = 2**24


def check_output_curvature(part: str, loss: Any, targets: Any) -> None:
    """Reject a part of the output curvature that is undefined for this loss and these targets.

    Parameters
    ----------
    part : str
        One of `OUTPUT_CURVATURES`.
    loss, targets
        See `output_curvature`.

    Raises
    ------
    ValueError
        If the part is not "full", and the loss is not `torch.nn.CrossEntropyLoss` or the targets are not classes.
    """
    if part == "full":
        return
    if getattr(type(loss), "forward", None) is not nn.CrossEntropyLoss.forward:
        raise InputError(
            f"output_curvature={part!r} is a part of the curvature of softmax cross-entropy, but the loss is "
            f"{getattr(loss, '__name__', type(loss).__name__)}: pass torch.nn.CrossEntropyLoss() (or "
            "torch.nn.functional.cross_entropy) and a model that returns logits, or leave it at 'full'."
        )
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        seen = str(targets.dtype) if isinstance(targets, Tensor) else kind_of(targets)
        raise InputError(
            f"output_curvature={part!r} requires the true class of every sample, but the targets are {seen}: pass "
            "class indices (torch.int64), or leave it at 'full'."
        )


def output_curvature(loss: Any, outputs: Tensor, targets: Any, part: str = "full") -> Curve | None:
    r"""Return `tangent -> (d^2 l / d f^2) tangent` at these outputs, for losses with a known closed form.

    Parameters
    ----------
    loss : callable
        `CrossEntropyLoss` (class indices or probabilities, with all its options), `MSELoss` or `BCEWithLogitsLoss` of
        `torch.nn`, or `hesspec.TokenLoss` with class indices; subclasses with the same `forward` are included.
    outputs : Tensor
        Outputs, in the shape that the loss takes.
    targets
        Targets of the loss.
    part : {"full", "true-vs-rest", "within-competitor"}, optional
        The full output curvature, or one of its two terms for softmax cross-entropy with class indices.

    Returns
    -------
    callable or None
        Maps a tangent with the shape of `outputs` to the product, of the same shape; None for any other loss.

    Raises
    ------
    ValueError
        If this part is undefined for this loss and these targets.

    Notes
    -----
    Softmax cross-entropy has the curvature a (diag(p) - p p^T) in every row, with a the weight of the row; the target
    does not enter otherwise. The usual form of the product, p (u - <p, u>), suffers from cancellation if some p_k is
    near 1, as for every sample that is fitted well. With d = u - u_k for the most likely class k, and s = sum_{c != k}
    p_c d_c,

    .. math:: \bigl((\mathrm{diag}(p) - p p^\top) u\bigr)_c = p_c (d_c - s),

    which is -p_k s for c = k: 1 - p_k never appears, and each entry keeps the relative accuracy of a few roundings.
    Only p = exp(f - f_k) / sum exp(f - f_k) and k are stored.

    The loss is softplus(-s) of the margin s = f_y - logsumexp_{c != y} f_c of the true class y. The gradient of s is
    e_y - q, with q the softmax of all classes but y, its second derivative -(diag(q) - q q^T), and so

    .. math:: \mathrm{diag}(p) - p p^\top =
              \underbrace{\sigma(s)\,\sigma(-s)\,(e_y - q)(e_y - q)^\top}_{\text{true-vs-rest}}
              + \underbrace{\sigma(-s)\,(\mathrm{diag}(q) - q q^\top)}_{\text{within-competitor}},

    where sigma(s) = p_y (arXiv 2605.06081). Both are positive semi-definite; the second is zero with two classes.
    Weights and label smoothing are included in a.
    """
    check_output_curvature(part, loss, targets)
    if not isinstance(targets, Tensor):
        return None
    forward = getattr(type(loss), "forward", None)
    of_classes: dict[Any, Callable[[], Curve]] = {
        nn.CrossEntropyLoss.forward: lambda: _cross_entropy(loss, outputs, targets, part)
    }
    if not targets.is_floating_point():
        of_classes[TokenLoss.forward] = lambda: _token_loss(loss, outputs, targets)
    if forward in of_classes:
        return of_classes[forward]()
    if outputs.shape != targets.shape:
        return None
    if forward is nn.MSELoss.forward:
        factor = 2.0 / (outputs.numel() if loss.reduction == "mean" else 1)
        return lambda tangent: tangent * factor
    if forward is nn.BCEWithLogitsLoss.forward:
        return _binary_cross_entropy(loss, outputs, targets)
    return None


def is_convex(loss: Any) -> bool:
    """Whether a loss is known to be convex in the outputs, for any targets in their range.

    Parameters
    ----------
    loss : callable
        `CrossEntropyLoss`, `MSELoss` or `BCEWithLogitsLoss` of `torch.nn` with weights that are not negative. False for
        any other loss, which may be convex all the same.
    """
    forward = getattr(type(loss), "forward", None)
    if forward not in (nn.CrossEntropyLoss.forward, nn.MSELoss.forward, nn.BCEWithLogitsLoss.forward):
        return False
    weights = [getattr(loss, name, None) for name in ("weight", "pos_weight")]
    return all(weight is None or bool((weight >= 0).all()) for weight in weights)


def _cross_entropy(loss: nn.CrossEntropyLoss, outputs: Tensor, targets: Tensor, part: str) -> Curve:
    classes = 1 if outputs.dim() > 1 else 0
    rows = row_weights(loss, outputs, targets, classes).unsqueeze(classes)
    if part == "full" or outputs.shape[classes] == 1:
        # A single class has no competitors: its curvature is zero.
        return _covariance(torch.softmax(outputs, classes), outputs.argmax(classes, keepdim=True), rows, classes)
    true = torch.where(targets != loss.ignore_index, targets, 0).unsqueeze(classes)
    competitors = (outputs - outputs.gather(classes, true)).scatter(classes, true, -torch.inf)
    q = torch.softmax(competitors, classes)
    # sigmoid(-s) and sigmoid(s), each accurate in its tail, are 1 - p_y and p_y, which would cancel.
    minus_s = torch.logsumexp(competitors, classes, keepdim=True)
    rest = torch.sigmoid(minus_s) * rows
    if part == "within-competitor":
        return _covariance(q, competitors.argmax(classes, keepdim=True), rest, classes)

    def product(tangent: Tensor, direction: Tensor, true: Tensor, factor: Tensor) -> Tensor:
        # Entries of e_y - q sum to zero: subtracting what all classes share first avoids cancellation later.
        d = tangent - tangent.gather(classes, true)
        return direction * (direction * d).sum(classes, keepdim=True) * factor

    return _in_chunks(product, ((-q).scatter(classes, true, 1.0), true, torch.sigmoid(-minus_s) * rest), classes)


def _token_loss(loss: TokenLoss, outputs: Tensor, targets: Tensor) -> Curve:
    """Products with a [(1 + 2 z log Z) (diag(p) - p p^T) + 2 z p p^T] in every row; see `TokenLoss`."""
    classes = 1 if outputs.dim() > 1 else 0
    rows = row_weights(loss, outputs, targets, classes).unsqueeze(classes)
    z = 2 * loss.z_loss

    def product(tangent: Tensor, p: Tensor, likeliest: Tensor, factor: Tensor, squared: Tensor) -> Tensor:
        d = tangent - tangent.gather(classes, likeliest)
        mean = (p * d).sum(classes, keepdim=True)
        # <p, tangent> is the mean of d and the entry that was subtracted, as p sums to one.
        along = mean + tangent.gather(classes, likeliest)
        return p * ((d - mean) * factor + along * squared)

    log_normaliser = torch.logsumexp(outputs, classes, keepdim=True)
    constants = outputs.argmax(classes, keepdim=True), rows * (1 + z * log_normaliser), rows * z
    return _in_chunks(product, (torch.softmax(outputs, classes), *constants), classes)


def _covariance(p: Tensor, likeliest: Tensor, factor: Tensor, classes: int) -> Curve:
    """Products with factor (diag(p) - p p^T) in every row; see `output_curvature`."""

    def product(tangent: Tensor, p: Tensor, likeliest: Tensor, factor: Tensor) -> Tensor:
        d = tangent - tangent.gather(classes, likeliest)
        # d is zero for the most likely class, so the sum over the others is the sum over all.
        return p * (d - (p * d).sum(classes, keepdim=True)) * factor

    return _in_chunks(product, (p, likeliest, factor), classes)


def _in_chunks(product: Callable[..., Tensor], constants: tuple[Tensor, ...], classes: int) -> Curve:
    """`tangent -> product(tangent, *constants)` in chunks of samples; the first constant is shaped as the tangent."""
    count, numbers = len(constants[0]), constants[0].numel()
    samples = max(1, CHUNK * count // max(numbers, 1))
    if not classes or samples >= count:
        return lambda tangent: product(tangent, *constants)
    pieces = list(zip(*(torch.split(constant, samples) for constant in constants), strict=True))
    return lambda tangent: torch.cat(
        [product(part, *piece) for part, piece in zip(torch.split(tangent, samples), pieces, strict=True)]
    )


def row_weights(loss: nn.CrossEntropyLoss, outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Return the factor of diag(p) - p p^T in each row, with the shape of the outputs without their classes."""
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
