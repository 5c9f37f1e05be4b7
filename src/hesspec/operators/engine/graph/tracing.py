"""One trace of a curvature matvec for all batches of a shape, cut by dependence on the vector.

A product `M v = d/dt g(theta + t v)` is traced once, with fake tensors, so that nothing is computed. Its graph consists
of a *primal part*, which does not depend on v and is run once per batch, and a *tangent part*, which is linear in v and
is all that a matvec has to run. Caching the primal part saves a quarter to a third of the work of a Hessian product
(see `hesspec.matrices`).
"""

import functools
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.func import functionalize

from hesspec.operators.engine.budget import PassBytes, RandomOperationError, draws, trace_bytes
from hesspec.operators.engine.graph.detached import Detached
from hesspec.operators.engine.graph.fourier import prefer_fourier
from hesspec.operators.engine.graph.kernels import prefer_fast_convolutions, prefer_fast_products
from hesspec.operators.engine.graph.nodes import ancestors, descendants
from hesspec.operators.engine.graph.pooling import pool_first
from hesspec.operators.engine.graph.precision import lower_products
from hesspec.operators.engine.graph.quiet import quiet_tracer
from hesspec.operators.engine.graph.recording import record
from hesspec.operators.engine.graph.restriction import restricted
from hesspec.operators.engine.graph.reuse import reuse_memory
from hesspec.operators.engine.graph.simplify import merge_equal, simplify
from hesspec.operators.engine.graph.soundness import free_of_mutations, free_of_strides

__all__ = ["Group", "JointTrace", "LinearTrace", "compiling", "cut", "trace_linear", "without_collections"]

Part = Callable[..., tuple[Tensor, ...]]


class Group(NamedTuple):
    """Numbers of tangents and of the products that depend on these tangents only."""

    tangents: int
    products: int


class JointTrace(NamedTuple):
    """A function of (primals, tangents) as one graph, not yet cut.

    Attributes
    ----------
    graph : torch.fx.Graph
    num_fixed : int
        Number of leading primals that are the same for all batches.
    num_primals : int
    groups : tuple of Group
    """

    graph: fx.Graph
    num_fixed: int
    num_primals: int
    groups: tuple[Group, ...]


class LinearTrace(NamedTuple):
    """Function of (primals, tangents) that is linear in each group of tangents, cut into primal and tangent parts.

    Attributes
    ----------
    shared : callable
        `shared(*fixed) -> shared residuals`, which are the same for all batches.
    primal : callable
        `primal(*primals) -> (value, *residuals)`.
    tangents : tuple of callables
        `part(*shared residuals, *residuals, *tangents) -> products` of each group.
    independent : tuple of int
        Tangents of the first group whose primals `value` does not depend on.
    bytes : PassBytes
        Memory that the parts allocate.
    restrict : callable
        `restrict(block)` returns the part of the first group for vectors that are zero outside of a block: places of
        its tangents, ascending, of which `part(*shared residuals, *residuals, *tangents of the block)` returns the
        products of the block only.
    """

    shared: Part
    primal: Part
    tangents: tuple[Part, ...]
    independent: tuple[int, ...]
    bytes: PassBytes
    restrict: Callable[[tuple[int, ...]], Part]


def trace_linear(
    function: Callable[..., tuple[Tensor, ...]],
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
    groups: Sequence[Group],
    num_fixed: int,
) -> JointTrace:
    """Trace `function(*primals, *tangents) -> (value, *products)` for tensors of these shapes.

    Parameters
    ----------
    function : callable
        Function whose products are linear in the tangents, and whose first result, a scalar, does not depend on them.
    primals, tangents : sequences of Tensor
        Examples: shapes, dtypes and devices matter, values do not. The first primals are the point at which the
        tangents of the first group are attached.
    groups : sequence of Group
        Groups of tangents and products, each in order. Products of a group without tangents depend on the primals only.
    num_fixed : int
        Number of leading primals that are the same for all batches.

    Raises
    ------
    RandomOperationError
        If the function draws random numbers: its result would differ from call to call.
    UnsoundTraceError
        If the graph is not known to be pure, or depends on the memory layout of tensors.
    Exception
        Any error of PyTorch if it cannot trace or differentiate the function (no forward-mode rule, control flow that
        depends on values); the caller then uses another mode.
    """
    # The tracer distinguishes inputs by identity. Vectors are views of flat ones, regardless of the parameters.
    tangents = [torch.empty_like(tangent, memory_format=torch.contiguous_format) for tangent in tangents]

    def detached(*arguments: Tensor) -> tuple[Tensor, ...]:
        with Detached():
            return function(*arguments)

    # In-place operations would overwrite values that the tangent part reads later, so they are functionalised. Views
    # are kept, as copies would double the memory of all residuals.
    with quiet_tracer(), compiling(), torch.enable_grad(), without_collections():
        graph = record(functionalize(detached, remove="mutations"), [*primals, *tangents])
        graph = free_of_mutations(graph, [*primals, *tangents])
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if draws(node.target, node.args, node.kwargs):
            raise RandomOperationError(str(node.target))
    simplify(graph)
    merge_equal(graph)
    vectors = [node for node in graph.nodes if node.op == "placeholder"][len(primals) :]
    pool_first(graph)
    dependent = descendants(graph, vectors)
    prefer_fourier(graph, dependent)
    prefer_fast_convolutions(graph, dependent)
    free_of_strides(graph)
    return JointTrace(graph, num_fixed, len(primals), tuple(groups))


@contextmanager
def without_collections() -> Iterator[None]:
    """Collect no garbage within this context: nearly all of the many objects of a graph stay, and each is looked at."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def compiling() -> Iterator[None]:
    """Keep models from inspecting values: `torch.compiler.is_compiling()` is true, distributions do not validate."""
    flag = torch.compiler._is_compiling_flag  # noqa: SLF001 - there is no public way to signal tracing
    # Slow to import, and already imported if a model or a loss uses distributions.
    distribution = getattr(sys.modules.get("torch.distributions"), "Distribution", None)
    checked = distribution is not None and distribution._validate_args  # noqa: SLF001 - set below, by its function
    torch.compiler._is_compiling_flag = True  # noqa: SLF001
    try:
        if checked:
            distribution.set_default_validate_args(False)  # type: ignore[union-attr]
        yield
    finally:
        torch.compiler._is_compiling_flag = flag  # noqa: SLF001
        if checked:
            distribution.set_default_validate_args(True)  # type: ignore[union-attr]


@without_collections()
def cut(trace: JointTrace, *, bfloat16: bool = False) -> LinearTrace:
    """Cut a trace by dependence on the tangents.

    Parameters
    ----------
    trace : JointTrace
        The trace, which is left unchanged.
    bfloat16 : bool
        Whether matrix products and convolutions of the tangent part use bfloat16 (see `lower_products`).
    """
    joint, num_fixed, num_primals, groups = trace
    graph, constants = _copy(joint), cast("nn.Module", joint.owning_module)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    value, *products = cast("Sequence[fx.Node]", graph.output_node().args[0])
    dependent = descendants(graph, placeholders[num_primals:])
    if bfloat16:
        lower_products(graph, dependent)
        dependent = descendants(graph, placeholders[num_primals:])
        value, *products = cast("Sequence[fx.Node]", graph.output_node().args[0])
    influential = ancestors(graph, value)
    inner = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    # A product that does not depend on v (zero for a parameter without influence) is also a residual.
    residuals = [
        node
        for node in graph.nodes
        if node not in dependent and (any(user in dependent for user in node.users) or node in products)
    ]
    # Transforms of weights, scales of batch norm: once for all batches rather than with each of them.
    varying = descendants(graph, placeholders[num_fixed:])
    common = [node for node in residuals if node not in varying and node.op == "call_function"]
    residuals = [node for node in residuals if node not in common]
    shared = _subgraph(placeholders[:num_fixed], [node for node in inner if node not in varying], common)
    primal = _subgraph(
        placeholders[:num_primals], [node for node in inner if node not in dependent], [value, *residuals]
    )
    parts, tangents, results = [], placeholders[num_primals:], list(products)
    for group in groups:
        mine, tangents = tangents[: group.tangents], tangents[group.tangents :]
        wanted, results = results[: group.products], results[group.products :]
        reached = descendants(graph, mine)
        parts.append(_subgraph([*common, *residuals, *mine], [node for node in inner if node in reached], wanted))
    # Memory is counted before reuse of memory, which only reduces it.
    size = trace_bytes(shared, primal, parts)
    whole, inputs = _copy(parts[0]), len(common) + len(residuals)
    for part in parts:
        prefer_fast_products(part)
        reuse_memory(part)

    @functools.cache
    def restrict(block: tuple[int, ...]) -> Part:
        part = restricted(whole, inputs, block)
        prefer_fast_products(part)
        reuse_memory(part)
        return cast("Part", fx.GraphModule(constants, part).forward)

    independent = tuple(i for i, node in enumerate(placeholders[: groups[0].tangents]) if node not in influential)
    # forward, since calling the module prints its source to stderr if it raises, for example when memory runs out.
    return LinearTrace(
        fx.GraphModule(constants, shared).forward,
        fx.GraphModule(constants, primal).forward,
        tuple(fx.GraphModule(constants, part).forward for part in parts),
        independent,
        size,
        restrict,
    )


def _copy(graph: fx.Graph) -> fx.Graph:
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied


def _subgraph(inputs: Sequence[fx.Node], operations: Sequence[fx.Node], results: Sequence[fx.Node]) -> fx.Graph:
    graph, copied = fx.Graph(), {}
    for number, node in enumerate(inputs):
        copied[node] = graph.placeholder(f"input_{number}")
        copied[node].meta = node.meta
    for node in operations:
        copied[node] = graph.node_copy(node, copied.__getitem__)
    graph.output(tuple(copied[node] for node in results))
    graph.eliminate_dead_code()
    return graph
