"""Tangent part of a trace, restricted to a block of parameters: vectors that are zero elsewhere, products only there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

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
    small = fx.Graph()
    small.output(small.graph_copy(graph, {}))
    tangents = [node for node in small.nodes if node.op == "placeholder"][num_residuals:]
    inside = [tangents[place] for place in block]
    zeros = _reached(small, tangents) - _reached(small, inside)
    for node in list(small.nodes):
        if node.op == "call_function" and node not in zeros:
            _without(small, node, zeros)
    output = small.output_node()
    products = cast("Sequence[fx.Node]", output.args[0])
    output.args = (tuple(products[place] for place in block),)
    for node in (node for node in list(small.nodes) if node in zeros and node.users):
        with small.inserting_before(_first_user(small, node)):
            node.replace_all_uses_with(_zero(small, node))
    small.eliminate_dead_code()
    for tangent in tangents:
        if tangent not in inside:
            small.erase_node(tangent)
    return small


def _reached(graph: fx.Graph, sources: Collection[fx.Node]) -> set[fx.Node]:
    found = set(sources)
    for node in graph.nodes:
        if node.op != "output" and any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _without(graph: fx.Graph, node: fx.Node, zeros: set[fx.Node]) -> None:
    """Replace a sum or difference with a zero by its other term, if that has the same shape, dtype and strides."""
    if node.target not in (aten.add.Tensor, aten.sub.Tensor) or node.kwargs:
        return
    one, other = node.args
    if other in zeros and isinstance(one, fx.Node) and _alike(one, node):
        node.replace_all_uses_with(one)
    elif one in zeros and isinstance(other, fx.Node) and _alike(other, node):
        if node.target is aten.add.Tensor:
            node.replace_all_uses_with(other)
        else:
            node.target, node.args = aten.neg.default, (other,)


def _first_user(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return next(user for user in graph.nodes if user in node.users)


def _zero(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Zeros with the shape, strides, dtype and device of a node's value."""
    value = node.meta["val"]
    zero = graph.call_function(_zeros, (tuple(value.shape), value.stride(), value.dtype, value.device))
    zero.meta = {"val": value}
    return zero


def _zeros(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device=device).zero_()


def _alike(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta.get("val"), other.meta.get("val")
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return False
    return bool((a.shape, a.dtype, a.device, a.stride()) == (b.shape, b.dtype, b.device, b.stride()))
