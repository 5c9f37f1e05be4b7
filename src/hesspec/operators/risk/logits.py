"""Logits as rows: one softmax each, with the true class and what the row counts for in the loss."""

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

    Everything is float64, whatever the model's dtype: probabilities near 1 keep what they are away from it.

    Attributes
    ----------
    probabilities : Tensor (R, C)
        Softmax of the logits.
    targets : Tensor (R,)
        True classes, int64; 0 where a row does not count.
    scale : Tensor (R,)
        What the row's loss is multiplied by in the loss of all data: 1/N for a plain mean; 0 for ignored rows.
    """

    probabilities: Tensor
    targets: Tensor
    scale: Tensor

    @classmethod
    def of(cls, loss: Loss, logits: Tensor, targets: Any, share: float) -> LogitRows:
        """Rows of a batch.

        Parameters
        ----------
        loss : Loss
            Of `torch.nn.CrossEntropyLoss`.
        logits : Tensor (N, C) or (N, C, d1, ...)
        targets : Tensor (N,) or (N, d1, ...)
            Classes, of an integer dtype.
        share : float
            What the loss of the batch is multiplied by in the loss of all data.

        Raises
        ------
        ValueError
            If the targets are no classes, or there is one class only.
        """
        if not isinstance(targets, Tensor) or targets.is_floating_point():
            seen = str(targets.dtype) if isinstance(targets, Tensor) else type(targets).__name__
            raise InputError(
                f"The targets are {seen}; the class structure needs the true class of every sample, as integers."
            )
        if logits.dim() < 2 or targets.shape != logits.shape[:1] + logits.shape[2:]:
            raise InputError(
                f"Logits of shape {tuple(logits.shape)} and targets of shape {tuple(targets.shape)} do not belong "
                "together: the class structure needs (N, C) and (N,), or (N, C, d1, ...) and (N, d1, ...)."
            )
        if logits.shape[1] < 2:
            raise InputError("There is one class only (the model has one logit): its softmax has no curvature.")
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
        """C."""
        return self.probabilities.shape[1]

    @property
    def weights(self) -> Tensor:
        """w_{i,c'}, (R, C): the scale of each row times its probabilities."""
        return self.scale[:, None] * self.probabilities

    def flat(self, tensor: Tensor) -> Tensor:
        """A tensor that is shaped as the logits, as rows (R, C) in float64."""
        return self._flat(tensor)

    def shaped(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Inverse of `flat`: rows in the shape and dtype of the logits."""
        shape = (len(logits), *logits.shape[2:], logits.shape[1])
        return rows.to(logits.dtype).reshape(shape).movedim(-1, 1).contiguous()

    def centred(self, u: Tensor) -> Tensor:
        """<e_{c'} - p_i, u_i> for all c', (R, C): with u = J v it is <g_{i,c'}, v>."""
        return u - (self.probabilities * u).sum(1, keepdim=True)

    def cotangent(self, coefficients: Tensor) -> Tensor:
        """sum_{c'} w_{i,c'} k_{i,c'} (e_{c'} - p_i), (R, C), for coefficients k (R, C)."""
        weighted = self.weights * coefficients
        return weighted - self.probabilities * weighted.sum(1, keepdim=True)

    def by_class(self, values: Tensor) -> Tensor:
        """Sums (C, C) of values (R, C) over the rows of each class."""
        total = torch.zeros(self.classes, self.classes, dtype=torch.float64, device=values.device)
        return total.index_add_(0, self.targets, values)


def check_softmax_loss(loss: Loss) -> None:
    """Refuse a loss of which the outputs are not known to be softmax logits.

    Raises
    ------
    ValueError
        If the loss is no `torch.nn.CrossEntropyLoss` or `torch.nn.functional.cross_entropy`.
    """
    if getattr(type(loss.function), "forward", None) is not nn.CrossEntropyLoss.forward:
        raise InputError(
            f"The loss is {loss.name}; the class structure is that of softmax cross-entropy: pass "
            "torch.nn.CrossEntropyLoss(), and a model that returns logits."
        )
