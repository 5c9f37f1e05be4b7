"""Elementwise operations next to max-pooling, computed at the maxima alone.

Max-pooling keeps one entry of each window. Its tangent gathers these entries, and its gradient scatters into zeros:
what is done elementwise to a tangent before it is gathered, and to a gradient after it is scattered, is needed at the
maxima only, a quarter of all entries for windows of 2x2. In networks of convolution, batch norm, ReLU and pooling, this
is most of the elementwise work of the largest layers.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import fx

from hesspec.operators.engine.graph.kernels import call
from hesspec.operators.engine.graph.nodes import alike

__all__ = ["pool_first"]

aten: Any = torch.ops.aten

# Operations on every entry, without sums.
ELEMENTWISE = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.neg.default,
    aten.mul.Scalar,
    aten.div.Scalar,
    aten.threshold_backward.default,
}
# Those of them that give zero where their first operand is zero; for products, where any operand is.
KEEP_ZEROS = ELEMENTWISE - {aten.add.Tensor, aten.sub.Tensor}
SCATTER = aten.max_pool2d_with_indices_backward.default
SUMS = {aten.sum.dim_IntList, aten.sum.default}
MAPS = 4  # dimensions of images
# Of max-pooling: the kernel has none; an empty stride is the kernel; padding, dilation, ceil_mode.
POOL_DEFAULTS: list[Any] = [None, [], [0, 0], [1, 1], False]
# Smallest ratio of the entries before and after pooling for which gathering pays off.
SMALLEST_RATIO = 2


class Pool(NamedTuple):
    """Max-pooling of a graph: its node, and the node of the indices of the maxima, (N, C, h, w)."""

    node: Any
    indices: Any


class Scattered(NamedTuple):
    """Tensor that is zero except at the maxima of a pool, where it has these values, (N, C, h, w)."""

    pool: Pool
    values: Any


def pool_first(graph: fx.Graph) -> None:
    """Move elementwise operations behind the gathering of maxima, and before their scattering.

    With s the scattering of values g into the maxima, a(s(g)) = s(a'(g)) for elementwise operations a that keep zeros,
    where other operands are gathered; sums of s(g) are sums of g.

    Parameters
    ----------
    graph : torch.fx.Graph
        Graph of pure operations, traced with fake tensors (`meta["val"]`), which is modified in place. Its results
        change by rounding, where sums are taken in another order.
    """
    sweep = _Sweep(graph)
    if sweep.pools:
        sweep.run()
        graph.eliminate_dead_code()


class _Sweep:
    """One pass over a graph, in its order."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self.pools = dict(filter(None, map(_pool, graph.nodes)))
        self._scattered: dict[fx.Node, Scattered] = {}
        self._gathered: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
        self._wholes: dict[fx.Node, fx.Node] = {}
        self._done: set[fx.Node] = set()

    def run(self) -> None:
        """Rewrite what can be."""
        for node in list(self._graph.nodes):
            # It says of the input only how large it is; in forward mode it is the tangent, which then has another user.
            if node.target is SCATTER and isinstance(node.args[-1], fx.Node) and node.args[-1] in self.pools:
                source = self.pools[node.args[-1]].node.args[0]
                if alike(node.args[1], source):
                    node.update_arg(1, source)
        for node in list(self._graph.nodes):
            if node.op == "call_function":
                with self._graph.inserting_before(node):
                    self._rewrite(node)
            self._done.add(node)

    def _rewrite(self, node: Any) -> None:
        target = node.target
        if target is aten.gather.default:
            self._gather(node)
        elif target is SCATTER and isinstance(node.args[-1], fx.Node) and node.args[-1] in self.pools:
            self._scattered[node] = Scattered(self.pools[node.args[-1]], node.args[0])
        elif not any(source in self._scattered for source in node.all_input_nodes):
            return
        elif target in ELEMENTWISE and (found := self._elementwise(node)) is not None:
            self._scattered[node] = found
        elif target in SUMS and _over_maps(node):
            values = self._scattered[node.args[0]].values
            node.replace_all_uses_with(call(self._graph, target, values, *node.args[1:], **node.kwargs))
        elif target is aten.native_batch_norm_backward.default and node.args[0] in self._scattered and not node.args[7]:
            self._normalisation(node)
        else:
            for source in node.all_input_nodes:
                if source in self._scattered and source.target is not SCATTER:
                    node.replace_input_with(source, self._whole(source))

    def _gather(self, node: Any) -> None:
        """Gather what a chain of elementwise operations takes, instead of its result."""
        flat, dimension, places = node.args[:3]
        indices, source = _viewed(places), _viewed(flat)
        if indices not in self.pools or source is None or dimension not in (-1, 2):
            return
        value = source.meta["val"]
        if value.dim() != MAPS or (*value.shape[:2], value.shape[2:].numel()) != flat.meta["val"].shape:
            return
        found = self._at(self.pools[indices], source)
        if found is not None:
            node.replace_all_uses_with(call(self._graph, aten.view.default, found, list(node.meta["val"].shape)))

    def _at(self, pool: Pool, node: Any) -> Any:
        """Entries of a node at the maxima, (N, C, h, w), or something that broadcasts to them; None if unknown."""
        if not isinstance(node, fx.Node):
            return node
        value, source = node.meta["val"], pool.node.args[0]
        if value.dim() == 0 or (value.dim() <= MAPS and value.shape[-2:] == (1, 1)):
            return node
        if value.shape != source.meta["val"].shape or not value.is_contiguous():
            return None
        key = pool.indices, node
        if key not in self._gathered:
            self._gathered[key] = self._new_at(pool, node)
        return self._gathered[key]

    def _new_at(self, pool: Pool, node: Any) -> Any:
        scattered = self._scattered.get(node)
        if scattered is not None and scattered.pool == pool and _apart(pool):
            return scattered.values
        if node is pool.node.args[0]:
            maxima = next((user for user in pool.node.users if user.args[1] == 0 and user in self._done), None)
            if maxima is not None:
                return maxima
        if node.target in ELEMENTWISE and len(node.users) == 1:
            operands = [self._at(pool, operand) for operand in node.args]
            if None not in operands:
                return call(self._graph, node.target, *operands, **node.kwargs)
        samples, channels, *maps = node.meta["val"].shape
        shape = pool.indices.meta["val"].shape
        flat = call(self._graph, aten.view.default, node, [samples, channels, maps[0] * maps[1]])
        places = call(self._graph, aten.view.default, pool.indices, [samples, channels, shape[2:].numel()])
        found = call(self._graph, aten.gather.default, flat, 2, places)
        return call(self._graph, aten.view.default, found, list(shape))

    def _elementwise(self, node: Any) -> Scattered | None:
        """Return the result of an elementwise operation as values at the maxima, if it is zero elsewhere."""
        places = [i for i, operand in enumerate(node.args) if operand in self._scattered]
        first = self._scattered[node.args[places[0]]]
        if node.meta["val"].shape != first.pool.node.args[0].meta["val"].shape:
            return None
        if node.target in KEEP_ZEROS:
            if places[0] != 0 and node.target is not aten.mul.Tensor:
                return None
            operands = [
                first.values if i == places[0] else self._at(first.pool, operand) for i, operand in enumerate(node.args)
            ]
        else:
            both = [self._scattered.get(operand) for operand in node.args]
            if any(part is None or part.pool != first.pool for part in both):
                return None
            operands = [part.values for part in both if part is not None]
        if None in operands:
            return None
        return Scattered(first.pool, call(self._graph, node.target, *operands, **node.kwargs))

    def _normalisation(self, node: Any) -> None:
        """Gradient of batch norm with constant statistics."""
        gradient, inputs, weight, mean, variance, _, _, _, eps, _ = node.args
        pool, values = self._scattered[gradient]
        entries = self._at(pool, inputs)
        if entries is None:
            return
        graph, shape = self._graph, [1, -1, 1, 1]
        scale = call(graph, aten.rsqrt.default, call(graph, aten.add.Scalar, variance, eps))
        factor = scale if weight is None else call(graph, aten.mul.Tensor, weight, scale)
        for user in list(node.users):
            if user.args[1] == 0:
                factors = call(graph, aten.view.default, factor, shape)
                self._scattered[user] = Scattered(pool, call(graph, aten.mul.Tensor, values, factors))
                continue
            result = values
            if user.args[1] == 1:
                centred = call(graph, aten.sub.Tensor, entries, call(graph, aten.view.default, mean, shape))
                result = call(graph, aten.mul.Tensor, values, centred)
            result = call(graph, aten.sum.dim_IntList, result, [0, 2, 3])
            if user.args[1] == 1:
                result = call(graph, aten.mul.Tensor, result, scale)
            user.replace_all_uses_with(result)

    def _whole(self, node: fx.Node) -> fx.Node:
        """The tensor itself, for this and later users: values scattered into zeros."""
        if node not in self._wholes:
            pool, values = self._scattered[node]
            source, *window = pool.node.args
            window += POOL_DEFAULTS[len(window) :]
            self._wholes[node] = call(self._graph, SCATTER, values, source, *window, pool.indices)
        return self._wholes[node]


def _pool(node: Any) -> tuple[fx.Node, Pool] | None:
    """The indices of a max-pooling that shrinks its maps, and the pooling, if the node is these indices."""
    if node.target is not operator.getitem or node.args[1] != 1:
        return None
    pool: Any = node.args[0]
    if pool.target is not aten.max_pool2d_with_indices.default:
        return None
    before, after = pool.args[0].meta["val"], node.meta["val"]
    small = before.dim() == MAPS and SMALLEST_RATIO * after.numel() <= before.numel()
    return (node, Pool(pool, node)) if small and before.is_contiguous() and after.is_contiguous() else None


def _apart(pool: Pool) -> bool:
    """Whether windows do not overlap, so that no entry is a maximum twice."""
    kernel, *rest = pool.node.args[1:]
    stride = rest[0] if rest and rest[0] else kernel
    return all(step >= size for step, size in zip(stride, kernel, strict=False)) and len(stride) == len(kernel)


def _viewed(node: Any) -> Any:
    """The argument of a view."""
    if isinstance(node, fx.Node) and node.target in (aten.view.default, aten.reshape.default):
        return node.args[0]
    return None


def _over_maps(node: Any) -> bool:
    """Whether a sum is over all pixels at least."""
    if node.target is aten.sum.default:
        return True
    return {2, 3} <= {dimension % MAPS for dimension in node.args[1]}
