"""Selection of the fastest kernels for operations of a traced graph, without changing the mathematics."""

from __future__ import annotations

import functools
import operator
import platform
import re
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import fx
from torch.utils.flop_counter import register_flop_formula

__all__ = ["call", "direct_speed", "plain", "prefer_fast_convolutions", "prefer_fast_products", "separate"]

aten: Any = torch.ops.aten


class LargestMaps(NamedTuple):
    """Numbers of pixels of the largest maps on which an alternative form of a convolution is faster."""

    sample_sums: int
    channels_last: int


# Milliseconds of forms of a convolution, 256 samples, two cores, in memory that was used before, copies included. AVX2
# times are from the same processor, with AVX-512 disabled in oneDNN (ONEDNN_MAX_CPU_ISA).
#
#                                          AVX-512 (AMD EPYC, Zen 5)       AVX2
#                                          as it is  channels  sum over   as it is  channels  sum over
#                                                    last      samples              last      samples, channels last
# 512 channels, 2x2 maps, convolution           9.6      15.9                24         16
#                         gradient of input    12.7      17.7                18         17
#                         gradient of weight   18.3                 6.6      45                   15
# 512 channels, 4x4 maps, convolution            37        40                80         59
#                         gradient of input      32        42                72         62
#                         gradient of weight     48                  66      98                   63
# 256 channels, 8x8 maps, convolution            38        37                76         70
#                         gradient of input      38        38                71         72
#                         gradient of weight     43                  91      86                  112
LARGEST_MAPS = {"AVX512": LargestMaps(sample_sums=4, channels_last=0)}
LARGEST_MAPS_ELSEWHERE = LargestMaps(sample_sums=16, channels_last=64)
ZEN_5 = 26
# Output masks of `convolution_backward`: only the gradient of the input, and only that of the weight.
MASKS = ([True, False, False], [False, True, False])


def prefer_fast_convolutions(graph: fx.Graph, nodes: set[fx.Node]) -> None:
    """Use the fastest form for convolutions on small maps on the CPU.

    With g the gradient of the output, that of the weight is sum_n x[n, i] * g[n, o] over all shifts: the convolution of
    x with g, in which samples take the role of channels, and stride and dilation are swapped. Each of the three may be
    faster in channels-last format.

    Parameters
    ----------
    graph : torch.fx.Graph
        Graph traced with fake tensors (`meta["val"]`), which is modified in place.
    nodes : set of Node
        Nodes that may be changed, those that depend on the vector. The others keep the model's own arithmetic, so that
        activations at a kink stay on the side on which the model has them.
    """
    maps = LARGEST_MAPS.get(torch.backends.cpu.get_cpu_capability(), LARGEST_MAPS_ELSEWHERE)
    for node in list(graph.nodes):
        if node not in nodes:
            continue
        if node.target is aten.convolution.default:
            if plain(node, node, maps.channels_last):
                _channels_last(graph, node, node)
        elif node.target is aten.convolution_backward.default:
            for single in separate(graph, node) if plain(node, node.args[0], max(maps)) else []:
                if single.args[10] == [False, True, False] and plain(single, single.args[0], maps.sample_sums):
                    convolution = _convolve_samples(graph, single)
                    if maps.channels_last:
                        _channels_last(graph, convolution, convolution)
                elif single.args[10] == [True, False, False] and plain(single, single.args[0], maps.channels_last):
                    _channels_last(graph, single, next(iter(single.users)))


def prefer_fast_products(graph: fx.Graph) -> None:
    """Use the faster library for float32 matrix products on the CPU.

    PyTorch uses MKL, which uses AVX-512 only on Intel processors: 4096 x 4096 times 4096 x 256 takes 83 ms on one core
    of an AMD EPYC (Zen 5), but 36 ms with oneDNN, which PyTorch uses for convolutions; 49 and 19 ms on two cores.

    Parameters
    ----------
    graph : torch.fx.Graph
        Traced with fake tensors (`meta["val"]`); it is changed in place.
    """
    if not _mkl_is_slow():
        return
    for node in list(graph.nodes):
        if node.target is not aten.mm.default:
            continue
        value = node.meta["val"]
        if value.dtype is not torch.float32 or value.device.type != "cpu":
            continue
        with graph.inserting_before(node):
            transposed = call(graph, aten.t.default, node.args[1])
        node.target = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001 - the operator's public name
        node.args = (node.args[0], transposed, None, "none", [], "")


if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)  # noqa: SLF001
    def _flops_of_linear(rows: tuple[int, int], weights: tuple[int, int], *_: Any, **__: Any) -> int:
        """Count operations of X (n, k) times the transpose of W (m, k), which PyTorch's counter does not know."""
        return 2 * rows[0] * rows[1] * weights[0]


@functools.cache
def _mkl_is_slow() -> bool:
    """Whether PyTorch uses MKL on a non-Intel processor with AVX-512, and oneDNN is available."""
    return (
        torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "Intel" not in _processor()
    )


@functools.cache
def direct_speed() -> float:
    """Return the multiplication rate of direct convolutions relative to that of batched matrix products.

    For maps of 8x8 on two cores, in 10^9 per second: 125 and 78 on an AMD EPYC (Zen 4); 250 and, as matrix products
    suggest, 87 on Zen 5, whose AVX-512 is twice as fast as its AVX2, which MKL uses for batched products.
    """
    return 2.9 if _mkl_is_slow() and _wide() else 1.6


def _wide() -> bool:
    """Whether AVX-512 is twice as fast as AVX2 on an AMD processor: from Zen 5 (family 26)."""
    family = re.search(r"cpu family\s*:\s*(\d+)", _processor())
    return family is not None and int(family[1]) >= ZEN_5


def _processor() -> str:
    """Description of the processor by the operating system, including its vendor."""
    described = Path("/proc/cpuinfo")
    return described.read_text(encoding="utf-8", errors="replace") if described.exists() else platform.processor()


def _channels_last(graph: fx.Graph, node: fx.Node, result: fx.Node) -> None:
    """Run a convolution in channels-last format, which its weight determines, and convert its result back.

    If the result is in channels-last format already, so is the convolution, and later nodes rely on it.
    """
    if not result.meta["val"].is_contiguous():
        return
    place = 1 if node.target is aten.convolution.default else 2
    weight = node.args[place]
    with graph.inserting_before(node):
        node.update_arg(place, call(graph, aten.clone.default, weight, memory_format=torch.channels_last))
    with graph.inserting_after(result):
        back = call(graph, aten.clone.default, result, memory_format=torch.contiguous_format)
    result.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)


def separate(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    """Split the gradients of a convolution by input, weight and bias; return the nodes that remain convolutions."""
    if sum(node.args[10]) == 1:  # type: ignore[arg-type]
        return [node]
    singles = []
    for user in list(node.users):
        wanted = cast("int", user.args[1])
        with graph.inserting_before(node):
            if wanted == len(MASKS):
                result = call(graph, aten.sum.dim_IntList, node.args[0], [0, 2, 3])
            else:
                single = graph.call_function(aten.convolution_backward.default, (*node.args[:10], MASKS[wanted]))
                single.meta["val"] = node.meta["val"]
                result = graph.call_function(operator.getitem, (single, wanted))
                result.meta["val"] = user.meta["val"]
                singles.append(single)
        user.replace_all_uses_with(result)
        graph.erase_node(user)
    graph.erase_node(node)
    return singles


def _convolve_samples(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Replace the gradient of a weight by a convolution, and return its node."""
    gradient, inputs, weight, _, stride, padding, dilation = node.args[:7]
    height, width = weight.meta["val"].shape[2:]  # type: ignore[union-attr]
    with graph.inserting_before(node):
        result = call(graph, aten.transpose.int, inputs, 0, 1)
        samples = call(graph, aten.transpose.int, gradient, 0, 1)
        result = convolution = call(
            graph, aten.convolution.default, result, samples, None, dilation, padding, stride, False, [0, 0], 1
        )
        # If the stride skips the border of the input, there are shifts beyond those of the kernel.
        for dimension, size in ((2, height), (3, width)):
            if result.meta["val"].shape[dimension] != size:
                result = call(graph, aten.slice.Tensor, result, dimension, 0, size)
        result = call(graph, aten.transpose.int, result, 0, 1)
    for user in list(node.users):
        user.replace_all_uses_with(result)
        graph.erase_node(user)
    graph.erase_node(node)
    return convolution


def plain(node: fx.Node, output: Any, largest: float) -> bool:
    """Whether a node is a plain convolution on the CPU, in float32 or float64, with maps at most this large."""
    value = output.meta["val"]
    weight = node.args[1 if node.target is aten.convolution.default else 2]
    transposed, groups = (node.args[6], node.args[8]) if output is node else (node.args[7], node.args[9])
    used = output is node or {user.target for user in node.users} == {operator.getitem}
    return bool(
        value.device.type == "cpu"
        and value.dim() == 4
        and value.shape[2:].numel() <= largest
        and weight.meta["val"].shape[2:].numel() > 1  # type: ignore[union-attr]
        and not transposed
        and groups == 1
        and used
    )


def call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Insert an operation, with the fake value of its result."""
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = target(*(arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args), **kwargs)
    return node
