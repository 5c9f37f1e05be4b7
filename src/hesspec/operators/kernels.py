"""Operations of a traced graph in the form in which their kernels are fastest; the mathematics stays as it is."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

__all__ = ["prefer_fast_kernels"]

aten: Any = torch.ops.aten

# Gradients of convolution weights, as oneDNN has them, are slow where maps are small: there the convolution of inputs
# with output gradients, in which samples take the place of channels, is faster. Measured on two cores, 256 samples, 512
# channels: 2x2 maps 48 ms instead of 85, 4x4 131 instead of 164; 8x8 are even (256 channels, 146 and 142).
SMALL_MAP = 16
# Convolutions, and their gradients by the input, are faster channels last, by more than copying takes where maps are
# small: 2x2 maps 26 ms instead of 42, 4x4 81 instead of 124, 8x8 (256 channels) 87 instead of 112. Products of the
# Hessian, copies included, six interleaved repeats: VGG11-BN on 256 images 1.09 times as fast with the first alone and
# 1.16 with both, ResNet18 on 64 images 1.00 and 1.02.
CHANNELS_LAST_MAP = 64


def prefer_fast_kernels(graph: fx.Graph, nodes: set[fx.Node]) -> None:
    """Give convolutions on small maps, on the CPU, the form in which they are fastest.

    With g the gradient of the output, that of the weight is sum_n x[n, i] * g[n, o] over all shifts, which is the
    convolution of x with g, samples being summed over as channels are, stride and dilation changing places. The other
    two, the convolution and its gradient by the input, run channels last.

    Parameters
    ----------
    graph : torch.fx.Graph
        Traced with fake tensors (`meta["val"]`); it is changed in place.
    nodes : set of Node
        Nodes that may be changed, those that depend on the vector. The others keep the model's own arithmetic, so that
        activations at a kink fall on the side on which the model has them.
    """
    for node in list(graph.nodes):
        if node not in nodes:
            continue
        if node.target is aten.convolution.default:
            if _plain(node, node, CHANNELS_LAST_MAP):
                _channels_last(graph, node, node)
        elif node.target is aten.convolution_backward.default:
            if node.args[10] == [False, True, False] and _plain(node, node.args[0], SMALL_MAP):
                _convolve_samples(graph, node)
            elif node.args[10] == [True, False, False] and _plain(node, node.args[0], CHANNELS_LAST_MAP):
                _channels_last(graph, node, next(iter(node.users)))


def _channels_last(graph: fx.Graph, node: fx.Node, result: fx.Node) -> None:
    """Run a convolution channels last, which its weight decides, and bring its result back."""
    place = 1 if node.target is aten.convolution.default else 2
    weight = node.args[place]
    with graph.inserting_before(node):
        node.update_arg(place, _call(graph, aten.clone.default, weight, memory_format=torch.channels_last))
    with graph.inserting_after(result):
        back = _call(graph, aten.clone.default, result, memory_format=torch.contiguous_format)
    result.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)


def _convolve_samples(graph: fx.Graph, node: fx.Node) -> None:
    """Replace the gradient of a weight by a convolution."""
    gradient, inputs, weight, _, stride, padding, dilation = node.args[:7]
    height, width = weight.meta["val"].shape[2:]  # type: ignore[union-attr]
    with graph.inserting_before(node):
        result = _call(graph, aten.transpose.int, inputs, 0, 1)
        samples = _call(graph, aten.transpose.int, gradient, 0, 1)
        result = _call(
            graph, aten.convolution.default, result, samples, None, dilation, padding, stride, False, [0, 0], 1
        )
        # Where the stride leaves out the border of the input, there are shifts beyond the kernel's.
        for dimension, size in ((2, height), (3, width)):
            if result.meta["val"].shape[dimension] != size:
                result = _call(graph, aten.slice.Tensor, result, dimension, 0, size)
        result = _call(graph, aten.transpose.int, result, 0, 1)
    for user in list(node.users):
        user.replace_all_uses_with(result)
        graph.erase_node(user)
    graph.erase_node(node)


def _plain(node: fx.Node, output: Any, largest: int) -> bool:
    """Whether a node is of a plain convolution on the CPU, in float32 or float64, with maps as small as that."""
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
        and (output is node or len(node.users) == 1)
    )


def _call(graph: fx.Graph, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = target(*(arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args), **kwargs)
    return node
