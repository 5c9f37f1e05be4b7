"""Losses of classifiers by name."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

__all__ = ["CROSS_ENTROPY", "LOSSES", "OneHotSquaredError"]


class OneHotSquaredError(nn.Module):
    """Mean over samples and classes of the squared error between outputs (N, C) and one-hot labels (N,)."""

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss, a scalar."""
        return mse_loss(outputs, one_hot(labels, outputs.shape[-1]).to(outputs.dtype))


CROSS_ENTROPY: Final = "cross-entropy"
# One object for each, as traces are shared only for the identical loss.
LOSSES: Final[dict[str, nn.Module]] = {CROSS_ENTROPY: nn.CrossEntropyLoss(), "mse": OneHotSquaredError()}
"""Losses that a study file can name: mean cross-entropy in nats, and `OneHotSquaredError`."""
