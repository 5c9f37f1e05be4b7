"""Products recorded as graphs of the device: the same numbers, or the products of before where graphs do not work."""

import gc
import weakref
from contextlib import nullcontext
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from cases import batches, labels, mlp
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import hesspec
from hesspec.operators.engine import replay
from hesspec.operators.engine.matrix_passes import TracedProduct
from hesspec.operators.engine.replay import CudaGraphs, Recorded

BATCHES = 3
# One trace of each matrix for all tests.
TRACES = hesspec.GraphCache()


class Graphs:
    """Graphs of the CPU: replayed, they compute the same operations on the same memory."""

    busy = 1.0
    made: ClassVar[list["Graphs"]] = []

    def __init__(self, device):
        self.recorded = self.replayed = 0
        self.made.append(self)

    def timed(self, call):
        return call(), self.busy

    def record(self, call):
        self.recorded += 1
        call()

        def replayed():
            self.replayed += 1
            call()

        return replayed


class Forbidden(Graphs):
    """A product that waits for the device."""

    def record(self, call):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")


class Wrong(Graphs):
    """A product that computes elsewhere than on the stream of the recording."""

    def record(self, call):
        call()

        def nothing():
            """The memory holds other values by now."""
            for parts in (cell.cell_contents for cell in call.__closure__):
                for part in getattr(parts, "outputs", ()):
                    part.add_(1)

        return nothing


class Short(Graphs):
    """Kernels that take long."""

    busy = 0.1


@pytest.fixture
def graphs(monkeypatch):
    """Use these graphs on the CPU."""
    monkeypatch.setattr(Graphs, "made", [])
    return lambda kind: monkeypatch.setitem(replay.GRAPHS, "cpu", kind)


def operator(matrix="Hessian", dtype=torch.float64, **options):
    data = [(x.to(dtype), y) for x, y in batches((5,), labels(4), (4,) * BATCHES)]
    return getattr(hesspec, matrix)(
        mlp().to(dtype), nn.CrossEntropyLoss(), data, mode="traced", graphs=TRACES, **options
    )


def vectors(of, columns=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(columns, of.shape[0], generator=generator, dtype=of.dtype)


def applies(of):
    return [kept.apply for kept in of._build()._kept.values()]


@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton", "Residual"])
def test_products_are_the_same_bits(matrix, graphs):
    expected = [operator(matrix) @ v for v in vectors(operator(matrix))]
    graphs(Graphs)
    mine = operator(matrix)
    given = vectors(mine)
    found = [mine @ v for v in given]
    (made,) = Graphs.made
    # In the second product, and compared once with it.
    assert made.recorded == BATCHES
    assert made.replayed == BATCHES * (len(given) - 1)
    assert all(map(torch.equal, found, expected))
    assert torch.equal(mine @ given.T, torch.stack(expected, 1))
    # A vector that has changed in place is another one.
    given[0].mul_(2)
    assert torch.equal(mine @ given[0], operator(matrix) @ given[0])


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Forbidden, "RuntimeError: CUDA error: operation not permitted when stream is capturing"),
        (Wrong, "its result differs by"),
        (Short, "starting kernels takes 10% of a product only"),
    ],
)
def test_products_are_those_of_before_where_graphs_do_not_work(kind, why, graphs, caplog):
    expected = [operator() @ v for v in vectors(operator())]
    graphs(kind)
    mine = operator()
    assert all(map(torch.equal, [mine @ v for v in vectors(mine)], expected))
    (made,) = Graphs.made
    assert made.replayed == 0
    said = [record.message for record in caplog.records if "not recorded" in record.message]
    assert said == [f"products are not recorded as graphs of the device: {why}"] or why in said[0]
    assert len(said) == 1


def test_the_operator_at_full_precision_has_no_graphs_of_lower_precision(graphs, monkeypatch):
    graphs(Graphs)
    monkeypatch.setattr("hesspec.operators.base.check_precision", lambda *_, **__: None)
    mine = operator(dtype=torch.float32, precision="tf32")
    v = vectors(mine)[0]
    for _ in range(3):
        mine @ v
    assert all(isinstance(apply, Recorded) for apply in applies(mine))
    exact = mine.reference
    assert all(isinstance(apply, TracedProduct) for apply in applies(exact))
    (made,) = Graphs.made
    before = made.replayed
    exact @ v
    assert made.replayed == before


def test_graphs_are_dropped_where_memory_runs_out(graphs, monkeypatch):
    graphs(Graphs)
    mine = operator()
    v = vectors(mine)[0]
    expected = [mine @ v for _ in range(3)][-1]
    failures = [torch.OutOfMemoryError("CUDA out of memory")]

    def fail(*_):
        if failures:
            raise failures.pop()

    monkeypatch.setattr(replay.Recorder, "fill", fail)
    assert torch.equal(mine @ v, expected)
    assert not failures
    assert not any(isinstance(apply, Recorded) for apply in applies(mine))


def test_memory_of_graphs_counts(graphs):
    peak = operator(memory=10**9)._build().predicted_peak
    graphs(Graphs)
    assert operator(memory=10**9)._build().predicted_peak > peak
    mine = operator(memory=peak)
    assert mine._build().predicted_peak == peak
    for _ in range(3):
        mine @ vectors(mine)[0]
    assert not any(made.recorded for made in Graphs.made)


def test_graphs_are_freed_with_the_operator(graphs):
    graphs(Graphs)
    mine = operator()
    for v in vectors(mine):
        mine @ v
    outputs = applies(mine)[0]._recorder.outputs[0]
    freed = weakref.ref(outputs)
    Graphs.made.clear()
    del mine, outputs
    gc.collect()
    assert freed() is None


def test_blocks_of_recorded_products(graphs):
    graphs(Graphs)
    mine = operator("GaussNewton")
    for v in vectors(mine):
        mine @ v
    apply, parameters = applies(mine)[0], mine._risk.parameters
    tangents = parameters.split(vectors(mine)[0])
    assert torch.equal(apply.within((0,), tangents[:1])[0], apply.apply.within((0,), tangents[:1])[0])


class Stream:
    """A stream of a device, of which there are as many as PyTorch has."""

    handed_out = 0

    def __init__(self, device):
        self.device, self.cuda_stream = device, Stream.handed_out % replay.STREAMS
        Stream.handed_out += 1


class Cuda:
    """PyTorch's calls for graphs of CUDA, of which those to `capture_end` may fail."""

    def __init__(self):
        self.calls, self.fails, self.collecting = [], False, None

    def name(self, name):
        return lambda *_, **__: self.calls.append(name)

    def graph(self):
        def end():
            self.calls.append("end")
            if self.fails:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

        def begin(pool, capture_error_mode):
            self.collecting = gc.isenabled()
            self.calls.append(("begin", pool, capture_error_mode))

        return SimpleNamespace(capture_begin=begin, capture_end=end, replay=self.name("replay"))


@pytest.fixture
def cuda(monkeypatch):
    """A pretended CUDA."""
    made = Cuda()
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, made.name(name))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", made.graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", made.name("ended for PyTorch"), raising=False)
    monkeypatch.setattr(CudaGraphs, "failed", False)
    monkeypatch.setattr(CudaGraphs, "_all", weakref.WeakSet())
    return made


DEVICE = torch.device("cuda", 0)


def test_graphs_of_cuda_are_recorded_in_one_memory_without_collections(cuda):
    graphs = CudaGraphs.of(DEVICE)
    for _ in range(2):
        graphs.record(cuda.name("call"))()
    one = ["synchronize", ("begin", (0, 7), "thread_local"), "call", "end", "replay"]
    assert cuda.calls == ["empty_cache", *one, *one]
    assert cuda.collecting is False
    assert gc.isenabled()


@pytest.mark.parametrize("sudden", [True, False])
def test_after_a_recording_that_was_cut_off_nothing_is_recorded(cuda, sudden):
    graphs, cuda.fails = CudaGraphs.of(DEVICE), True

    def call():
        if sudden:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted" if sudden else "previous error"):
        graphs.record(call)
    assert cuda.calls[-2:] == ["end", "ended for PyTorch"]
    assert gc.isenabled()
    assert CudaGraphs.of(DEVICE) is None
    assert replay.recorder_for(DEVICE) is None


def test_a_recording_for_which_memory_runs_out_is_ended(cuda):
    graphs = CudaGraphs.of(DEVICE)

    def call():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        graphs.record(call)
    assert cuda.calls[-1] == "end"
    assert CudaGraphs.of(DEVICE) is not None


def test_no_two_operators_record_on_one_stream(cuda):
    alive = [CudaGraphs.of(DEVICE) for _ in range(replay.STREAMS)]
    assert len({graphs.stream.cuda_stream for graphs in alive}) == replay.STREAMS
    assert CudaGraphs.of(DEVICE) is None
    freed = alive.pop(5).stream.cuda_stream
    assert CudaGraphs.of(DEVICE).stream.cuda_stream == freed
    assert CudaGraphs.of(torch.device("cuda", 1)) is not None


@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_products_that_copy_indices_to_the_device_are_not_recorded(place):
    graph = fx.Graph()
    values, indices = graph.placeholder("values"), graph.placeholder("indices")
    with FakeTensorMode():
        values.meta["val"] = torch.empty(5, device="cuda")
        indices.meta["val"] = torch.empty(3, dtype=torch.int64, device=place)
    graph.output((graph.call_function(torch.ops.aten.index.Tensor, (values, [indices])),))
    trace = SimpleNamespace(tangents=(fx.GraphModule({}, graph).forward,))
    found = replay.recorded(TracedProduct(trace, []), None)
    assert isinstance(found, Recorded) == (place == "cuda")
