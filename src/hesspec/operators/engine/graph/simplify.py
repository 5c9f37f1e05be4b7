"""Simplifications of a traced graph of pure operations that do not change its results."""

from typing import Any

import torch
from torch import fx

from hesspec.operators.engine.graph.nodes import alike

__all__ = ["merge_equal", "simplify"]

aten: Any = torch.ops.aten

# Operations that return their input if the result has its shape, dtype and strides; for copy it is the second input.
COPIES: dict[Any, int] = {
    aten.alias.default: 0,
    aten.clone.default: 0,
    aten._to_copy.default: 0,  # noqa: SLF001 - the operator's public name
    aten.expand.default: 0,
    aten.detach.default: 0,
    aten.view.default: 0,
    aten.copy.default: 1,
}
ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}
FILLS: dict[Any, int] = {
    aten.full.default: 1,
    aten.full_like.default: 1,
    aten.fill.Scalar: 1,
    aten.scalar_tensor.default: 0,
}
# Operations that are linear in their first input, hence zero if it is.
LINEAR = {
    aten.expand.default,
    aten.view.default,
    aten.alias.default,
    aten.clone.default,
    aten.permute.default,
    aten.t.default,
    aten.unsqueeze.default,
    aten.sum.dim_IntList,
    aten.mul.Tensor,
    aten.mm.default,
    aten.bmm.default,
}


def simplify(graph: fx.Graph) -> None:
    """Remove redundant copies, and sums with tensors that are zero for all inputs.

    Forward-mode differentiation inserts both: clones of tangents, and zero tangents of values that do not depend on the
    parameters, such as the data. Signs of zeros may change, and NaN from 0 times infinity disappears.

    Parameters
    ----------
    graph : torch.fx.Graph
        Graph of operations without side effects, traced with fake tensors (`meta["val"]`).
    """
    zeros: set[Any] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        source = _unchanged(node)
        if source is None and node.target is aten.add.Tensor and not node.kwargs:
            source = _nonzero_summand(node, zeros)
        if source is not None and alike(source, node):
            node.replace_all_uses_with(source)
        elif _is_zero(node, zeros):
            zeros.add(node)
    graph.eliminate_dead_code()


def merge_equal(graph: fx.Graph) -> None:
    """Merge nodes that compute the same value: Gauss-Newton and residual products run the network twice."""
    seen: dict[tuple[Any, ...], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr"):
            continue
        # repr distinguishes 1, 1.0 and True, which are equal as keys; that of a node is its unique name.
        key = (node.op, node.target, repr(node.args), repr(node.kwargs))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _unchanged(node: fx.Node) -> fx.Node | None:
    place = COPIES.get(node.target)
    source = node.args[place] if place is not None else None
    return source if isinstance(source, fx.Node) else None


def _nonzero_summand(node: fx.Node, zeros: set[Any]) -> fx.Node | None:
    one, other = node.args
    if one in zeros and isinstance(other, fx.Node):
        return other
    return one if other in zeros and isinstance(one, fx.Node) else None


def _is_zero(node: fx.Node, zeros: set[Any]) -> bool:
    target = node.target
    if target in ZEROS:
        return True
    if target in FILLS:
        return bool(node.args[FILLS[target]] == 0)
    if target is aten.convolution.default:
        return (node.args[0] in zeros or node.args[1] in zeros) and node.args[2] is None
    if target in LINEAR:
        return node.args[0] in zeros or (target is aten.mul.Tensor and node.args[1] in zeros)
    return False
