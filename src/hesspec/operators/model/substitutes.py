"""Substitutes for PyTorch functions that can be differentiated twice, in reverse and forward mode, accurately.

Each has the value and the first derivative of the function that it replaces, also at kinks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._guards import detect_fake_mode

from hesspec.operators.model.function_mode import FunctionMode
from hesspec.operators.model.margin_form import LINEAR_FROM, margin_losses
from hesspec.operators.model.normalisation import NORMALISATIONS
from hesspec.operators.model.squares import SQUARES, of_absolute, with_square

__all__ = ["SUBSTITUTES", "Substitutes", "cross_entropy"]


def cross_entropy(
    input: Tensor,  # noqa: A002 - name of PyTorch's argument
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of logits and class indices in its margin form; see `margin_losses`.

    Label smoothing, class probabilities and a single class are left to PyTorch, as the usual form is accurate there,
    and so are invalid arguments, for which PyTorch raises an error.
    """
    reduction = _reduction(size_average, reduce, reduction)
    classes = 1 if input.dim() > 1 else 0
    indexed = target.dtype in (torch.int64, torch.uint8) and target.shape == input.shape[:classes] + input.shape[2:]
    weighted = weight is None or weight.shape == input.shape[classes : classes + 1]
    if not indexed or not weighted or label_smoothing != 0 or input.dim() == 0 or input.shape[classes] == 1:
        return F.cross_entropy(
            input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
        )
    if _values_known():
        # It reads one number per sample, and raises the same error as F.cross_entropy for invalid classes.
        F.nll_loss(input.detach(), target, weight, ignore_index=ignore_index, reduction=reduction)
    counted = target != ignore_index
    indices = torch.where(counted, target, 0).long().unsqueeze(classes)
    losses = margin_losses(input, indices, classes)
    factors = counted.to(losses.dtype)
    if weight is not None:
        factors = factors * weight[indices.squeeze(classes)]
    losses = losses * factors
    return losses.sum() / factors.sum() if reduction == "mean" else _reduced(losses, reduction)


def embedding(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,  # noqa: ARG001 - sparse gradients have no derivative
) -> Tensor:
    """Return rows of `weight`. The padding row is constant, in forward mode too, and `weight` is not modified."""
    if scale_grad_by_freq:
        raise ValueError(
            "An embedding has scale_grad_by_freq=True: its gradients are not those of the loss, so no "
            "curvature belongs to them. Set scale_grad_by_freq=False for the measurement."
        )
    rows = F.embedding(input, weight, padding_idx)
    if max_norm is not None:
        norms = rows.detach().norm(norm_type, -1, keepdim=True)
        # As in PyTorch, which renormalises the weight itself without a derivative.
        scaled = torch.where(norms > max_norm, rows.detach() * (max_norm / (norms + 1e-7)), rows.detach())
        rows = _with_value(rows, scaled)
    if padding_idx is not None:
        rows = torch.where((input == padding_idx % len(weight)).unsqueeze(-1), rows.detach(), rows)
    return rows


def _torch_embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Tensor:
    """`torch.embedding`, for which -1 means that there is no padding."""
    return embedding(indices, weight, None if padding_idx == -1 else padding_idx, None, 2.0, scale_grad_by_freq, sparse)


def embedding_bag(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Return sums, means or maxima of rows of `weight`, one for each bag of indices."""
    if input.is_nested or input.is_floating_point():
        # Bags in a nested tensor, and arguments that PyTorch rejects or warns about.
        return F.embedding_bag(
            input,
            weight,
            offsets,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            per_sample_weights,
            include_last_offset,
            padding_idx,
        )
    if _values_known():
        # For what it raises.
        F.embedding_bag(
            input,
            weight.detach(),
            offsets,
            mode=mode,
            sparse=sparse,
            per_sample_weights=None if per_sample_weights is None else per_sample_weights.detach(),
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
        )
    if input.dim() == 2:
        offsets = torch.arange(0, input.numel(), input.shape[1], device=input.device)
    assert offsets is not None  # noqa: S101 - checked above if it comes from the user
    indices = input.reshape(-1)
    rows = embedding(indices, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1, 1)
    counted = torch.ones_like(indices, dtype=torch.bool)
    if padding_idx is not None:
        counted = indices != padding_idx % len(weight)
        rows = torch.where(counted.unsqueeze(1), rows, 0)
    if include_last_offset:
        # It is where the indices end; PyTorch ignores it.
        offsets = offsets[:-1]
    places = torch.arange(len(indices), dtype=offsets.dtype, device=offsets.device)
    bags = torch.searchsorted(offsets.contiguous(), places, right=True) - 1
    if mode == "max":
        result = _largest(rows, counted, bags, len(offsets))
    else:
        result = rows.new_zeros(len(offsets), rows.shape[1]).index_add(0, bags, rows)
    if mode == "mean":
        counts = rows.new_zeros(len(offsets)).index_add(0, bags, counted.to(rows.dtype))
        result = result / counts.clamp(min=1).unsqueeze(1)
    return result


def _largest(rows: Tensor, counted: Tensor, bags: Tensor, number: int) -> Tensor:
    """Return the largest of the rows (n, d) of each bag, the first of equal ones; zero for an empty bag."""
    values = torch.where(counted.unsqueeze(1), rows.detach(), -torch.inf)
    spread = bags.unsqueeze(1).expand_as(values)
    shape = number, rows.shape[1]
    largest = values.new_full(shape, -torch.inf).scatter_reduce(0, spread, values, "amax")
    chosen = (values == largest.gather(0, spread)) & counted.unsqueeze(1)
    places = torch.arange(len(rows), device=rows.device).unsqueeze(1).expand_as(values)
    first = torch.full(shape, len(rows), device=rows.device)
    first = first.scatter_reduce(0, spread, torch.where(chosen, places, len(rows)), "amin")
    found = torch.cat([rows, rows.new_zeros(1, rows.shape[1])]).gather(0, first)
    return torch.where(first < len(rows), found, 0)


def gaussian_nll_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of a Gaussian. Variances are checked if their values are known."""
    if isinstance(var, Tensor) and not _values_known():
        if var.shape != input.shape and input.shape[:-1] == var.shape:
            var = var.unsqueeze(-1)
    else:
        # For what it raises.
        F.gaussian_nll_loss(
            input.detach(), target, var.detach() if isinstance(var, Tensor) else var, reduction=reduction
        )
        if not isinstance(var, Tensor):
            var = torch.full_like(input, var)
        elif var.shape != input.shape and input.shape[:-1] == var.shape:
            var = var.unsqueeze(-1)
    # The derivative passes below eps, as in PyTorch.
    var = _with_value(var, var.detach().clamp(min=eps))
    losses = 0.5 * (torch.log(var) + (input - target) ** 2 / var)
    if full:
        losses = losses + 0.5 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64, device="cpu")).item()
    return _reduced(losses, reduction)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002
    """Return relu6(x + 3) / 6, the definition."""
    result = F.relu6(input + 3) / 6
    return input.copy_(result) if inplace else result


def huber_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Return d^2 / 2 up to |d| = delta, and a linear function beyond."""
    if input.shape != target.shape or delta <= 0 or (weight is not None and weight.shape != input.shape):
        # Arguments that PyTorch rejects or warns about.
        plain: Callable[..., Tensor] = F.huber_loss
        return plain(input, target, reduction, delta, weight)
    difference = input - target
    size = absolute(difference)
    losses = torch.where(size < delta, 0.5 * difference * difference, delta * (size - 0.5 * delta))
    return _reduced(losses if weight is None else losses * weight, reduction)


def smooth_l1_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """Return d^2 / (2 beta) up to |d| = beta, and |d| - beta / 2 beyond."""
    reduction = _reduction(size_average, reduce, reduction)
    if input.shape != target.shape or beta <= 0:
        return F.smooth_l1_loss(input, target, reduction=reduction, beta=beta)
    difference = input - target
    size = absolute(difference)
    losses = torch.where(size < beta, 0.5 * difference * difference / beta, size - 0.5 * beta)
    return _reduced(losses, reduction)


def absolute(input: Tensor) -> Tensor:  # noqa: A002
    """Return x sign(x) with a constant sign.

    In graphs of PyTorch's function, the sign has a derivative of zeros, and sums with these zeros run in Python: they
    took half of a product with a small network whose loss has an L1 penalty.
    """
    if input.is_complex() or not input.is_floating_point() or not input.requires_grad:
        return torch.abs(input)
    return input * input.detach().sign()


def sinc(input: Tensor) -> Tensor:  # noqa: A002
    """Return sin(pi x) / (pi x), near zero by its power series.

    PyTorch's derivatives cancel near zero; at zero, the second one is zero or NaN instead of -pi^2 / 3.
    """
    if input.is_complex() or not input.is_floating_point():
        return torch.sinc(input)
    x = torch.pi * input
    near = x.abs() < 1
    square = torch.where(near, x * x, 0)
    series = torch.ones_like(square)
    # Horner's form of sum_k (-x^2)^k / (2k + 1)!. Its second derivative is rounded from k = 10 on.
    for k in range(10, 0, -1):
        series = 1 - square / (2 * k * (2 * k + 1)) * series
    far = torch.where(near, 1, x)
    return torch.where(near, series, torch.sin(far) / far)


def l1_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Return |x - y|; see `absolute`."""
    reduction = _reduction(size_average, reduce, reduction)
    if input.shape != target.shape or input.is_complex() or weight is not None:
        # Arguments that PyTorch rejects or warns about, and those for which it has a form of its own.
        plain: Callable[..., Tensor] = F.l1_loss
        return plain(input, target, reduction=reduction, weight=weight)
    return _reduced(absolute(input - target), reduction)


def soft_margin_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return softplus(-y x), which does not overflow."""
    losses = F.softplus(-target * input, threshold=LINEAR_FROM)
    return _reduced(losses, _reduction(size_average, reduce, reduction))


def multi_margin_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Mean over all classes of max(0, margin - x_y + x_i)^p for i other than y."""
    reduction = _reduction(size_average, reduce, reduction)
    if _values_known():
        # For what it raises.
        F.multi_margin_loss(input.detach(), target, p, margin, weight, reduction=reduction)
    true = target.reshape(*input.shape[:-1], 1)
    excess = F.relu(margin - input.gather(-1, true) + input)
    terms = (excess if p == 1 else excess * excess).scatter(-1, true, 0)
    if weight is not None:
        terms = terms * weight[true]
    return _reduced(terms.sum(-1) / input.shape[-1], reduction)


def multilabel_margin_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Sum of max(0, 1 - x_y + x_i) over labels y and classes i that are not, over the number of classes."""
    reduction = _reduction(size_average, reduce, reduction)
    if _values_known():
        # For what it raises.
        F.multilabel_margin_loss(input.detach(), target, reduction=reduction)
    # Labels end with the first that is negative.
    given = (target >= 0).long().cumprod(-1)
    labels = target.clamp(min=0)
    other = torch.zeros_like(target).scatter_add(-1, labels, given) == 0
    excess = F.relu(1 - input.gather(-1, labels).unsqueeze(-1) + input.unsqueeze(-2))
    terms = excess * (given.bool().unsqueeze(-1) & other.unsqueeze(-2))
    return _reduced(terms.sum((-2, -1)) / input.shape[-1], reduction)


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Return a comparison with all classes, where the values that PyTorch checks are not known."""
    if _values_known() or num_classes < 1:
        return F.one_hot(tensor, num_classes)
    return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=tensor.device)).long()


def rrelu(
    input: Tensor,  # noqa: A002
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    """In evaluation mode, without random numbers, a leaky ReLU with the mean slope."""
    if training:
        return F.rrelu(input, lower, upper, training, inplace)
    return F.leaky_relu(input, (lower + upper) / 2, inplace)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Return g v / |v|. The second derivatives of PyTorch's kernel are wrong on the CPU (torch 2.14)."""
    # -1 means one norm for all.
    others = None if dim == -1 else [other for other in range(v.dim()) if other != dim]
    norm: Tensor = torch.linalg.vector_norm(v, 2, others, keepdim=dim != -1)
    return v * (g / norm)


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist_if_necessary") -> Tensor:
    """Return distances of all pairs, with derivative zero at distance zero."""
    points = min(x1.dim(), x2.dim()) >= 2 and x1.shape[-1] == x2.shape[-1]
    if p not in (1, 2) or not points or x1.dtype != x2.dtype or not x1.is_floating_point():
        return torch.cdist(x1, x2, p, compute_mode)
    difference = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    if p == 1:
        return absolute(difference).sum(-1)
    squares = (difference * difference).sum(-1)
    equal = squares == 0
    distances = torch.where(equal, 0, torch.where(equal, 1, squares).sqrt())
    return with_square(distances, lambda: squares, (squares,), "distances")


def _unfused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a recurrent network with elementary operations: fused ones lack a forward-mode rule or second derivatives."""

    def recurrent(*args: Any, **kwargs: Any) -> Any:
        # Not `torch.backends.mkldnn.flags`, which warns about TF32 where it does not apply.
        before = torch._C._get_mkldnn_enabled()  # noqa: SLF001 - as the public function does
        torch._C._set_mkldnn_enabled(False)  # noqa: SLF001
        try:
            with torch.backends.cudnn.flags(enabled=False):
                return function(*args, **kwargs)
        finally:
            torch._C._set_mkldnn_enabled(before)  # noqa: SLF001

    return recurrent


SUBSTITUTES: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        F.cross_entropy: cross_entropy,
        F.embedding: embedding,
        F.embedding_bag: embedding_bag,
        F.gaussian_nll_loss: gaussian_nll_loss,
        F.hardsigmoid: hardsigmoid,
        F.huber_loss: huber_loss,
        F.multi_margin_loss: multi_margin_loss,
        F.multilabel_margin_loss: multilabel_margin_loss,
        F.one_hot: one_hot,
        F.rrelu: rrelu,
        F.smooth_l1_loss: smooth_l1_loss,
        F.soft_margin_loss: soft_margin_loss,
        **{
            function: of_absolute(absolute)
            for function in (torch.abs, torch.absolute, torch.Tensor.abs, torch.Tensor.absolute)
        },
        F.l1_loss: l1_loss,
        torch._weight_norm: weight_norm,  # noqa: SLF001 - what both forms of weight normalisation call
        torch.cdist: cdist,
        torch.embedding: _torch_embedding,
        torch.sinc: sinc,
        torch.special.sinc: sinc,
        torch.Tensor.sinc: sinc,
        **NORMALISATIONS,
        **SQUARES,
        **{function: _unfused(function) for function in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)},
    }
)
"""Substitute for each function, with the same arguments."""


class Substitutes(FunctionMode):
    """Within this context, calls of PyTorch functions are replaced by calls of others with the same arguments.

    Parameters
    ----------
    table : mapping
        From functions to their substitutes, inside which the original functions are called.
    """

    def __init__(self, table: Mapping[Any, Callable[..., Any]] = SUBSTITUTES) -> None:
        super().__init__()
        self._table = table

    def call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call the substitute of a function, or the function itself."""
        return self._table.get(func, func)(*args, **kwargs)


def _reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """Translate PyTorch's deprecated reduction arguments, if they are given."""
    if size_average is None and reduce is None:
        return reduction
    if reduce is False:
        return "none"
    return "sum" if size_average is False else "mean"


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def _with_value(tensor: Tensor, value: Tensor) -> Tensor:
    """Return a tensor with the derivatives of one and the value of another."""
    return (tensor - tensor.detach()) + value.detach()


def _values_known() -> bool:
    """Whether tensors have values, as opposed to placeholders while a function is traced."""
    return detect_fake_mode() is None
