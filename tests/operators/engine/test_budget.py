"""Which operations are random."""

import weakref

import pytest
import torch

from hesspec.operators.engine.budget import RandomOperationError, draws, saved_bytes
from hesspec.operators.engine.trace_cost import count_work

aten = torch.ops.aten
X = torch.zeros(1, 1, 2, 2)


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "random"),
    [
        (aten.add.Tensor, (X, X), {}, False),
        (aten.bernoulli.default, (X,), {}, True),
        (aten.bernoulli.p, (X, 0.5), {}, True),
        (aten.rand.default, ([2],), {}, True),
        (aten.native_dropout.default, (X, 0.5, True), {}, True),
        (aten.native_dropout.default, (X, 0.5, False), {}, False),
        (aten.native_dropout.default, (X, 0.0, True), {}, False),
        (aten.rrelu_with_noise_functional.default, (X, X, 0.1, 0.3, True), {}, True),
        (aten.rrelu_with_noise_functional.default, (X, X, 0.1, 0.3), {}, False),
        (aten._scaled_dot_product_flash_attention.default, (X, X, X), {}, False),
        (aten._scaled_dot_product_flash_attention.default, (X, X, X), {"dropout_p": 0.1}, True),
        (aten._scaled_dot_product_efficient_attention.default, (X, X, X, None, False, 0.2), {}, True),
    ],
)
def test_operations_that_draw_with_these_arguments(target, args, kwargs, random):
    assert draws(target, args, kwargs) == random


def test_a_forward_pass_that_draws_has_no_work_to_count():
    with pytest.raises(RandomOperationError, match="bernoulli"):
        count_work(lambda: torch.bernoulli(torch.full((3,), 0.5)))


def test_graphs_whose_bytes_were_counted_are_freed():
    """The derivative of tanh is computed from its result, which a graph must not hold itself."""
    x, results = torch.ones(4, requires_grad=True), []

    def build():
        y = torch.tanh(x)
        results.append(weakref.ref(y))
        return torch.autograd.grad(y.sum(), x, create_graph=True)

    assert saved_bytes(build, [x]) >= 4 * x.itemsize
    assert results[0]() is None
