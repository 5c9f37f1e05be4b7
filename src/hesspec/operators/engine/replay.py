"""Products of cached primal passes, recorded as graphs of the device (CUDA graphs) and replayed by one call.

A tangent pass consists of hundreds of kernels. Python starts them one after the other, in 5 to 20 microseconds each,
and where they compute for less than that, the device waits for Python. A graph starts all of them at once; it computes
the same kernels on the same memory, into which vectors are copied.

A graph is recorded in the second product of a batch, from which on nothing is set up any more, and compared with that
product, computed without it. If it cannot be recorded, if it differs, or if kernels take longer than it takes to start
them, products are computed as before.

A recording that fails leaves memory behind that PyTorch does not free again, so what is known to fail is not tried, and
after a failure nothing is recorded any more in the process.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final, Protocol

import torch
from torch import Tensor, fx

from hesspec.operators.engine.differences import length
from hesspec.operators.engine.graph.tracing import without_collections
from hesspec.operators.engine.matrix_passes import TracedProduct

__all__ = ["GRAPHS", "CudaGraphs", "DeviceGraphs", "recorded", "recorder_for", "without_graphs"]

logger = logging.getLogger(__name__)

aten: Any = torch.ops.aten
# Operations that take indices on the CPU, which are copied to the device while the host waits. Masks are not traced.
INDEXING: Final = {
    getattr(getattr(aten, name), overload)
    for name, overload in (
        ("index", "Tensor"),
        ("_unsafe_index", "Tensor"),
        ("index_put", "default"),
        ("index_put_", "default"),
        ("_unsafe_index_put", "default"),
        ("_index_put_impl_", "default"),
    )
}
# Streams of a device that `torch.cuda.Stream` hands out in turn.
STREAMS: Final = 32

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
    stream : torch.cuda.Stream
        On which nothing else is recorded. cuBLAS computes in memory that PyTorch keeps for each stream, allocated in
        that of the first graph on it; from version 2.12 on, PyTorch frees it with any graph that was recorded on that
        stream, and others compute there nevertheless (pytorch#193402).

    Attributes
    ----------
    failed : bool
        Whether a recording in this process was cut off.
    """

    failed: ClassVar[bool] = False
    _all: ClassVar[weakref.WeakSet[CudaGraphs]] = weakref.WeakSet()

    def __init__(self, device: torch.device, stream: torch.cuda.Stream) -> None:
        self.device, self.stream = device, stream
        self._pool = torch.cuda.graph_pool_handle()
        self._begun = False
        self._all.add(self)

    @classmethod
    def of(cls, device: torch.device) -> CudaGraphs | None:
        """Return graphs on a stream of their own; None if there is none left, or a recording has failed."""
        if cls.failed:
            return None
        taken = {graphs.stream.cuda_stream for graphs in cls._all if graphs.device == device}
        for _ in range(STREAMS):
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            if stream.cuda_stream not in taken:
                return cls(device, stream)
        return None

    def timed(self, call: Callable[[], Sequence[Tensor]]) -> tuple[Sequence[Tensor], float]:
        """Return the results of a call, and the share of its time that the host took to start it."""
        torch.cuda.synchronize(self.device)
        begin = time.perf_counter()
        results = call()
        started = time.perf_counter()
        torch.cuda.synchronize(self.device)
        return results, (started - begin) / (time.perf_counter() - begin)

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """Record what a call computes; see `DeviceGraphs`."""
        if not self._begun:
            # Graphs get memory of their own, and while they are recorded PyTorch does not give back what it keeps free.
            # Not `torch.cuda.graph`, which gives it back for each of many batches.
            torch.cuda.empty_cache()
            self._begun = True
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        # A graph that is collected as garbage meanwhile would cut the recording off. Other threads may use the device.
        with torch.cuda.stream(self.stream), without_collections():
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                call()
            except BaseException:
                # What has failed is the error to report.
                with suppress(RuntimeError):
                    self._end(graph)
                raise
            self._end(graph)
        return graph.replay

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            CudaGraphs.failed = True
            # PyTorch 2.11 goes on as if it were recording, and would not give back free memory where it runs out; later
            # versions have ended it (pytorch#180395).
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(self.device.index, self._pool)  # noqa: SLF001 - not public
            raise


GRAPHS: dict[str, Callable[[torch.device], DeviceGraphs | None]] = {"cuda": CudaGraphs.of}
"""Graphs of each type of device that has them; None where they cannot be recorded."""


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
        try:
            if not self._inputs:
                self._inputs = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in tangents]
            self.fill(tangents)
        except RuntimeError as error:
            self._stop_after(error)
            return apply(tangents), None
        # Of the memory that the graph reads: vectors may be aligned otherwise, and libraries choose other kernels then.
        # These would differ by roundings of TF32 and bfloat16.
        expected, busy = self.graphs.timed(lambda: apply(self._inputs))
        self._pays = self._pays or busy >= BUSY
        if not self._pays:
            self._stop(f"starting kernels takes {busy:.0%} of a product only")
            return expected, None
        try:
            if not self.outputs:
                self.outputs = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in expected]
            replay = self.graphs.record(lambda: torch._foreach_copy_(self.outputs, list(apply(self._inputs))))
            replay()
        except RuntimeError as error:
            self._stop_after(error)
            return expected, None
        apart = length([one - other for one, other in zip(self.outputs, expected, strict=True)])
        if not apart <= ROUNDINGS * torch.finfo(expected[0].dtype).eps * length(expected):
            self._stop(f"its result differs by {apart:.1e} from a product of the norm {length(expected):.1e}")
            return expected, None
        return expected, replay

    def _stop_after(self, error: RuntimeError) -> None:
        # Memory that ran out is among them: products need less without graphs.
        self._stop(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")

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
    graphs = GRAPHS[device.type](device) if device.type in GRAPHS else None
    return None if graphs is None else Recorder(graphs)


def recorded(apply: Any, recorder: Recorder) -> Any:
    """Return the products of a batch to be recorded, if they are traced and do not wait; others unchanged."""
    return Recorded(apply, recorder) if isinstance(apply, TracedProduct) and not _waits(apply) else apply


def _waits(apply: TracedProduct) -> bool:
    """Whether a product waits for the device, as far as its graph says."""
    (tangent,) = apply.trace.tangents
    for node in tangent.__self__.graph.nodes:  # type: ignore[attr-defined]
        if node.target in INDEXING:
            parts = [part.meta["val"] for part in (node.args[0], *node.args[1]) if isinstance(part, fx.Node)]
            if any(part.device != parts[0].device for part in parts):
                return True
    return False


def without_graphs(apply: Any) -> Any:
    """Return the products of a batch as they were before `recorded`."""
    return apply.apply if isinstance(apply, Recorded) else apply
