"""Checks and rewritings that make a traced graph valid for other values than those it was traced with.

Traces are cut and rewritten on the assumption that their operations are pure and do not depend on memory layout. This
module establishes both, or rejects the trace.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.func import functionalize

from hesspec.operators.engine.graph.recording import UnsoundTraceError, record

__all__ = ["UnsoundTraceError", "free_of_mutations", "free_of_strides"]

aten: Any = torch.ops.aten

# Operations that write running statistics without declaring it: positions of the statistics and of the update flag.
SILENT_WRITERS = {
    aten.native_batch_norm.default: (3, 5),
    aten.cudnn_batch_norm.default: (3, 5),
    aten.miopen_batch_norm.default: (3, 5),
}


def free_of_mutations(graph: fx.Graph, arguments: Sequence[Tensor]) -> fx.Graph:
    """Return the graph without operations that write into their inputs.

    `functionalize` does not enter composite operations that are called outside any other transform: in-place additions
    of an RNN cell in plain evaluation remain. They are separate nodes of the graph, so functionalising it a second time
    replaces them.

    Parameters
    ----------
    graph : torch.fx.Graph
        Graph recorded with fake tensors, unmodified.
    arguments : sequence of Tensor
        Arguments of the record.

    Returns
    -------
    torch.fx.Graph
        `graph` if nothing mutates, otherwise a new one.

    Raises
    ------
    UnsoundTraceError
        If operations remain that write, or may write, into an input.
    """
    if any(map(_writes, graph.nodes)):
        # Not the module, which prints its source if it raises.
        run = fx.GraphModule(cast("nn.Module", graph.owning_module), graph).forward
        graph = record(functionalize(run, remove="mutations"), arguments)
    for node in graph.nodes:
        if _writes(node):
            raise UnsoundTraceError(f"{node.target} writes into one of its arguments")
    return graph


def _writes(node: fx.Node) -> bool:
    """Whether a node writes, or may write, into its inputs."""
    if node.op in ("placeholder", "output", "get_attr") or node.target is operator.getitem:
        return False
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001
        # Higher-order operations run graphs of their own.
        return True
    if node.target in SILENT_WRITERS:
        statistics, updated = (node.args[place] for place in SILENT_WRITERS[node.target])
        return statistics is not None and updated is not False
    return node.target._schema.is_mutable  # noqa: SLF001 - what the operator's declaration says


def free_of_strides(graph: fx.Graph) -> None:
    """Make the results of a graph independent of the memory layout of inputs and intermediate results.

    A kernel may return other strides than its fake version, batches may have any memory format, and kernels are
    replaced by faster ones. A view is valid for certain strides only; `reshape` copies if necessary.

    Parameters
    ----------
    graph : torch.fx.Graph
        Graph of pure operations, traced with fake tensors (`meta["val"]`), which is modified in place.

    Raises
    ------
    UnsoundTraceError
        If an operation reads memory beyond its argument.
    """
    for node in graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default):  # noqa: SLF001
            node.target, node.args = aten.reshape.default, node.args[:2]
        elif node.target in (aten.as_strided.default, aten.as_strided_scatter.default):
            _settle(graph, node)


def _settle(graph: fx.Graph, node: fx.Node) -> None:
    """Pass a tensor with the recorded layout to an operation that addresses memory by strides."""
    source: Any = node.args[0]
    arguments: Sequence[Any] = node.args[1:] if node.target is aten.as_strided.default else node.args[2:]
    size, stride, *offset = arguments
    value: Any = source.meta["val"]
    start: Any = offset[0] if offset and offset[0] is not None else value.storage_offset()
    last = start + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if not value.is_contiguous() or value.storage_offset() != 0 or last >= value.numel():
        raise UnsoundTraceError(f"{node.target} reads memory beyond its argument")
    with graph.inserting_before(node):
        settled = graph.call_function(aten.clone.default, (source,), {"memory_format": torch.contiguous_format})
    settled.meta["val"] = value
    node.update_arg(0, settled)
