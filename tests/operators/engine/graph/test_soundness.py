"""Traces compute what the function computes: nothing mutates, nothing depends on strides, no batch is built in."""

import pytest
import torch
import torchvision
from cases import MATRICES, Case, batches, dense, labels, seeded
from sweeps import swept
from torch import fx, nn

import hesspec
from hesspec.operators.engine.graph.recording import record
from hesspec.operators.engine.graph.soundness import (
    UnsoundTraceError,
    aten,
    free_of_mutations,
    free_of_strides,
)

CE = nn.CrossEntropyLoss()


def trace(function, *inputs):
    return record(function, inputs)


def run(graph, *inputs):
    return fx.GraphModule(graph.owning_module, graph)(*inputs)


LAYERS = ["LSTMCell", "RNN", "GRU", "LSTM"]


def targets_of(graph):
    return [node.target for node in graph.nodes if node.op == "call_function"]


# Mutations


class Recurrent(nn.Module):
    """Sequences (N, T, 3) to 2 outputs by any recurrent module or cell."""

    def __init__(self, kind):
        super().__init__()
        self.body, self.head = getattr(nn, kind)(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        steps = x.transpose(0, 1)
        if not isinstance(self.body, nn.RNNCellBase):
            return self.head(self.body(steps)[0][-1])
        state = None
        for step in steps:
            state = self.body(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class InPlace(nn.Module):
    """Writes into intermediate results in all the ways that there are."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x):
        y = self.a(x)
        y[:, 1] = torch.tanh(self.b(x))[:, 0]
        y.add_(self.b(x)).mul_(torch.sigmoid(y))
        rows = y.view(-1, 2, 2)
        rows[:, 0] += rows[:, 1].clone()
        return torch.empty_like(y).copy_(y + torch.sin(y))


# Slower ones, and those whose Hessian is all that is right by luck, once in a while.
KINDS = ["RNNCell", "GRUCell", "in place", *(pytest.param(kind, marks=pytest.mark.long) for kind in LAYERS)]


@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian"))
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_what_writes_in_place_are_exact(kind, matrix, traced):
    case = (
        Case(seeded(InPlace), CE, batches((3,), labels(4), (3,)))
        if kind == "in place"
        else Case(seeded(lambda: Recurrent(kind)), CE, batches((2, 3), labels(2), (3,)))
    ).to(torch.float64)
    operator = getattr(hesspec, matrix)(case.model, case.loss, case.data)
    found = operator @ torch.eye(operator.shape[0], dtype=torch.float64)
    expected = dense(case, operator.names).matrices
    assert operator.attributes["mode"] == "traced"
    assert (found - expected[matrix]).abs().max() < 1e-13 * max(truth.abs().max() for truth in expected.values())


def test_additions_in_place_of_composite_operations_are_functionalised():
    cell = nn.RNNCell(2, 3)
    x, h = torch.randn(4, 2), torch.randn(4, 3)
    names, values = zip(*cell.named_parameters(), strict=True)
    inputs = [x, h, *(value.detach() for value in values)]

    def function(x, h, *weights):
        return torch.func.functional_call(cell, dict(zip(names, weights, strict=True)), (x, h))

    first = trace(torch.func.functionalize(function, remove="mutations"), *inputs)
    # The reason why functionalising once is not enough; where PyTorch mends it, the second time goes.
    assert aten.add_.Tensor in targets_of(first)
    pure = free_of_mutations(first, inputs)
    assert aten.add_.Tensor not in targets_of(pure)
    assert torch.equal(run(pure, *inputs), function(*inputs))


def test_a_pure_graph_stays_as_it_is():
    x = torch.randn(3)
    first = trace(torch.sin, x)
    assert free_of_mutations(first, [x]) is first


def writes_input(x):
    return x.mul_(2) + 1


def writes_constant(x):
    return state.add_(x)


def writes_statistics(x):
    return aten.native_batch_norm.default(x, None, None, x[0].clone(), x[0].clone(), True, 0.1, 1e-5)[0]


def higher_order(x):
    return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


state = torch.zeros(3, 3)


@pytest.mark.parametrize("function", [writes_input, writes_statistics, higher_order])
def test_what_writes_into_its_inputs_is_refused(function):
    x = torch.randn(3, 3)
    with pytest.raises(UnsoundTraceError, match=r"writes into one of its arguments"):
        free_of_mutations(trace(function, x), [x])


def test_what_writes_into_a_constant_is_refused():
    x, traced = torch.randn(3, 3), trace(writes_constant, torch.randn(3, 3))
    with pytest.raises(RuntimeError, match="mutating a non-functional tensor"):
        free_of_mutations(traced, [x])
    assert torch.equal(state, torch.zeros(3, 3))


class Counting(nn.Module):
    """Its forward pass changes a buffer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen.add_(len(x))
        return torch.tanh(self.linear(x))


def test_a_trace_of_a_model_that_writes_into_its_buffers_changes_none(traced):
    case = Case(seeded(Counting), CE, batches((3,), labels(4), (2, 2))).to(torch.float64)
    operator = hesspec.Hessian(case.model, case.loss, case.data)
    found = operator @ torch.eye(operator.shape[0], dtype=torch.float64)
    same = Case(nn.Sequential(case.model.linear, nn.Tanh()), CE, case.data)
    torch.testing.assert_close(found, dense(same, ("0.weight", "0.bias")).matrices["Hessian"])
    assert case.model.seen == 0
    torch.testing.assert_close(operator @ torch.eye(operator.shape[0], dtype=torch.float64), found, rtol=0, atol=0)


# Strides


class Permuted(nn.Module):
    """Convolutions whose results are viewed with their channels last, as ConvNeXt does."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.first(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = torch.tanh(self.second(x)).permute(0, 2, 3, 1)
        return self.head(x.contiguous().view(len(x), -1, 4).mean(1))


def convnext():
    block = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([block(4, 8, 1), block(8, None, 1)], num_classes=3)


# The Hessian has all operations of the others; AVX-512 changes what the convolutions of any of them are given.
CONVOLUTIONS = [(Permuted, "AVX2", matrix) for matrix in MATRICES]
CONVOLUTIONS += [(convnext, "AVX2", "Hessian"), (convnext, "AVX2", "GaussNewton"), (convnext, "AVX512", "Hessian")]


@pytest.mark.parametrize(("model", "capability", "matrix"), swept(CONVOLUTIONS, CONVOLUTIONS[0]))
def test_convolutions_channels_last(model, matrix, capability, traced, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    shape = (2, 4, 4) if model is Permuted else (3, 32, 32)
    case = Case(seeded(model), CE, batches(shape, labels(3), (2,))).to(torch.float64)
    operator = getattr(hesspec, matrix)(case.model, case.loss, case.data)
    v = torch.randn(operator.shape[0], dtype=torch.float64)
    found = operator @ v
    assert operator.attributes["mode"] == "traced"
    monkeypatch.setattr("hesspec.operators.engine.passes.trace_pays", lambda *_, **__: (False, "forced"))
    expected = getattr(hesspec, matrix)(case.model, case.loss, case.data) @ v
    assert (found - expected).norm() < 1e-13 * expected.norm()


def test_batches_in_another_memory_format_share_a_trace(traced):
    x, y = torch.randn(6, 2, 4, 4, dtype=torch.float64), torch.randint(3, (6,))
    model, graphs = seeded(Permuted).double(), hesspec.GraphCache()
    transposed = x[3:].transpose(2, 3).contiguous().transpose(2, 3)
    products = []
    for second in (x[3:], x[3:].contiguous(memory_format=torch.channels_last), transposed):
        operator = hesspec.GaussNewton(model, CE, [(x[:3], y[:3]), (second, y[3:])], graphs=graphs)
        products.append(operator @ torch.linspace(-1, 1, operator.shape[0], dtype=torch.float64))
        assert operator.attributes["mode"] == "traced"
    for product in products[1:]:
        torch.testing.assert_close(product, products[0], rtol=0, atol=1e-13 * float(products[0].abs().max()))


def test_views_become_what_is_valid_for_all_strides():
    x = torch.randn(3, 4)
    traced = trace(lambda x: x.view(2, 6).sin().view(12), x)
    free_of_strides(traced)
    other = x.T.contiguous().T
    assert not other.is_contiguous()
    assert torch.equal(run(traced, other), x.sin().view(12))


def test_memory_addressed_by_strides_is_that_of_the_record():
    x = torch.randn(4, 6)
    traced = trace(lambda x: torch.as_strided(x, (2, 3), (6, 2)) * 2, x)
    free_of_strides(traced)
    assert torch.equal(run(traced, x.T.contiguous().T), 2 * x[:2, ::2])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.as_strided(x[1:], (2, 2), (3, 1), 0) * 2,
        lambda x: torch.as_strided(x.T, (2, 2), (3, 1)) * 2,
        lambda x: torch.as_strided(x[0], (2, 2), (3, 1)) * 2,
    ],
)
def test_memory_past_a_tensor_is_refused(function):
    traced = trace(function, torch.randn(3, 3))
    with pytest.raises(UnsoundTraceError, match="reads memory beyond its argument"):
        free_of_strides(traced)


class Spectrogram(nn.Module):
    """Frames that overlap, which PyTorch takes by strides."""

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Linear(16, 16), nn.Linear(5 * 9, 3)
        self.register_buffer("window", torch.hann_window(8))

    def forward(self, x):
        waves = torch.stft(self.before(x), 8, 2, window=self.window, return_complex=True)
        return self.after((waves.real.square() + waves.imag.square()).flatten(1))


@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian"))
def test_overlapping_frames(matrix, traced):
    case = Case(seeded(Spectrogram), CE, batches((16,), labels(3), (2,))).to(torch.float64)
    operator = getattr(hesspec, matrix)(case.model, case.loss, case.data)
    v = torch.randn(operator.shape[0], dtype=torch.float64)
    found, expected = operator @ v, dense(case, operator.names).matrices[matrix] @ v
    assert operator.attributes["mode"] == "traced"
    assert (found - expected).norm() < 1e-13 * expected.norm()
