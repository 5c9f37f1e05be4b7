"""A record is the graph that make_fx has: the same operations, in the same order, on values of the same form."""

import gc
import operator

import pytest
import torch
from cases import Encoder, cnn, mlp, seeded
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, functionalize, grad, jvp
from torch.fx.experimental.proxy_tensor import make_fx

from hesspec.operators.engine.graph import fakes as fake_results
from hesspec.operators.engine.graph.fakes import FakeResults
from hesspec.operators.engine.graph.quiet import quiet_tracer
from hesspec.operators.engine.graph.recording import QUICK, UnsoundTraceError, aten, is_query, record
from hesspec.operators.engine.graph.tracing import Group, trace_linear
from hesspec.operators.model.ambient import differentiable_kernels


def run(graph, *inputs):
    return fx.GraphModule(graph.owning_module, graph)(*inputs)


# The whole graph


def hessian_product(model, x):
    """Forward over reverse of a model, functionalised, and the arguments of its trace."""
    names, values = zip(*model.named_parameters(), strict=True)
    fixed, buffers = zip(*model.named_buffers(), strict=True) if list(model.buffers()) else ((), ())
    p, q = len(names), len(buffers)

    def product(x, *given):
        held = dict(zip(fixed, given[:q], strict=True))

        def loss(*theta):
            return functional_call(model, {**held, **dict(zip(names, theta, strict=True))}, (x,)).square().mean()

        with differentiable_kernels():
            return jvp(grad(loss, tuple(range(p))), given[q : q + p], given[q + p :])[1]

    inputs = [x, *buffers, *(value.detach() for value in values), *(torch.empty_like(value) for value in values)]
    return functionalize(product, remove="mutations"), inputs


def form(value):
    if isinstance(value, list | tuple):
        return [form(part) for part in value]
    return value if value is None else (value.shape, value.stride(), value.dtype, value.device, value.storage_offset())


def described(graph):
    """Operations of a graph, with the numbers of the nodes that they read, and the forms of their results."""
    graph.eliminate_dead_code()
    # Two names of one operation, below autograd.
    for node in graph.nodes:
        node.target = aten.alias.default if node.target is aten.detach.default else node.target
    numbers = {node: number for number, node in enumerate(graph.nodes)}
    return [
        (node.op, node.target if node.op == "call_function" else "", fx.map_arg(node.args, numbers.get), node.kwargs)
        + ((form(node.meta["val"]),) if node.op == "call_function" else ())
        for node in graph.nodes
        if not (node.op == "call_function" and node.target is not operator.getitem and is_query(node.target))
    ]


MODELS = [
    pytest.param(cnn, (3, 1, 4, 4), id="convolutions, batch norm"),
    pytest.param(mlp, (4, 5), id="layers"),
    pytest.param(Encoder, (2, 3, 4), id="encoder"),
]


@pytest.mark.parametrize(("build", "shape"), MODELS)
def test_it_is_the_graph_of_make_fx(build, shape):
    model = seeded(build).double().eval()
    function, inputs = hessian_product(model, torch.randn(shape, dtype=torch.float64))
    with quiet_tracer():
        found = record(function, inputs)
        expected = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs).graph
    for one, other in zip(described(found), described(expected), strict=True):
        assert one == other
    assert len(described(found)) > 20


# Constants


def test_tensors_that_are_no_arguments_are_attributes():
    weight, x = torch.randn(3, 3), torch.randn(2, 3)
    graph = record(lambda x: x @ weight + torch.tensor(2.0) * (x @ weight), [x])
    assert [node.op for node in graph.nodes].count("get_attr") == 2
    weight.mul_(2)
    torch.testing.assert_close(run(graph, x + 1), 3 * ((x + 1) @ weight))


def test_values_of_constants_are_known_and_those_of_arguments_are_not():
    x = torch.ones(3)
    graph = record(lambda x: x * (torch.tensor(2.0) + 3).item(), [x])
    assert torch.equal(run(graph, x), 5 * x)
    with quiet_tracer(), pytest.raises(RuntimeError):
        record(lambda x: x * x.sum().item(), [x])
    with quiet_tracer(), pytest.raises(RuntimeError):
        record(lambda x: x[x > 0], [x])


def test_a_fake_tensor_from_elsewhere_is_refused():
    stored = []
    record(lambda x: stored.append(x) or x, [torch.ones(3)])
    with pytest.raises((UnsoundTraceError, AssertionError)):
        record(lambda x: x + stored[0], [torch.ones(3)])
    with FakeTensorMode() as _:
        other = torch.ones(3)
    with pytest.raises((UnsoundTraceError, AssertionError)):
        record(lambda x: x + other, [torch.ones(3)])


# What runs within


def test_values_hold_no_graph_of_autograd():
    def force(x):
        leaf = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(leaf.sin().sum(), leaf, create_graph=True)
        return slope.square().sum()

    with torch.enable_grad():
        graph = record(force, [torch.ones(3)])
    assert not any(node.meta["val"].requires_grad for node in graph.nodes if node.op != "output")
    torch.testing.assert_close(run(graph, torch.full((3,), 0.5)), 3 * torch.tensor(0.5).cos() ** 2)


def test_casts_are_recorded_in_each_use_and_the_cache_comes_back():
    linear, x = nn.Linear(3, 3), torch.randn(2, 3)

    def twice(x):
        with torch.autocast("cpu", torch.bfloat16):
            return linear(linear(x))

    assert torch.is_autocast_cache_enabled()
    graph = record(twice, [x])
    assert torch.is_autocast_cache_enabled()
    assert torch.equal(run(graph, x), twice(x))


def test_what_is_compiled_runs_as_it_is_written():
    def refuse(*_):
        raise AssertionError("compiled")

    compiled = torch.compile(lambda x: x.sin() * 2, backend=refuse)
    graph = record(lambda x: compiled(x) + 1, [torch.ones(3)])
    assert torch.equal(run(graph, torch.zeros(3)), torch.ones(3))


def test_garbage_is_collected_again_after_a_failure():
    def fails(*_):
        assert not gc.isenabled()
        raise ValueError("no trace")

    x = torch.ones(3)
    for enabled in (True, False):
        try:
            (gc.enable if enabled else gc.disable)()
            with pytest.raises(ValueError, match="no trace"):
                trace_linear(fails, [x], [x], [Group(1, 1)], 1)
            assert gc.isenabled() is enabled
        finally:
            gc.enable()


# Results by form


@pytest.fixture
def known(monkeypatch):
    """Forms of results that are known in this process: none at first."""
    forms = {}
    monkeypatch.setattr(fake_results, "_KNOWN", forms)
    return forms


@pytest.fixture
def fakes():
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def example(mode, *shape, dtype=torch.float32):
    return mode.from_tensor(torch.empty(shape, dtype=dtype))


@pytest.mark.parametrize("query", QUICK)
def test_quick_answers_are_those_of_the_operations(query, fakes):
    a = example(fakes, 2, 3)
    others = [a, a[:1], a.t(), example(fakes, 3, 2), example(fakes, 2, 3, dtype=torch.float64), a.view(6), a[0]]
    for other in others:
        given = (a, other) if len(query._schema.arguments) == 2 else (other,)
        assert QUICK[query](*given) == query(*given)


OPERATIONS = [
    (aten.add.Tensor, lambda a: (a, 2)),
    (aten.mm.default, lambda a: (a, a.t())),
    (aten.native_layer_norm.default, lambda a: (a, [4], None, None, 1e-5)),
    (
        aten.convolution_backward.default,
        lambda a: (
            a.view(1, 3, 2, 2),
            a.view(1, 3, 2, 2),
            a.new_empty(3, 3, 1, 1),
            [0],
            [1, 1],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            1,
            [True, True, False],
        ),
    ),
    (aten.scalar_tensor.default, lambda _: (1.0,)),
    (aten.slice.Tensor, lambda a: (a, 1, 1, 3)),
    (aten.view.default, lambda a: (a[1:], [2, 2, 2])),
    (aten.t.default, lambda a: (a,)),
    (aten.alias.default, lambda a: (a.t(),)),
]


@pytest.mark.parametrize(("func", "arguments"), OPERATIONS, ids=[str(func) for func, _ in OPERATIONS])
def test_results_of_known_form_are_those_of_pytorch(func, arguments, fakes, known):
    results, given = FakeResults(fakes), arguments(example(fakes, 3, 4))
    expected = func(*given)
    for number in (0, 1, 1):
        assert len(known) == number
        found = results.of(func, given, {})
        pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
        for one, other in pairs:
            assert form(one) == form(other)
            if one is not None:
                assert one is not other
                shares = other.untyped_storage()._cdata == given[0].untyped_storage()._cdata if func.is_view else False
                assert (func.is_view and one.untyped_storage()._cdata == given[0].untyped_storage()._cdata) == shares


def test_forms_and_types_of_arguments_are_told_apart(fakes, known):
    results, a = FakeResults(fakes), example(fakes, 3, 4)
    calls = [(a, 1), (a, 1.0), (a, True), (a.double(), 1), (a.t(), 1), (a[:2], 1)]
    for call in calls:
        assert form(results.of(aten.mul.Tensor, call, {})) == form(aten.mul.Tensor(*call))
    assert len(known) == len(calls)
    whole = example(fakes, 3, dtype=torch.int64)
    assert [results.of(aten.mul.Tensor, (whole, factor), {}).dtype for factor in (1, 1.0, True)] == [
        torch.int64,
        torch.float32,
        torch.int64,
    ]
    torch.set_default_dtype(torch.float64)
    try:
        assert results.of(aten.mul.Tensor, (whole, 1.0), {}).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_does_more_than_compute_a_result_always_runs(fakes, known):
    results, a = FakeResults(fakes), example(fakes, 3, 4)
    assert results.of(aten.add_.Tensor, (a, 1), {}) is a
    constant, real = torch.tensor(2.0), torch.ones(3)
    assert constant.constant is not None
    for func, given in [
        (aten.add.Tensor, (constant, 1)),
        (aten.rand_like.default, (a,)),
        (aten._unsafe_view.default, (a, [12])),
        (aten.split.Tensor, (a, 2)),
        (aten.mul.Tensor, (torch._efficientzerotensor(3, 4), 2.0)),
        (aten._efficientzerotensor.default, ([3, 4],)),
    ]:
        assert results.of(func, given, {}) is not results.of(func, given, {})
    assert real.shape == (3,)
    assert not known


def test_results_are_known_in_later_records_unless_settings_of_kernels_have_changed(known):
    def results():
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            a = example(mode, 3, 3)
            found = FakeResults(mode).of(aten.mm.default, (a, a), {})
            assert found.fake_mode is mode
            return form(found)

    first = results()
    assert len(known) == 1
    assert results() == first
    assert len(known) == 1
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(not before)
    try:
        assert results() == first
    finally:
        torch.use_deterministic_algorithms(before)
    assert len(known) == 2


def test_the_number_of_known_results_is_limited(fakes, known, monkeypatch):
    monkeypatch.setattr(fake_results, "MOST", 3)
    results = FakeResults(fakes)
    for size in range(1, 9):
        results.of(aten.neg.default, (example(fakes, size),), {})
        assert 1 <= len(known) <= 3


def test_zeros_without_memory_are_told_apart_from_zeros(fakes, known):
    results, zeros = FakeResults(fakes), torch._efficientzerotensor(3, 4)
    a = example(fakes, 3, 4)
    for number, (given, kwargs) in enumerate([(zeros, {"dtype": torch.float64}), (a, {"dtype": torch.float64})], 1):
        for _ in range(2):
            found = results.of(aten._to_copy.default, (given,), kwargs)
            assert form(found) == form(aten._to_copy.default(given, **kwargs))
            assert not found._is_zerotensor()
        assert len(known) == number
    assert results.of(aten.t.default, (zeros,), {})._is_zerotensor()
    assert len(known) == 2
