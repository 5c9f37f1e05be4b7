"""Relations between the nodes of a graph that all rewritings ask for."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, fx

__all__ = ["alike", "ancestors", "descendants"]


def alike(one: fx.Node, other: fx.Node) -> bool:
    """Whether two nodes are tensors of one shape, dtype and device, with the same strides."""
    a, b = one.meta.get("val"), other.meta.get("val")
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return False
    return bool((a.shape, a.dtype, a.device, a.stride()) == (b.shape, b.dtype, b.device, b.stride()))


def descendants(graph: fx.Graph, sources: Collection[fx.Node]) -> set[fx.Node]:
    """Return the sources and all operations that depend on them."""
    found = set(sources)
    for node in graph.nodes:
        if node.op != "output" and any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def ancestors(graph: fx.Graph, result: fx.Node) -> set[fx.Node]:
    """Return the result and all nodes that it depends on."""
    found = {result}
    for node in reversed(graph.nodes):
        if node in found:
            found.update(node.all_input_nodes)
    return found
