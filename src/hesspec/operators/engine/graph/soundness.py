"""What makes a traced graph compute the function that it was traced from, at other values too.

A trace is cut and rewritten in the belief that its operations are pure, and that nothing depends on how tensors lie in
memory. Here each of these is made so, or the trace is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["UnsoundTraceError", "free_of_mutations", "free_of_strides"]

aten: Any = torch.ops.aten

# Write running statistics, which their schemas do not say: where the statistics are, and whether they are updated.
SILENT_WRITERS = {
    aten.native_batch_norm.default: (3, 5),
    aten.cudnn_batch_norm.default: (3, 5),
    aten.miopen_batch_norm.default: (3, 5),
}


class UnsoundTraceError(RuntimeError):
    """A traced graph is not known to compute the function that it was traced from."""


def free_of_mutations(traced: fx.GraphModule, arguments: Sequence[Tensor]) -> fx.GraphModule:
    """The graph without operations that write into their inputs.

    `functionalize` does not look into composite operations that are called outside of any other transform: of an RNN
    cell in plain evaluation, additions in place are left. They stand in the graph by themselves, so that they are
    replaced when it is functionalised a second time.

    Parameters
    ----------
    traced : torch.fx.GraphModule
        Traced with fake tensors; nothing has been removed or moved.
    arguments : sequence of Tensor
        Those that it was traced with.

    Returns
    -------
    torch.fx.GraphModule
        `traced` where nothing mutates, else another one.

    Raises
    ------
    UnsoundTraceError
        If operations remain that write into an input, or of which that is not known.
    """
    if any(map(_writes, traced.graph.nodes)):
        # Not the module: calling it prints its source where it raises.
        run = traced.forward

        def again(*given: Tensor) -> Any:
            return run(*given)

        traced = make_fx(functionalize(again, remove="mutations"), tracing_mode="fake", _allow_non_fake_inputs=True)(
            *arguments
        )
    for node in traced.graph.nodes:
        if _writes(node):
            raise UnsoundTraceError(f"{node.target} writes into a tensor that it is given")
    return traced


def _writes(node: fx.Node) -> bool:
    """Whether a node writes into its inputs, or is not known not to."""
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
    """Make a graph compute the same however its inputs and intermediate results lie in memory.

    A kernel may return other strides than it did as a fake one, batches come in memory of any format, and faster
    kernels take the place of others. A view is valid for some strides only; `reshape` copies where it has to.

    Parameters
    ----------
    graph : torch.fx.Graph
        Of pure operations, traced with fake tensors (`meta["val"]`); it is changed in place.

    Raises
    ------
    UnsoundTraceError
        If an operation reads memory past the tensor that it is given.
    """
    for node in graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default):  # noqa: SLF001
            node.target, node.args = aten.reshape.default, node.args[:2]
        elif node.target in (aten.as_strided.default, aten.as_strided_scatter.default):
            _settle(graph, node)


def _settle(graph: fx.Graph, node: fx.Node) -> None:
    """Give an operation that addresses memory by strides a tensor that lies as recorded."""
    source: Any = node.args[0]
    arguments: Sequence[Any] = node.args[1:] if node.target is aten.as_strided.default else node.args[2:]
    size, stride, *offset = arguments
    value: Any = source.meta["val"]
    start: Any = offset[0] if offset and offset[0] is not None else value.storage_offset()
    last = start + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if not value.is_contiguous() or value.storage_offset() != 0 or last >= value.numel():
        raise UnsoundTraceError(f"{node.target} reads memory past the tensor that it is given")
    with graph.inserting_before(node):
        settled = graph.call_function(aten.clone.default, (source,), {"memory_format": torch.contiguous_format})
    settled.meta["val"] = value
    node.update_arg(0, settled)
