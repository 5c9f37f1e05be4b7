"""Operations that take the place of slower ones give the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from hesspec.operators.kernels import aten, prefer_fast_kernels

SHAPES = [
    # height and width, kernel, stride, padding, dilation
    ((2, 2), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((4, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((8, 8), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((7, 8), (3, 2), (2, 3), (1, 0), (1, 1)),
    ((8, 8), (3, 3), (2, 2), (2, 2), (2, 2)),
    ((5, 4), (5, 4), (1, 1), (0, 0), (1, 1)),
]


def gradient_of_weight(stride, padding, dilation):
    def function(inputs, weight, gradient):
        mask = [False, True, False]
        return aten.convolution_backward.default(
            gradient, inputs, weight, None, stride, padding, dilation, False, [0, 0], 1, mask
        )[1]

    return function


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), SHAPES)
def test_weight_gradients_on_small_maps(size, kernel, stride, padding, dilation):
    generator = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(shape, generator=generator).double() for shape in ((6, 3, *size), (5, 3, *kernel)))
    outputs = F.conv2d(inputs, weight, None, stride, padding, dilation)
    gradient = torch.randn(outputs.shape, generator=generator).double()
    function = gradient_of_weight(list(stride), list(padding), list(dilation))
    traced = make_fx(function, tracing_mode="fake")(inputs, weight, gradient)
    traced.graph.eliminate_dead_code()
    prefer_fast_kernels(traced.graph, set(traced.graph.nodes))
    traced.recompile()
    targets = [node.target for node in traced.graph.nodes]
    assert aten.convolution.default in targets
    assert aten.convolution_backward.default not in targets
    torch.testing.assert_close(traced(inputs, weight, gradient), function(inputs, weight, gradient))


@pytest.mark.parametrize("size", [(5, 5), (8, 8)])
def test_large_maps_stay_as_they_are(size):
    inputs, weight, gradient = torch.zeros(2, 3, *size), torch.zeros(5, 3, 3, 3), torch.zeros(2, 5, *size)
    traced = make_fx(gradient_of_weight([1, 1], [1, 1], [1, 1]), tracing_mode="fake")(inputs, weight, gradient)
    traced.graph.eliminate_dead_code()
    prefer_fast_kernels(traced.graph, set(traced.graph.nodes))
    assert aten.convolution_backward.default in [node.target for node in traced.graph.nodes]
