"""Softmax cross-entropy in its margin form, whose derivatives keep their relative accuracy."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hesspec.operators.replaced import Replaced

__all__ = ["MarginForm", "margin_cross_entropy"]

# Beyond this softplus(s) is s: exp(-40) is below the rounding of float64, and exp(40) overflows in neither precision.
LINEAR_FROM = 40.0


class MarginForm(Replaced):
    """Within this context `torch.nn.functional.cross_entropy` of class indices is `margin_cross_entropy`.

    Label smoothing, class probabilities and a single class stay as they are: there the plain form loses nothing.
    """

    def __init__(self) -> None:
        super().__init__(F.cross_entropy, _cross_entropy)


def _cross_entropy(*args: Any, **kwargs: Any) -> Tensor:
    return (margin_cross_entropy if _has_margin_form(*args, **kwargs) else F.cross_entropy)(*args, **kwargs)


def margin_cross_entropy(
    input: Tensor,  # noqa: A002 - the name of PyTorch's argument
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    **_: Any,
) -> Tensor:
    r"""Cross-entropy of logits and class indices; arguments and result as of `torch.nn.functional.cross_entropy`.

    With y the true class,

    .. math:: -\log \mathrm{softmax}(f)_y = \log\Bigl(1 + \sum_{c \ne y} e^{f_c - f_y}\Bigr) = \mathrm{softplus}(s),
              \qquad s = \mathrm{logsumexp}_{c \ne y} (f_c - f_y).

    The usual form has the derivatives p_y - 1 and p_y (1 - p_y), which cancel where a sample is fitted well: in float32
    a sample with 1 - p_y = 1e-4 leaves three digits of its curvature. Here the error is a rounding of the result.
    (The margin form is that of arXiv 2605.06081.)
    """
    classes = 1 if input.dim() > 1 else 0
    counted = target != ignore_index
    indices = torch.where(counted, target, 0).unsqueeze(classes)
    margins = (input - input.gather(classes, indices)).scatter(classes, indices, -torch.inf)
    losses = F.softplus(torch.logsumexp(margins, classes), threshold=LINEAR_FROM)
    factors = counted.to(losses.dtype)
    if weight is not None:
        factors = factors * weight[indices.squeeze(classes)]
    losses = losses * factors
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / factors.sum()


def _has_margin_form(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None = None,  # noqa: ARG001
    *,
    label_smoothing: float = 0.0,
    **_: Any,
) -> bool:
    classes = input.shape[1 if input.dim() > 1 else 0]
    return not target.is_floating_point() and label_smoothing == 0 and classes > 1
