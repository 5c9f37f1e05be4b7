"""Reuse of memory: elementwise operations that write into the memory of an operand that is no longer needed."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from hesspec.operators.engine.budget import is_view
from hesspec.operators.engine.graph.nodes import alike

__all__ = ["reuse_memory"]

aten = torch.ops.aten

# In-place operations, and the operands whose memory may hold the result.
IN_PLACE: dict[Any, tuple[Any, tuple[int, ...]]] = {
    aten.mul.Tensor: (aten.mul_.Tensor, (0, 1)),
    aten.add.Tensor: (aten.add_.Tensor, (0, 1)),
    aten.sub.Tensor: (aten.sub_.Tensor, (0,)),
    aten.div.Tensor: (aten.div_.Tensor, (0,)),
    aten.neg.default: (aten.neg_.default, (0,)),
    aten.baddbmm.default: (aten.baddbmm_.default, (0,)),
}


def reuse_memory(graph: fx.Graph) -> fx.Graph:
    """Rewrite a graph such that elementwise operations write into the memory of an operand where possible.

    Half of a product with a convolutional network is elementwise work: scales of batch norm, masks of ReLU, sums of
    terms. In-place operations touch less memory. Results are bitwise identical. Side by side, two threads, seven
    interleaved repeats: small CNN, 1,000 images, Hessian 1.05 (1.04 to 1.12) and Gauss-Newton 1.06 (1.02 to 1.20) times
    as fast; ResNet18, 64 images, where convolutions dominate, 1.02 (1.00 to 1.07). One thread, CPU time, seven repeats:
    a small CNN, 700 images of 8x8 pixels, 1.05 (1.02 to 1.07) and 1.02 (1.00 to 1.05); a GPT, 8 sequences of 64
    tokens, 1.07 (1.04 to 1.09) and 1.03 (0.97 to 1.04); VGG11 with batch norm, 16 images of 32x32 pixels, 1.02 (1.00
    to 1.03) and 1.00 (0.98 to 1.08).

    Parameters
    ----------
    graph : torch.fx.Graph
        Graph of ATen operations without mutations, with shapes of values in `meta["val"]`.

    Returns
    -------
    torch.fx.Graph
        The same graph.

    Notes
    -----
    The memory of an operand is reused if an operation of this graph allocated it (inputs, including cached residuals,
    are never overwritten), this is its last use, none of its uses is a view of it, and it has the shape, strides and
    dtype of the result.
    """
    place = {node: index for index, node in enumerate(graph.nodes)}
    owned: set[fx.Node] = set()

    def free(node: fx.Node, operand: Any) -> bool:
        """Whether `node` may write into the memory of an operand."""
        if operand not in owned or not alike(node, operand):
            return False
        return all(user is node or (place[user] < place[node] and user in owned) for user in operand.users)

    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is aten.threshold_backward.default and free(node, node.args[0]):
            node.target, node.kwargs = aten.threshold_backward.grad_input, {"grad_input": node.args[0]}
        elif node.target in IN_PLACE:
            target, operands = IN_PLACE[node.target]
            # x + alpha y differs from y + alpha x.
            chosen = [i for i in (operands[:1] if node.kwargs else operands) if free(node, node.args[i])]
            # Matrix products would read entries that they have already overwritten.
            if node.target is aten.baddbmm.default and node.args.count(node.args[0]) > 1:
                chosen = []
            if chosen:
                node.target, node.args = target, node.args if chosen[0] == 0 else (node.args[1], node.args[0])
        elif not _owns(node):
            continue
        owned.add(node)
    return graph


def _owns(node: fx.Node) -> bool:
    """Whether a node owns the memory of its value."""
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, fx.Node) and source.op == "call_function" and _owns(source)
    schema = getattr(node.target, "_schema", None)
    return (
        schema is not None and not is_view(node.target) and all(result.alias_info is None for result in schema.returns)
    )
