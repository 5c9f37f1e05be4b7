"""Products in bfloat16 or TF32: which are available, and the graph in which bilinear operations are in bfloat16."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["PRECISIONS", "check_precision", "lower_products"]

aten: Any = torch.ops.aten

PRECISIONS = ("full", "tf32", "bfloat16")

# Bilinear operations, which take nearly all the time and for which hardware has fast units.
BILINEAR = {
    aten.mm.default,
    aten.bmm.default,
    aten.addmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten.convolution_backward.default,
}


def check_precision(precision: str, *, dtype: torch.dtype, device: torch.device) -> None:
    """Reject a precision that is not available for this dtype on this device.

    Raises
    ------
    ValueError
        If it is unknown, the operator is not float32, or TF32 is not available.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown; use one of {', '.join(map(repr, PRECISIONS))}.")
    if precision != "full" and dtype != torch.float32:
        raise ValueError(
            f"precision={precision!r} is for float32 operators, but this one is {dtype}; leave it at 'full', or "
            "convert the model with model.float()."
        )
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(
            f"precision='tf32' needs a CUDA device, but the model is on {device}; 'bfloat16' works on any device."
        )


def lower_products(graph: fx.Graph, nodes: set[fx.Node]) -> None:
    """Cast float32 inputs of bilinear nodes to bfloat16, and their results back to float32.

    Casts of values that do not depend on the vector belong to the primal part of the trace, so residuals that only such
    nodes read are stored in bfloat16.

    Parameters
    ----------
    graph : torch.fx.Graph
        Graph traced with fake tensors (`meta["val"]`), which is modified in place.
    nodes : set of Node
        Nodes of the graph that may be changed, those that depend on the vector.
    """
    halves: dict[fx.Node, fx.Node] = {}

    def half(source: fx.Node) -> fx.Node:
        value = source.meta.get("val")
        if not (isinstance(value, Tensor) and value.dtype == torch.float32):
            return source
        if source not in halves:
            # Right after its source, so that other nodes that read it can share the cast.
            with graph.inserting_after(source):
                halves[source] = _cast(graph, source, torch.bfloat16)
        return halves[source]

    for node in list(graph.nodes):
        if node not in nodes or node.target not in BILINEAR:
            continue
        node.args = fx.map_arg(node.args, half)
        value = node.meta["val"]
        if isinstance(value, Tensor):
            halves[_widen(graph, node)] = node
            continue
        node.meta["val"] = tuple(_as(part, torch.bfloat16) for part in value)
        for result in list(node.users):
            if result.target is operator.getitem:
                halves[_widen(graph, result)] = result


def _widen(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Insert a cast to float32 between a node, now in bfloat16, and all its readers; return the cast."""
    node.meta["val"] = _as(node.meta["val"], torch.bfloat16)
    with graph.inserting_after(node):
        wide = _cast(graph, node, torch.float32)
    node.replace_all_uses_with(wide, delete_user_cb=lambda user: user is not wide)
    return wide


def _cast(graph: fx.Graph, source: fx.Node, dtype: torch.dtype) -> fx.Node:
    cast = graph.call_function(aten._to_copy.default, (source,), {"dtype": dtype})  # noqa: SLF001
    cast.meta["val"] = _as(source.meta["val"], dtype)
    return cast


def _as(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) else value
