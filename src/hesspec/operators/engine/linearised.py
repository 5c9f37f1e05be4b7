"""Protocol of products of a matrix over all batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

from torch import Tensor

from hesspec.errors import NonFiniteError

__all__ = ["Linearised"]


class Linearised(Protocol):
    """Protocol of products of a matrix over all batches, as in `LinearisedRisk`."""

    value: float
    seconds: float
    predicted_peak: int

    @property
    def mode(self) -> str:
        """Mode in use, such as "traced" or "double backward"."""

    @property
    def reason(self) -> str:
        """Reason for the mode, as text."""

    @property
    def error(self) -> float:
        """Error of products relative to their norm, beyond the rounding of their dtype."""

    @property
    def kept_batches(self) -> int:
        """Number of batches, or parts of them, whose primal passes are cached."""

    @property
    def kept_bytes(self) -> int:
        """Bytes of these caches."""

    def avoid_infinities(self) -> bool:
        """After a product that is not finite, switch to the next mode and return True, if that may help."""

    def reconsider(self) -> None:
        """Trace after all, if that pays off for the number of products that is expected now."""

    def at_full_precision(self) -> Self:
        """Return the same matrix at full precision."""

    def at_twice_the_displacement(self) -> Self:
        """Return the same matrix with differences over twice the displacement."""

    def products(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Compute M v for each flat vector (p,)."""

    def diagnose(self, vector: Tensor) -> NonFiniteError:
        """Describe where M v is NaN or infinite."""
