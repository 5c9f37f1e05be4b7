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


def prefer_fast_kernels(graph: fx.Graph) -> None:
    """Replace gradients of convolution weights by convolutions where that is faster: on the CPU, on small maps.

    With g the gradient of the output, that of the weight is sum_n x[n, i] * g[n, o] over all shifts, which is the
    convolution of x with g, samples being summed over as channels are, stride and dilation changing places.

    Parameters
    ----------
    graph : torch.fx.Graph
        Traced with fake tensors (`meta["val"]`); it is changed in place.
    """
    for node in list(graph.nodes):
        if node.target is not aten.convolution_backward.default or not _small(node):
            continue
        gradient, inputs, weight, _, stride, padding, dilation = node.args[:7]
        height, width = weight.meta["val"].shape[2:]
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


def _small(node: fx.Node) -> bool:
    """Whether a node gives the weight's gradient, and nothing else, of a plain convolution with small maps."""
    gradient, _, weight = (source.meta["val"] for source in node.args[:3])  # type: ignore[union-attr]
    transposed, _, groups, wanted = node.args[7:11]
    return bool(
        gradient.device.type == "cpu"
        and gradient.dim() == 4
        and gradient.shape[2:].numel() <= SMALL_MAP
        and weight.shape[2:].numel() > 1
        and not transposed
        and groups == 1
        and wanted == [False, True, False]
        and all(user.target is operator.getitem and user.args[1] == 1 for user in node.users)
    )


def _call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = target(*(arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args))
    return node
