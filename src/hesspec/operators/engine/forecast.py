"""What the passes of an operator take, from one batch that is timed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hesspec.operators.engine.budget import PassBytes
from hesspec.operators.engine.passes import Passes
from hesspec.operators.engine.streaming import cut_to_fit
from hesspec.operators.risk.empirical_risk import EmpiricalRisk

__all__ = ["Forecast", "forecast"]

# Timed calls of each pass, after one that is not: the median of three leaves out one disturbance.
CALLS = 3


@dataclass(frozen=True)
class Forecast:
    """Passes over the first batch, or a part of it that fits, and what they come to over all of the data.

    Attributes
    ----------
    mode, why : str
        How products are had, and why.
    parts : int
        Number of parts that the batch is cut into.
    pieces : float
        The data of a device in units of the part that was timed.
    shapes : int
        Number of shapes of batches, each of which is traced.
    trace_seconds, primal_seconds, tangent_seconds : float
        For the part: tracing its shape, and larger ones that do not fit; a primal pass; a tangent pass for one vector.
    size : PassBytes
        What passes over the part allocate.
    kept : float
        Share of the data whose primal passes are kept.
    flops : float
        Floating-point operations of a product, over all of the data, primal passes not counted.
    apply : callable
        Product of the part's matrix with a flat vector (p,), the part's loss being taken as that of all data.
    """

    mode: str
    why: str
    parts: int
    pieces: float
    shapes: int
    trace_seconds: float
    primal_seconds: float
    tangent_seconds: float
    size: PassBytes
    kept: float
    flops: float
    apply: Callable[[Tensor], Tensor]

    @property
    def seconds_setup(self) -> float:
        """Seconds before the first product: all traces, and a primal pass over all of the data."""
        return self.shapes * self.trace_seconds + self.pieces * self.primal_seconds

    def seconds_product(self, vectors: int = 1) -> float:
        """Seconds of a product with as many vectors, for each of them."""
        streamed = (1 - self.kept) * self.primal_seconds / vectors
        return self.pieces * (self.tangent_seconds + streamed)

    @property
    def peak_bytes(self) -> int:
        """Most bytes that passes take at once, what is kept included."""
        kept = self.shapes * self.size.shared + round(self.kept * self.pieces) * self.size.kept
        return kept + max(self.size.tangent, self.size.streamed if self.kept < 1 else 0)


def forecast(risk: EmpiricalRisk, passes: Passes, budget: int, devices: int = 1) -> Forecast:
    """Time the passes over the first batch.

    Parameters
    ----------
    risk : EmpiricalRisk
    passes : Passes
        Of its matrix.
    budget : int
        Bytes that kept primal passes and the pass at work may take together, on each device.
    devices : int
        Number of devices that the data is spread over.

    Raises
    ------
    MemoryError
        If not even one sample fits into the budget.
    """
    start = time.perf_counter()
    while True:
        parts, cut = cut_to_fit(risk, next(iter(risk.batches)), 1, lambda part: passes.bytes(part).least, budget)
        if passes.settle(cut[0]):
            break
    trace_seconds = time.perf_counter() - start
    part = cut[0]
    size = passes.bytes(part)
    vector = torch.randn(risk.parameters.count, dtype=risk.parameters.dtype, device=risk.parameters.device)
    vector /= vector.norm()
    total = torch.zeros_like(vector)

    def product(given: Tensor, into: Tensor) -> Tensor:
        with torch.no_grad():
            for result, share in zip(
                risk.parameters.split(into), primal.apply(risk.parameters.split(given)), strict=True
            ):
                result.add_(share)
        return into

    primal = passes.build(part)
    primal_seconds = _median(lambda: passes.build(part))
    with FlopCounterMode(display=False) as counter:
        product(vector, total)
    tangent_seconds = _median(lambda: product(vector, total))
    pieces = risk.batches.samples / part.samples / devices
    shapes = len(set(risk.batches.sizes))
    budget -= shapes * size.shared
    room = (budget - max(size.tangent, size.kept)) / max(size.kept, 1)
    kept = 1.0 if room >= pieces else math.floor((budget - size.streamed) / max(size.kept, 1)) / pieces
    return Forecast(
        mode=passes.mode,
        why=passes.why,
        parts=parts,
        pieces=pieces,
        shapes=shapes,
        trace_seconds=trace_seconds,
        primal_seconds=primal_seconds,
        tangent_seconds=tangent_seconds,
        size=size,
        kept=min(1.0, kept),
        flops=counter.get_total_flops() * pieces * devices,
        apply=lambda given: product(given, torch.zeros_like(given)),
    )


def _median(call: Callable[[], object]) -> float:
    seconds: list[float] = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
