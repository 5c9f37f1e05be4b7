"""Batches that do not fit into memory, split along their samples."""

from __future__ import annotations

import math
from collections.abc import Callable

from hesspec.backend.memory import BudgetError, in_words
from hesspec.operators.risk.batches import Batch
from hesspec.operators.risk.empirical_risk import EmpiricalRisk

__all__ = ["ADVICE", "cut_to_fit", "even", "most_parts"]

ADVICE = (
    "Increase memory=..., or use fewer parameters (params=...) or a smaller model; a Krylov basis that fills "
    "the device may also be the cause."
)


def cut_to_fit(
    risk: EmpiricalRisk, batch: Batch, count: int, need_of: Callable[[Batch], int], budget: int
) -> tuple[int, list[Batch]]:
    """Split a batch into few equal parts that are predicted to fit into a budget.

    Parameters
    ----------
    risk : EmpiricalRisk
    batch : Batch
    count : int
        Initial number of parts.
    need_of : callable
        Returns the bytes that passes over a part need.
    budget : int

    Returns
    -------
    int, list of Batch
        Number of parts, and the parts.

    Raises
    ------
    MemoryError
        If not even one sample fits.
    """
    most, growth = most_parts(batch), 1.0
    products = risk.parameters.count * risk.parameters.dtype.itemsize
    while True:
        parts = risk.batches.split(batch, count)
        need = max(map(need_of, parts))
        if need <= budget:
            return count, parts
        if count >= most:
            raise _too_large(batch, need, budget)
        # Memory except for the products grows roughly with the samples; if that guess was too optimistic, double the
        # parts.
        room = (budget - products) / max(need - products, 1)
        wanted = max(count / room, count * growth, count + 1) if room > 0 else most
        count, growth = even(min(math.ceil(wanted), most), most), 2.0


def most_parts(batch: Batch) -> int:
    """Return the number of parts into which a batch can be split."""
    return 1 if batch.indivisible else batch.samples


def _too_large(batch: Batch, need: int, budget: int) -> BudgetError:
    single = batch.samples == 1 or not batch.indivisible
    what = "One sample" if single else f"Batch {batch.index}, which cannot be split ({batch.indivisible}),"
    advice = ADVICE if single else "Increase memory=..., or pass smaller batches if that gives the same loss."
    return BudgetError(
        f"{what} is predicted to need {in_words(need)} in addition to the model, but the memory for it is "
        f"{in_words(budget)}. {advice}"
    )


def even(parts: int, samples: int) -> int:
    """Round up to a number of parts that divides the samples, if it at most doubles: this saves a second trace."""
    return next((count for count in range(parts, min(2 * parts, samples) + 1) if samples % count == 0), parts)
