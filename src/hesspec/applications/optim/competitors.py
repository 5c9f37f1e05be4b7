"""Competitors of the true class: how much output curvature distinguishes them, and how many there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from hesspec.applications.optim.record import CompetitorShare
from hesspec.applications.optim.systems import loss_of, split_of
from hesspec.operators.engine.jacobian import rows_of
from hesspec.operators.risk.empirical_risk import EmpiricalRisk
from hesspec.operators.risk.logits import LogitRows, check_softmax_loss
from hesspec.operators.risk.losses import LossFunction

__all__ = ["competitor_share", "share_of"]


def competitor_share(model: nn.Module, loss_fn: LossFunction, data: Iterable[Any]) -> CompetitorShare:
    """Compute the share of the output curvature within the competitors of the true class, by one forward pass.

    It says what Fast Gauss-Newton leaves out: its steps are near those of full Gauss-Newton where the share is small,
    because samples have one competitor (`participation` near 1) or two classes exist, or where the damping is large.

    Parameters
    ----------
    model, loss_fn, data
        See `hesspec.GaussNewton`. The loss must be `torch.nn.CrossEntropyLoss` with class indices as targets.

    Returns
    -------
    CompetitorShare

    Raises
    ------
    ValueError
        If the loss is a different one, or for the reasons of `hesspec.GaussNewton`.

    Notes
    -----
    The split is that of Korbit and Zanon (arXiv 2605.06081); traces and participation are ours.

    Examples
    --------
    >>> import torch, hesspec
    >>> model = torch.nn.Linear(2, 10)
    >>> _ = torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
    >>> data = [(torch.randn(20, 2), torch.arange(20) % 10)]
    >>> found = hesspec.optim.competitor_share(model, torch.nn.CrossEntropyLoss(), data)
    >>> round(found.share, 6), round(found.participation, 6)
    (0.888889, 9.0)
    """
    risk = EmpiricalRisk(model, loss_fn, data)
    check_softmax_loss(risk.loss)
    return share_of(rows_of(risk))


def share_of(rows: Sequence[LogitRows]) -> CompetitorShare:
    """Compute the shares from logits."""
    first, second, numbers, targets, weights = [], [], [], [], []
    for row in rows:
        p, rest, q = split_of(row)
        squares = q.square().sum(1)
        first.append(row.scale * p * rest * (1 + squares))
        # 1 - sum q^2 without cancellation where one competitor has nearly all.
        second.append(row.scale * rest * (q * (q.sum(1, keepdim=True) - q)).sum(1))
        numbers.append(1 / squares.clamp(min=torch.finfo(q.dtype).tiny))
        targets.append(row.targets)
        weights.append(row.scale)
    one, two, number, target, weight = (torch.cat(parts) for parts in (first, second, numbers, targets, weights))
    counted = weight > 0
    one, two, number, target, weight = (each[counted] for each in (one, two, number, target, weight))
    # Where the rest underflows there is no competitor to count.
    number = torch.where(one + two > 0, number.clamp(max=rows[0].classes - 1), 1.0)
    classes, inverse = torch.unique(target, return_inverse=True)

    def by_class(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(classes), dtype=torch.float64, device=values.device).index_add_(0, inverse, values)

    traces = by_class(one), by_class(two)
    total = torch.where(traces[0] + traces[1] > 0, traces[0] + traces[1], 1)
    whole = float(one.sum() + two.sum())
    return CompetitorShare(
        share=float(two.sum()) / whole if whole > 0 else 0.0,
        participation=float((weight * number).sum() / weight.sum()),
        true_vs_rest=float(one.sum()),
        within_competitor=float(two.sum()),
        loss=loss_of(rows),
        samples=int(counted.sum()),
        classes=classes.cpu().numpy(),
        class_samples=torch.bincount(inverse, minlength=len(classes)).cpu().numpy(),
        class_shares=(traces[1] / total).cpu().numpy(),
        class_participations=(by_class(weight * number) / by_class(weight)).cpu().numpy(),
    )
