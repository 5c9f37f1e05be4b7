"""Tangent part of a trace, restricted to a block: vectors that are zero elsewhere, products only there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from hesspec.operators.engine.graph.nodes import alike, descendants

__all__ = ["restricted"]

aten: Any = torch.ops.aten


def restricted(graph: fx.Graph, num_residuals: int, block: Sequence[int]) -> fx.Graph:
    """Restrict a tangent part to the tangents and products of a block of parameters.

    The graph computes a linear function of its tangents, and so does each of its nodes: what depends on tangents
    outside of the block only is zero. Sums lose these terms, and everything else that the products of the block do not
    need is removed. What remains begins where the first parameter of the block is used, and ends at its products.

    Parameters
    ----------
    graph : torch.fx.Graph
        `(*residuals, *tangents) -> products`, one product for each tangent; left unchanged. Of operations without
        mutations, with shapes of values in `meta["val"]`.
    num_residuals : int
    block : sequence of int
        Places of the tangents, ascending.

    Returns
    -------
    torch.fx.Graph
        `(*residuals, *tangents of the block) -> products of the block`.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    tangents = inputs[num_residuals:]
    inside = [tangents[place] for place in block]
    reached = descendants(graph, inside)
    zeros = descendants(graph, tangents) - reached
    products = cast("Sequence[fx.Node]", graph.output_node().args[0])
    wanted = [products[place] for place in block]
    # What each sum stands for without its zeros, and what the products need.
    instead = {node: term for node in graph.nodes if node in reached and (term := _other_term(node, zeros)) is not None}
    needed, waiting = set(wanted) - zeros, [node for node in wanted if node not in zeros]
    while waiting:
        node = waiting.pop()
        sources = [instead[node]] if node in instead else node.all_input_nodes
        found = {source for source in sources if source not in zeros} - needed
        needed |= found
        waiting += found
    small, copied = fx.Graph(), {}
    for number, node in enumerate([*inputs[:num_residuals], *inside]):
        copied[node] = small.placeholder(f"input_{number}")
        copied[node].meta = node.meta

    def source_of(node: fx.Node) -> fx.Node:
        return copied[node] if node in copied else _zero(small, node)

    for node in graph.nodes:
        if node.op != "call_function" or node not in needed:
            continue
        if node not in instead:
            copied[node] = small.node_copy(node, source_of)
        elif node.target is aten.sub.Tensor and node.args[1] is instead[node]:
            copied[node] = small.call_function(aten.neg.default, (copied[instead[node]],))
            copied[node].meta = node.meta
        else:
            copied[node] = copied[instead[node]]
    small.output(tuple(source_of(node) for node in wanted))
    return small


def _other_term(node: fx.Node, zeros: set[fx.Node]) -> fx.Node | None:
    """Other term of a sum or difference with a zero, if it has the shape, dtype and strides of the result."""
    if node.target not in (aten.add.Tensor, aten.sub.Tensor) or node.kwargs:
        return None
    one, other = node.args
    if other in zeros and isinstance(one, fx.Node) and alike(one, node):
        return one
    return other if one in zeros and isinstance(other, fx.Node) and alike(other, node) else None


def _zero(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Zeros with the shape, strides, dtype and device of a node's value."""
    value = node.meta["val"]
    zero = graph.call_function(_zeros, (tuple(value.shape), value.stride(), value.dtype, value.device))
    zero.meta = {"val": value}
    return zero


def _zeros(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device=device).zero_()
