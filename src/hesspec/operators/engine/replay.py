"""Products of cached primal passes, recorded as graphs of the device (CUDA graphs) and replayed by one call.

A tangent pass consists of hundreds of kernels. Python starts them one after the other, in 5 to 20 microseconds each,
and where they compute for less than that, the device waits for Python. A graph starts all of them at once; it computes
the same kernels on the same memory, into which vectors are copied.

A graph is recorded in the second product of a batch, from which on nothing is set up any more, and compared with that
product, computed without it. If it cannot be recorded, if it differs, or if kernels take longer than it takes to start
them, products are computed as before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from hesspec.operators.engine.differences import length
from hesspec.operators.engine.matrix_passes import TracedProduct

__all__ = ["GRAPHS", "CudaGraphs", "DeviceGraphs", "recorded", "recorder_for", "without_graphs"]

logger = logging.getLogger(__name__)

# Share of the time of a product that the host takes to start it, above which a graph pays.
BUSY: Final = 0.5
# Roundings by which the same product may differ, as libraries may choose other kernels where they are recorded.
ROUNDINGS: Final = 64


class DeviceGraphs(Protocol):
    """Graphs of a device."""

    def timed(self, call: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], float]:
        """Return the results of a call, and the share of its time that the host took to start it."""

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """Record what a call computes, and return a function that computes it again, on the same memory.

        Raises
        ------
        RuntimeError
            If it cannot be recorded, as it waits for the device.
        """


class CudaGraphs:
    """CUDA graphs of one device, which share memory: they are replayed one after the other.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = None

    def timed(self, call: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], float]:
        """Return the results of a call, and the share of its time that the host took to start it."""
        torch.cuda.synchronize(self._device)
        begin = time.perf_counter()
        results = call()
        started = time.perf_counter()
        torch.cuda.synchronize(self._device)
        return results, (started - begin) / (time.perf_counter() - begin)

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """Record what a call computes; see `DeviceGraphs`."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        # Not `torch.cuda.graph`, which gives all free memory back to the driver for each of many batches. Other threads
        # may use the device meanwhile.
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                call()
            finally:
                graph.capture_end()
        self._pool = graph.pool()
        return graph.replay


GRAPHS: dict[str, Callable[[torch.device], DeviceGraphs]] = {"cuda": CudaGraphs}
"""Graphs of each type of device that has them."""


class Recorder:
    """What the recorded products of one operator share: the vector's memory, the results', and whether graphs work."""

    def __init__(self, graphs: DeviceGraphs) -> None:
        self.graphs, self.works, self._pays = graphs, True, False
        self._inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def fill(self, tangents: Sequence[Tensor]) -> None:
        """Copy a vector to where graphs read it."""
        torch._foreach_copy_(self._inputs, list(tangents))

    def record(
        self, apply: TracedProduct, tangents: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Callable[[], None] | None]:
        """Compute a product, and record it; returns None in place of the graph where that fails or does not pay."""
        expected, busy = self.graphs.timed(lambda: apply(tangents))
        self._pays = self._pays or busy >= BUSY
        if not self._pays:
            self._stop(f"starting kernels takes {busy:.0%} of a product only")
            return expected, None
        try:
            if not self.outputs:
                self._inputs = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in tangents]
                self.outputs = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in expected]
            self.fill(tangents)
            replay = self.graphs.record(lambda: torch._foreach_copy_(self.outputs, list(apply(self._inputs))))
            replay()
        except RuntimeError as error:
            # Memory that ran out is among them: products need less without graphs.
            self._stop(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
            return expected, None
        apart = length([one - other for one, other in zip(self.outputs, expected, strict=True)])
        if not apart <= ROUNDINGS * torch.finfo(expected[0].dtype).eps * length(expected):
            self._stop(f"its result differs by {apart:.1e} from a product of the norm {length(expected):.1e}")
            return expected, None
        return expected, replay

    def _stop(self, why: str) -> None:
        logger.info("products are not recorded as graphs of the device: %s", why)
        self.works = False
        self._inputs, self.outputs = [], []


class Recorded:
    """Products of a batch, which are recorded in the second one; results are valid until the next product of any batch.

    Parameters
    ----------
    apply : TracedProduct
    recorder : Recorder
    """

    def __init__(self, apply: TracedProduct, recorder: Recorder) -> None:
        self.apply, self._recorder = apply, recorder
        self._calls = 0
        self._replay: Callable[[], None] | None = None

    def __call__(self, tangents: Sequence[Tensor]) -> Sequence[Tensor]:
        """Product M v."""
        recorder = self._recorder
        if not recorder.works:
            # Its memory is freed.
            self._replay = None
            return self.apply(tangents)
        if self._replay is None:
            self._calls += 1
            if self._calls == 1:
                return self.apply(tangents)
            expected, self._replay = recorder.record(self.apply, tangents)
            return expected
        recorder.fill(tangents)
        self._replay()
        return recorder.outputs

    def within(self, places: tuple[int, ...], tangents: Sequence[Tensor]) -> Sequence[Tensor]:
        """Part of M v at these places, for v that is zero elsewhere; it is not recorded."""
        return self.apply.within(places, tangents)


def recorder_for(device: torch.device) -> Recorder | None:
    """Return a recorder for an operator on this device; None if it has no graphs."""
    graphs = GRAPHS.get(device.type)
    return None if graphs is None else Recorder(graphs(device))


def recorded(apply: Any, recorder: Recorder) -> Any:
    """Return the products of a batch to be recorded, if they are traced; others as they are."""
    return Recorded(apply, recorder) if isinstance(apply, TracedProduct) else apply


def without_graphs(apply: Any) -> Any:
    """Return the products of a batch as they were before `recorded`."""
    return apply.apply if isinstance(apply, Recorded) else apply
