"""Time and memory of an operator's passes, predicted from one timed batch."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hesspec.backend.arithmetic import full_float32
from hesspec.operators.engine.budget import PassBytes
from hesspec.operators.engine.passes import Passes
from hesspec.operators.engine.splitting import cut_to_fit
from hesspec.operators.engine.verification import VERIFICATION_BYTES
from hesspec.operators.risk.empirical_risk import EmpiricalRisk

__all__ = ["Forecast", "forecast"]

# Number of timed calls of each pass, after a warm-up: a median of three ignores one disturbance.
CALLS = 3


@dataclass(frozen=True)
class Forecast:
    """Timing of the passes over the first batch, or a part of it that fits, extrapolated to all data.

    Attributes
    ----------
    mode, why : str
        How products are computed, and why.
    parts : int
        Number of parts into which the batch is split.
    pieces : float
        Data of a device in units of the part that was timed.
    shapes : int
        Number of distinct batch shapes, each of which is traced.
    trace_seconds, primal_seconds, tangent_seconds : float
        Seconds for the part: tracing its shape, and larger ones that do not fit; a primal pass; a tangent pass for one
        vector.
    size : PassBytes
        Memory that passes over the part allocate.
    kept : float
        Share of the data whose primal passes are cached.
    verification_bytes : int
        Memory that the verification of the first product allocates for vectors and frees.
    flops : float
        Floating-point operations of a product over all data, without primal passes.
    apply : callable
        Product of the part's matrix with a flat vector (p,), with the part's loss as that of all data.
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
    verification_bytes: int
    flops: float
    apply: Callable[[Tensor], Tensor]

    @property
    def seconds_setup(self) -> float:
        """Seconds before the first product: all traces, and a primal pass over all data."""
        return self.shapes * self.trace_seconds + self.pieces * self.primal_seconds

    def seconds_product(self, vectors: int = 1) -> float:
        """Seconds per vector of a product with this number of vectors."""
        streamed = (1 - self.kept) * self.primal_seconds / vectors
        return self.pieces * (self.tangent_seconds + streamed)

    @property
    def peak_bytes(self) -> int:
        """Peak memory of passes in bytes, including the cache."""
        kept = self.shapes * self.size.shared + round(self.kept * self.pieces) * self.size.kept
        return kept + max(self.size.tangent, self.size.streamed if self.kept < 1 else 0)


@full_float32()
def forecast(risk: EmpiricalRisk, passes: Passes, budget: int, devices: int = 1) -> Forecast:
    """Time the passes over the first batch.

    Parameters
    ----------
    risk : EmpiricalRisk
    passes : Passes
        Passes of its matrix.
    budget : int
        Memory for cached primal passes and the running pass together on each device, in bytes.
    devices : int
        Number of devices that share the data.

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
        with torch.no_grad(), full_float32(tf32=passes.precision == "tf32"):
            for result, share in zip(
                risk.parameters.split(into), primal.apply(risk.parameters.split(given)), strict=True
            ):
                result.add_(share)
        return into

    primal = passes.build(part)
    primal_seconds = _median(lambda: passes.build(part), vector.device)
    with FlopCounterMode(display=False) as counter:
        product(vector, total)
    tangent_seconds = _median(lambda: product(vector, total), vector.device)
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
        verification_bytes=VERIFICATION_BYTES * risk.parameters.count if risk.verify else 0,
        flops=counter.get_total_flops() * pieces * devices,
        apply=lambda given: product(given, torch.zeros_like(given)),
    )


def _median(call: Callable[[], object], device: torch.device) -> float:
    seconds: list[float] = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
