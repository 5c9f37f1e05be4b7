"""Cross-entropy of tokens with a penalty of the softmax's normaliser (z-loss)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TokenLoss", "is_token_loss"]


class TokenLoss(nn.CrossEntropyLoss):
    r"""Mean over tokens of the cross-entropy, and of the squared logarithm of the softmax's normaliser.

    .. math:: l = \frac1T \sum_t \bigl[ -\log p_{t, y_t} + z \log^2 Z_t \bigr], \qquad
              Z_t = \sum_v e^{f_{t,v}}, \quad p_t = e^{f_t} / Z_t

    over the T tokens whose target is not ignored. The second term, the z-loss of large language models, keeps the
    logits near the scale where log Z = 0; z = 1e-4 is usual. Its output curvature is

    .. math:: \frac{d^2\, z \log^2 Z}{d f^2} = 2 z \bigl[ p p^\top + \log Z\, (\mathrm{diag}(p) - p p^\top) \bigr],

    so that with cross-entropy, (1 + 2 z log Z) (diag(p) - p p^T) + 2 z p p^T: positive semi-definite where
    log Z >= -1/(2 z). `hesspec.GaussNewton` takes it in this form.

    Parameters
    ----------
    z_loss : float
        Factor z, at least 0.
    label_smoothing : float
        As in `torch.nn.CrossEntropyLoss`.
    ignore_index : int
        Target that is not counted.
    reduction : {"mean", "sum"}
        Mean over the tokens that are counted, or their sum.

    Raises
    ------
    ValueError
        If `z_loss` is negative or not finite.

    Examples
    --------
    >>> import torch
    >>> logits, targets = torch.zeros(2, 4, 3), torch.tensor([[0, 1, -100], [2, 3, 1]])
    >>> round(TokenLoss(z_loss=0.5)(logits, targets).item(), 4)  # log 4 + 0.5 log^2 4
    2.3472
    """

    def __init__(
        self, *, z_loss: float = 0.0, label_smoothing: float = 0.0, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        if not 0 <= z_loss < math.inf:
            raise ValueError(f"z_loss is {z_loss}; it must be at least 0, and finite.")
        super().__init__(ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
        self.z_loss = z_loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # noqa: A002 - the name of PyTorch's argument
        """Compute the loss, a scalar, of logits (N, V), (N, V, L) or (V,) and targets (N,), (N, L) or ()."""
        loss = super().forward(input, target)
        if self.z_loss == 0:
            return loss
        counted = target != self.ignore_index
        squares = torch.where(counted, torch.logsumexp(input, 1 if input.dim() > 1 else 0) ** 2, 0)
        total = self.z_loss * squares.sum()
        return loss + (total / counted.sum() if self.reduction == "mean" else total)

    def extra_repr(self) -> str:
        """Return settings for the module's representation."""
        return f"z_loss={self.z_loss}, label_smoothing={self.label_smoothing}, ignore_index={self.ignore_index}"


def is_token_loss(loss: Any) -> bool:
    """Whether a loss is a `TokenLoss`, or a subclass with the same `forward`."""
    return getattr(type(loss), "forward", None) is TokenLoss.forward
