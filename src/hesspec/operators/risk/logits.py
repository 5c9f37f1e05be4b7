"""Logits as rows: one softmax each, with the true class and the weight of the row in the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hesspec.errors import InputError
from hesspec.operators.risk.losses import Loss
from hesspec.operators.risk.output_curvature import row_weights

__all__ = ["LogitRows", "check_softmax_loss"]


@dataclass(frozen=True)
class LogitRows:
    """R rows of C logits: the samples of a batch, or the positions of all of its samples.

    Everything is float64, whatever the model's dtype, so that 1 - p stays accurate for probabilities near 1.

    Attributes
    ----------
    probabilities : Tensor (R, C)
        Softmax of the logits.
    targets : Tensor (R,)
        True classes, int64; 0 for ignored rows.
    scale : Tensor (R,)
        Weight of the row's loss in the loss of all data: 1/N for a plain mean; 0 for ignored rows.
    """

    probabilities: Tensor
    targets: Tensor
    scale: Tensor

    @classmethod
    def of(cls, loss: Loss, logits: Tensor, targets: Any, share: float) -> LogitRows:
        """Create the rows of a batch.

        Parameters
        ----------
        loss : Loss
            A `torch.nn.CrossEntropyLoss`.
        logits : Tensor (N, C) or (N, C, d1, ...)
        targets : Tensor (N,) or (N, d1, ...)
            Classes, with an integer dtype.
        share : float
            Weight of the batch's loss in the loss of all data.

        Raises
        ------
        ValueError
            If the targets are not classes, or there is only one class.
        """
        if not isinstance(targets, Tensor) or targets.is_floating_point():
            seen = str(targets.dtype) if isinstance(targets, Tensor) else type(targets).__name__
            raise InputError(
                f"The targets are {seen}; the class structure requires the true class of every sample as an integer."
            )
        if logits.dim() < 2 or targets.shape != logits.shape[:1] + logits.shape[2:]:
            raise InputError(
                f"Logits of shape {tuple(logits.shape)} and targets of shape {tuple(targets.shape)} do not match: "
                "the class structure requires (N, C) and (N,), or (N, C, d1, ...) and (N, d1, ...)."
            )
        if logits.shape[1] < 2:
            raise InputError("There is only one class (the model has one logit): its softmax has no curvature.")
        function = cast("nn.CrossEntropyLoss", loss.function)
        counted: Tensor = targets != function.ignore_index
        weights = row_weights(function, logits, targets, 1)
        rows = cls._flat(logits)
        return cls(
            torch.softmax(rows, 1),
            torch.where(counted, targets, 0).reshape(-1).long(),
            share * weights.to(torch.float64).reshape(-1),
        )

    @staticmethod
    def _flat(tensor: Tensor) -> Tensor:
        return tensor.detach().movedim(1, -1).reshape(-1, tensor.shape[1]).to(torch.float64)

    @property
    def classes(self) -> int:
        """Number of classes, C."""
        return self.probabilities.shape[1]

    @property
    def weights(self) -> Tensor:
        """Weights w_{i,c'} (R, C): the scale of each row times its probabilities."""
        return self.scale[:, None] * self.probabilities

    def flat(self, tensor: Tensor) -> Tensor:
        """Reshape a tensor with the shape of the logits to rows (R, C) in float64."""
        return self._flat(tensor)

    def shaped(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Apply the inverse of `flat`: reshape rows to the shape and dtype of the logits."""
        shape = (len(logits), *logits.shape[2:], logits.shape[1])
        return rows.to(logits.dtype).reshape(shape).movedim(-1, 1).contiguous()

    def centred(self, u: Tensor) -> Tensor:
        """Return <e_{c'} - p_i, u_i> for all c', (R, C), which is <g_{i,c'}, v> for u = J v."""
        return u - (self.probabilities * u).sum(1, keepdim=True)

    def cotangent(self, coefficients: Tensor) -> Tensor:
        """Return sum_{c'} w_{i,c'} k_{i,c'} (e_{c'} - p_i), (R, C), for coefficients k (R, C)."""
        weighted = self.weights * coefficients
        return weighted - self.probabilities * weighted.sum(1, keepdim=True)

    def true(self, groups: Tensor | None = None) -> Tensor:
        """Return the true class of each row (R,), or the group of it, for groups (C,) from 0 to K - 1."""
        return self.targets if groups is None else groups[self.targets]

    def by_class(self, values: Tensor, groups: Tensor | None = None) -> Tensor:
        """Sum values (R, C) over the rows of each class, (C, C); or of each group and over logits of groups, (K, K)."""
        count = self.classes
        if groups is not None:
            count = int(groups.max()) + 1
            of_groups = torch.zeros(len(values), count, dtype=torch.float64, device=values.device)
            values = of_groups.index_add_(1, groups, values)
        total = torch.zeros(count, count, dtype=torch.float64, device=values.device)
        return total.index_add_(0, self.true(groups), values)

    def spread(self, coefficients: Tensor, groups: Tensor | None = None) -> Tensor:
        """Give each row and logit the coefficient of its classes, (C, C) to (R, C), or of its groups, (K, K)."""
        of_rows = coefficients[self.true(groups)]
        return of_rows if groups is None else of_rows[:, groups]


def check_softmax_loss(loss: Loss) -> None:
    """Reject a loss whose outputs are not known to be softmax logits.

    Raises
    ------
    ValueError
        If the loss is not `torch.nn.CrossEntropyLoss` or `torch.nn.functional.cross_entropy`.
    """
    if getattr(type(loss.function), "forward", None) is not nn.CrossEntropyLoss.forward:
        raise InputError(
            f"The loss is {loss.name}; the class structure requires softmax cross-entropy: pass "
            "torch.nn.CrossEntropyLoss(), and a model that returns logits."
        )
