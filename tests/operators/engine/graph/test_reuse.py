"""Memory is used again where nothing needs it any more, and products do not change by a bit."""

import operator
import warnings

import pytest
import torch
from cases import CASES, MATRICES
from sweeps import swept
from torch.fx.experimental.proxy_tensor import make_fx

import hesspec
from hesspec.operators.engine.graph import tracing
from hesspec.operators.engine.graph.reuse import reuse_memory

aten = torch.ops.aten


def rewritten(function, *inputs):
    """The function's graph after the rewriting, as a function; and the operations of it."""
    traced = make_fx(function, tracing_mode="fake")(*inputs)
    traced.graph.eliminate_dead_code()
    reuse_memory(traced.graph)
    traced.recompile()
    return traced, [node.target for node in traced.graph.nodes if node.op == "call_function"]


def check(function, *inputs):
    """The rewritten function gives the same and leaves its inputs as they were; its operations."""
    before = [tensor.clone() for tensor in inputs]
    changed, targets = rewritten(function, *inputs)
    expected, found = function(*inputs), changed(*inputs)
    pairs = zip(expected, found, strict=True) if isinstance(expected, tuple) else [(expected, found)]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
    return targets


def square():
    torch.manual_seed(0)
    return torch.randn(3, 3), torch.randn(3, 3)


def test_a_chain_needs_memory_once():
    targets = check(lambda x, y: -((x * y + x) * y - x) / y, *square())
    in_place = [aten.add_.Tensor, aten.mul_.Tensor, aten.sub_.Tensor, aten.neg_.default, aten.div_.Tensor]

    assert targets == [aten.mul.Tensor, *in_place]


def test_the_second_operand_serves_where_the_order_does_not_matter():
    assert check(lambda x, y: x + x * y, *square()) == [aten.mul.Tensor, aten.add_.Tensor]
    assert check(lambda x, y: torch.add(x, x * y, alpha=2), *square()) == [aten.mul.Tensor, aten.add.Tensor]
    assert check(lambda x, y: x - x * y, *square()) == [aten.mul.Tensor, aten.sub.Tensor]


def test_sums_with_products_of_matrices():
    a, b = (part.expand(2, 3, 3).contiguous() for part in square())
    targets = check(lambda a, b: torch.baddbmm(a * 2, a, b), a, b)
    assert targets[-1] == aten.baddbmm_.default
    # Products read their factors again and again: none of them can take the sum.

    def first(a, b):
        q = a * 2
        return torch.baddbmm(q, q, b)

    def second(a, b):
        q = a * 2
        return torch.baddbmm(q, b, q)

    for function in (first, second):
        assert check(function, a, b)[-1] == aten.baddbmm.default


def test_what_is_used_later_or_returned_is_kept():
    def later(x, y):
        product = x * y
        scaled = product * x
        return scaled + product

    def returned(x, y):
        product = x * y
        return product, product * x

    assert check(later, *square()) == [aten.mul.Tensor, aten.mul.Tensor, aten.add_.Tensor]
    assert check(returned, *square()) == [aten.mul.Tensor, aten.mul.Tensor]


def test_the_last_use_of_several_takes_the_memory():
    def several(x, y):
        product = x * y
        return (product @ x) * 2.0 + product * y

    assert check(several, *square())[-2:] == [aten.mul_.Tensor, aten.add_.Tensor]


def test_views_are_not_written_under():
    def viewed(x, y):
        product = x * y
        row = product[0]
        return product * x, row + 1.0

    assert check(viewed, *square())[:1] == [aten.mul.Tensor]
    assert aten.mul_.Tensor not in check(viewed, *square())


def test_shapes_and_dtypes_have_to_be_the_same():
    x, y = square()
    assert check(lambda x, y: (x[0] * y[0]) * x, x, y)[-1] == aten.mul.Tensor
    assert check(lambda x, y, z: (x * y) * z, x, y, x.double())[-1] == aten.mul.Tensor
    assert check(lambda x, y: (x * y).sum(0) * 2.0, x, y)[-1] == aten.mul_.Tensor


def test_masks_of_relu_are_applied_in_place():
    def masked(x, y):
        return aten.threshold_backward(x * y, y, 0.0)

    assert check(masked, *square())[-1] == aten.threshold_backward.grad_input


def test_parts_of_a_result_of_several_are_memory_of_their_own():
    def topmost(x, y):
        values, _ = torch.topk(x, 2)
        return values * y[:, :2]

    targets = check(topmost, *square())
    assert operator.getitem in targets
    assert targets[-1] == aten.mul_.Tensor


# Graphs that differ: other losses and selections of parameters change a few operations of that of "mlp".
GRAPHS = (
    *("mlp", "cnn", "residual cnn", "transformer encoder", "gpt2, own loss", "class weights and smoothing"),
    *("mse", "bce", "own loss", "tied weights"),
)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("matrix", swept(MATRICES, "Hessian", "GaussNewton"))
@pytest.mark.parametrize("name", swept(GRAPHS, "cnn", "class weights and smoothing"))
def test_products_are_the_same_to_the_bit(name, matrix, monkeypatch):
    case = CASES[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reused, plain = (getattr(hesspec, matrix)(case.model, case.loss, case.data, **case.options) for _ in range(2))
        v = torch.randn(reused.shape[0], dtype=reused.dtype, generator=torch.Generator().manual_seed(0))
        first, again = reused @ v, reused @ v
        monkeypatch.setattr(tracing, "reuse_memory", lambda graph: graph)
        other = plain @ v

    assert torch.equal(first, other)
    # Kept residuals are as they were.
    assert torch.equal(first, again)
