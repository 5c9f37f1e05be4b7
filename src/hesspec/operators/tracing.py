"""One trace of a curvature matvec for all batches of a shape, cut by dependence on the vector.

A product `M v = d/dt g(theta + t v)` is traced once, with fake tensors, so that nothing is computed. Its graph falls
into a *primal part*, which does not depend on v and is run once per batch, and a *tangent part*, which is linear in v
and is all that a matvec has to run (design: the primal pass of a network is half of the work of a Hessian matvec).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["LinearTrace", "RandomOperationError", "trace_linear"]

Part = Callable[..., tuple[Tensor, ...]]


class RandomOperationError(ValueError):
    """The traced function draws random numbers."""


class LinearTrace:
    """A function of (primals, v) that is linear in v, as a primal and a tangent part.

    Parameters
    ----------
    primal : callable
        `primal(*primals) -> (value, *residuals)`.
    tangent : callable
        `tangent(*residuals, *v) -> products`, one for each entry of v.
    independent : tuple of int
        Entries of the first argument group of the primals that `value` does not depend on.
    """

    def __init__(self, primal: Part, tangent: Part, independent: tuple[int, ...]) -> None:
        self.primal, self.tangent, self.independent = primal, tangent, independent


def trace_linear(
    function: Callable[..., tuple[Tensor, ...]], primals: Sequence[Tensor], tangents: Sequence[Tensor]
) -> LinearTrace:
    """Trace `function(*primals, *tangents) -> (value, *products)` for tensors of these shapes, and cut it.

    Parameters
    ----------
    function : callable
        Its products are linear in the tangents; its first result, a scalar, does not depend on them.
    primals, tangents : sequences of Tensor
        Examples: shapes, dtypes and devices matter, values do not. The first `len(tangents)` primals are the point at
        which the tangents are attached.

    Raises
    ------
    RandomOperationError
        If the function draws random numbers: its result would differ from call to call.
    Exception
        Whatever PyTorch raises where it cannot trace or differentiate the function (no forward-mode rule, control flow
        that depends on values); the caller then has another way to go.
    """
    # The tracer tells its inputs apart by identity.
    tangents = [torch.empty_like(tangent) for tangent in tangents]
    # In-place operations would overwrite what the tangent part reads later, so they are functionalised away; views stay,
    # as copies in their place would double the memory of everything kept.
    traced = make_fx(
        functionalize(function, remove="mutations"), tracing_mode="fake", _allow_non_fake_inputs=True
    )(*primals, *tangents)
    graph = traced.graph
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise RandomOperationError(str(node.target))
    _merge_equal(graph)
    return _cut(traced, len(primals), len(tangents))


def _merge_equal(graph: fx.Graph) -> None:
    """Merge nodes that compute the same thing: Gauss-Newton and residual products pass through the network twice."""
    seen: dict[tuple[Any, ...], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr"):
            continue
        # repr tells 1 from 1.0 and True, which are equal as keys; a node's is its name, which is unique.
        key = (node.op, node.target, repr(node.args), repr(node.kwargs))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _cut(traced: fx.GraphModule, num_primals: int, num_tangents: int) -> LinearTrace:
    graph = traced.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    output = next(node for node in graph.nodes if node.op == "output")
    value, *products = output.args[0]
    dependent = set(placeholders[num_primals:])
    influential = {value}
    for node in graph.nodes:
        if any(source in dependent for source in node.all_input_nodes):
            dependent.add(node)
    for node in reversed(graph.nodes):
        if node in influential:
            influential.update(node.all_input_nodes)
    dependent.discard(output)
    inner = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    # A product may not depend on v at all (zero for a parameter without influence); it is then a residual too.
    residuals = [
        node
        for node in graph.nodes
        if node not in dependent and node is not output
        and (any(user in dependent for user in node.users) or node in products)
    ]

    primal, copied = fx.Graph(), {}
    for node in placeholders[:num_primals]:
        copied[node] = primal.node_copy(node)
    for node in inner:
        if node not in dependent:
            copied[node] = primal.node_copy(node, copied.__getitem__)
    primal.output((copied[value], *(copied[node] for node in residuals)))
    primal.eliminate_dead_code()

    tangent, moved = fx.Graph(), {}
    for number, node in enumerate(residuals):
        moved[node] = tangent.placeholder(f"residual_{number}")
    for node in placeholders[num_primals:]:
        moved[node] = tangent.node_copy(node)
    for node in inner:
        if node in dependent:
            moved[node] = tangent.node_copy(node, moved.__getitem__)
    tangent.output(tuple(moved[node] for node in products))
    independent = tuple(i for i, node in enumerate(placeholders[:num_tangents]) if node not in influential)
    return LinearTrace(fx.GraphModule(traced, primal), fx.GraphModule(traced, tangent), independent)
