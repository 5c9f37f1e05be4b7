"""Cross-entropy of single samples in its margin form, as one node of a graph for each derivative."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

__all__ = ["margin_losses"]

# Above this softplus(s) equals s: exp(-40) is below the rounding of float64, and exp(40) does not overflow.
LINEAR_FROM = 40.0


def margin_losses(logits: Tensor, true: Tensor, classes: int) -> Tensor:
    r"""Return -log softmax(f)_y of each sample, with derivatives that do not cancel.

    With y the true class,

    .. math:: -\log \mathrm{softmax}(f)_y = \log\Bigl(1 + \sum_{c \ne y} e^{f_c - f_y}\Bigr) = \mathrm{softplus}(s),
              \qquad s = \mathrm{logsumexp}_{c \ne y} (f_c - f_y).

    The usual form has the derivatives p_y - 1 and p_y (1 - p_y), which cancel for samples that are fitted well: in
    float32, 1 - p_y = 1e-4 leaves three digits of the curvature. Here the relative error is of the order of rounding.
    (The margin form is that of arXiv 2605.06081.)

    In reverse mode, the first and the second derivative are one node each: the graph of the operations that they
    consist of has 14 nodes more, which took a quarter of a product with a small network. The transforms of `torch.func`
    and forward mode see these operations.

    Parameters
    ----------
    logits : Tensor
        Logits f.
    true : int64 Tensor
        True classes, with one class in the dimension of the classes.
    classes : int
        Dimension of the classes.
    """
    if _transformed():
        return _losses(logits, true, classes)
    return cast("Tensor", _Losses.apply(logits, true, classes))


def _transformed() -> bool:
    """Whether a transform of `torch.func` or forward mode is active, for which the functions below have no rules."""
    # There is no public way to find out.
    transform = cast("object | None", torch._C._functorch.peek_interpreter_stack())  # noqa: SLF001
    return transform is not None or forward_ad._current_level >= 0  # noqa: SLF001


def _losses(logits: Tensor, true: Tensor, classes: int) -> Tensor:
    margins = (logits - logits.gather(classes, true)).scatter(classes, true, -torch.inf)
    return F.softplus(torch.logsumexp(margins, classes), threshold=LINEAR_FROM)


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, true: Tensor, classes: int) -> Tensor:
        ctx.save_for_backward(logits, true)
        ctx.classes = classes  # type: ignore[attr-defined]
        return _losses(logits, true, classes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        logits, true = ctx.saved_tensors
        (factors,) = gradients
        if _transformed():
            # Gradients of several vectors at a time, by vmap, which the next function has no rule for.
            slope = _slope(torch.softmax(logits, ctx.classes), true, ctx.classes) * factors.unsqueeze(ctx.classes)
        else:
            slope = _Gradient.apply(logits, true, factors, ctx.classes)
        return slope, None, None


class _Gradient(torch.autograd.Function):
    """Gradient of factors * losses with respect to the logits, which is p - e_y for factors of one."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, true: Tensor, factors: Tensor, classes: int) -> Tensor:
        p = torch.softmax(logits, classes)
        ctx.save_for_backward(logits, true, factors, p, logits.argmax(classes, keepdim=True))
        ctx.classes = classes  # type: ignore[attr-defined]
        return _slope(p, true, classes) * factors.unsqueeze(classes)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> Any:
        logits, true, factors, p, likeliest = ctx.saved_tensors
        (tangent,), classes = tangents, ctx.classes
        if torch.is_grad_enabled():
            # It is differentiated a third time.
            p = torch.softmax(logits, classes)
        along = curved = None
        if ctx.needs_input_grad[0]:
            # See `hesspec.operators.risk.output_curvature` for what does not cancel here.
            d = tangent - tangent.gather(classes, likeliest)
            curved = p * (d - (p * d).sum(classes, keepdim=True)) * factors.unsqueeze(classes)
        if ctx.needs_input_grad[2]:
            along = (p * (tangent - tangent.gather(classes, true))).sum(classes)
        return curved, None, along, None


def _slope(p: Tensor, true: Tensor, classes: int) -> Tensor:
    """Return p - e_y, with p_y - 1 as the negative sum of the other probabilities."""
    others = p.scatter(classes, true, 0)
    return others.scatter(classes, true, -others.sum(classes, keepdim=True))
