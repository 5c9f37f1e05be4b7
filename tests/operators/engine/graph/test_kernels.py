"""Operations that take the place of slower ones give the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from hesspec.operators.engine.graph import kernels
from hesspec.operators.engine.graph.kernels import aten, prefer_fast_convolutions, prefer_fast_products

CAPABILITIES = ["AVX2", "AVX512"]
SHAPES = [
    # height and width, kernel, stride, padding, dilation
    ((2, 2), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((4, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((8, 8), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((7, 8), (3, 2), (2, 3), (1, 0), (1, 1)),
    ((8, 8), (3, 3), (2, 2), (2, 2), (2, 2)),
    ((5, 4), (5, 4), (1, 1), (0, 0), (1, 1)),
]


@pytest.fixture(params=CAPABILITIES)
def capability(request, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    return request.param


def gradient_of_weight(stride, padding, dilation):
    def function(inputs, weight, gradient):
        mask = [False, True, False]
        return aten.convolution_backward.default(
            gradient, inputs, weight, None, stride, padding, dilation, False, [0, 0], 1, mask
        )[1]

    return function


def operations(function, *inputs):
    """The function's graph with faster convolutions, as a function; and its operations."""
    traced = make_fx(function, tracing_mode="fake")(*inputs)
    traced.graph.eliminate_dead_code()
    prefer_fast_convolutions(traced.graph, set(traced.graph.nodes))
    traced.graph.lint()
    traced.recompile()
    return traced, [node.target for node in traced.graph.nodes]


def problem(size, kernel, stride, padding, dilation):
    generator = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(shape, generator=generator).double() for shape in ((6, 3, *size), (5, 3, *kernel)))
    outputs = F.conv2d(inputs, weight, None, stride, padding, dilation)
    return inputs, weight, torch.randn(outputs.shape, generator=generator).double()


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), SHAPES)
def test_gradients_on_small_maps(size, kernel, stride, padding, dilation, capability):
    inputs, weight, gradient = problem(size, kernel, stride, padding, dilation)
    function = gradient_of_weight(list(stride), list(padding), list(dilation))
    traced, targets = operations(function, inputs, weight, gradient)
    pixels = gradient.shape[2] * gradient.shape[3]
    replaced = pixels <= (4 if capability == "AVX512" else 16)
    assert (aten.convolution.default in targets) == replaced
    assert (aten.convolution_backward.default in targets) != replaced
    torch.testing.assert_close(traced(inputs, weight, gradient), function(inputs, weight, gradient))


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), SHAPES)
@pytest.mark.parametrize("mask", [[True, True, False], [True, True, True], [True, False, True]])
def test_joint_gradients_on_small_maps(size, kernel, stride, padding, dilation, mask, capability):
    inputs, weight, gradient = problem(size, kernel, stride, padding, dilation)

    def function(inputs, weight, gradient):
        all_three = aten.convolution_backward.default(
            gradient, inputs, weight, [5], list(stride), list(padding), list(dilation), False, [0, 0], 1, mask
        )
        return [part for part, wanted in zip(all_three, mask, strict=True) if wanted]

    traced, _ = operations(function, inputs, weight, gradient)
    masks = [node.args[10] for node in traced.graph.nodes if node.target is aten.convolution_backward.default]
    small = gradient.shape[2] * gradient.shape[3] <= (4 if capability == "AVX512" else 64)
    assert all(sum(found) == 1 for found in masks) if small else masks == [mask]
    for found, expected in zip(traced(inputs, weight, gradient), function(inputs, weight, gradient), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), SHAPES)
def test_convolutions_and_gradients_of_inputs(size, kernel, stride, padding, dilation, capability):
    inputs, weight, gradient = problem(size, kernel, stride, padding, dilation)

    def function(inputs, weight, gradient):
        options = None, list(stride), list(padding), list(dilation), False, [0, 0], 1
        back = aten.convolution_backward.default(gradient, inputs, weight, *options, [True, False, False])
        return aten.convolution.default(inputs, weight, *options), back[0]

    traced, targets = operations(function, inputs, weight, gradient)
    assert (aten.clone.default in targets) == (capability == "AVX2")
    for found, expected in zip(traced(inputs, weight, gradient), function(inputs, weight, gradient), strict=True):
        torch.testing.assert_close(found, expected)
        assert found.stride() == expected.stride()


def test_large_maps_stay_as_they_are(capability):
    inputs, weight, gradient = torch.zeros(2, 3, 12, 12), torch.zeros(5, 3, 3, 3), torch.zeros(2, 5, 12, 12)
    _, targets = operations(gradient_of_weight([1, 1], [1, 1], [1, 1]), inputs, weight, gradient)
    assert aten.convolution_backward.default in targets


# Matrix products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True)])
def test_products_of_the_other_library(transposed, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "_mkl_is_slow", lambda: True)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((7, 5), (5, 9)))
    a, b = (x.T.contiguous().T if flip else x for x, flip in zip((a, b), transposed, strict=True))
    traced = make_fx(torch.mm, tracing_mode="fake")(a, b)
    prefer_fast_products(traced.graph)
    traced.recompile()
    replaced = aten.mm.default not in [node.target for node in traced.graph.nodes]
    assert replaced == (dtype == torch.float32)
    # Sums of five products, each of whose roundings is half of the unit.
    torch.testing.assert_close(
        traced(a, b), a @ b, rtol=0, atol=5 * torch.finfo(dtype).eps * float((a.abs() @ b.abs()).max())
    )
    assert traced(a, b).stride() == (a @ b).stride()


@pytest.mark.parametrize(
    ("cpuinfo", "capability", "slow"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True),
        ("vendor_id : AuthenticAMD", "AVX2", False),
        ("vendor_id : GenuineIntel\nmodel name : Intel(R) Xeon(R)", "AVX512", False),
    ],
)
def test_the_other_library_is_for_processors_that_mkl_is_slow_on(cpuinfo, capability, slow, monkeypatch):
    monkeypatch.setattr(kernels, "_processor", lambda: cpuinfo)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert kernels._mkl_is_slow.__wrapped__() == slow


@pytest.mark.parametrize(
    ("cpuinfo", "slow", "wide", "speed"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2", True, True, 2.9),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 27\nmodel\t\t: 2", True, True, 2.9),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 97", True, False, 1.6),
        # Without AVX-512 all generations are alike.
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2", False, True, 1.6),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143", False, False, 1.6),
        ("AMD64 Family 26 Model 68 Stepping 0, AuthenticAMD", True, False, 1.6),
        ("", True, False, 1.6),
    ],
)
def test_direct_convolutions_are_faster_where_vectors_are_wide(cpuinfo, slow, wide, speed, monkeypatch):
    monkeypatch.setattr(kernels, "_processor", lambda: cpuinfo)
    monkeypatch.setattr(kernels, "_mkl_is_slow", lambda: slow)
    assert kernels._wide() == wide
    assert kernels.direct_speed.__wrapped__() == speed
