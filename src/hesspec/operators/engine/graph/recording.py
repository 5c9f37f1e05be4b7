"""Recording of the operations of a function as a graph, by running it once with fake tensors.

`torch.fx.experimental.proxy_tensor.make_fx` records the same graph, for every use that PyTorch has for one: with
proxies of tensors and of symbolic sizes, stacks, modules and constants, which take three quarters of its time. Here
each operation becomes a node as soon as it has run.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, cast

import torch
import torch._functorch.config
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, autograd_would_have_decomposed

from hesspec.operators.engine.graph.fakes import FakeResults, without_grad

__all__ = ["UnsoundTraceError", "is_query", "record"]

aten: Any = torch.ops.aten

# Other subclasses of Tensor run code of their own first.
RECORDED = (Tensor, nn.Parameter, nn.Buffer, FakeTensor)

# Half of all that is asked are these, by PyTorch's autograd.
QUICK: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        torch.ops.prim.device.default: lambda tensor: tensor.fake_device,
        aten.is_same_size.default: lambda one, other: one.shape == other.shape,
        aten._has_same_storage_numel.default: lambda one, other: _numel(one) == _numel(other),  # noqa: SLF001
    }
)


class UnsoundTraceError(RuntimeError):
    """A traced graph is not known to compute the function that it was traced from."""


def record(function: Callable[..., Sequence[Tensor] | Tensor], arguments: Sequence[Tensor]) -> fx.Graph:
    """Record the ATen operations that a function of tensors runs.

    Parameters
    ----------
    function : callable
        `function(*arguments)` returns a tensor, or several.
    arguments : sequence of Tensor
        Examples, whose shapes, strides, dtypes and devices matter, and values do not.

    Returns
    -------
    torch.fx.Graph
        One placeholder for each argument, `get_attr` nodes for all other tensors that the function reads, and a
        `call_function` node for each operation with a tensor among its results, or without results. Each has the fake
        value of its result in `meta["val"]`. Attributes are in `owning_module`.

    Raises
    ------
    UnsoundTraceError
        If the function runs a higher-order operation, or reads a fake tensor that it did not compute.
    Exception
        Any error of PyTorch with fake tensors, such as control flow that depends on values.
    """
    # Addresses of fake tensors mean nothing.
    with torch._functorch.config.patch(fake_tensor_allow_unsafe_data_ptr_access=False):  # noqa: SLF001
        fakes = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = _Recorder(fakes)
    given = [fakes.from_tensor(argument) for argument in arguments]
    recorder.place(given)
    # The cache of casts would hide operations. Compiled code runs eagerly, as do conditions, which compile
    # themselves.
    with torch.compiler.set_stance("force_eager"), fakes, recorder, _without_cached_casts():
        results = function(*given)
    return recorder.finished(results)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds every operation that runs within this context to a graph."""

    supports_higher_order_operators = True

    def __init__(self, fakes: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fakes, self._results = fakes, FakeResults(fakes)
        self._root = nn.Module()
        self._graph = fx.Graph(cast("fx.GraphModule", self._root))
        # Nodes by identities of tensors, which must not be used again meanwhile.
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Tensor] = []

    def place(self, arguments: Sequence[Tensor]) -> None:
        """Add placeholders."""
        for number, argument in enumerate(arguments):
            self._know(argument, self._graph.placeholder(f"input_{number}"))

    def finished(self, results: Sequence[Tensor] | Tensor) -> fx.Graph:
        """Add the output, and return the graph."""
        self._graph.output(self._argument(tuple(results) if isinstance(results, list) else results))
        for node in self._graph.nodes:
            # Computed by PyTorch's autograd outside of any transform: its graph is of no use. Not the object that the
            # function got, as what is left of these is what it keeps between calls.
            node.meta["val"] = _detached(node.meta.get("val"))
        return self._graph

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation with fake tensors, and record it."""
        kwargs = dict(kwargs or {})
        if not isinstance(func, torch._ops.OpOverload):  # noqa: SLF001
            raise UnsoundTraceError(
                f"{func} runs other functions, any of which writes into one of its arguments, or may"
            )
        if is_query(func):
            quick = QUICK.get(func)
            of_fakes = quick is not None and all(type(value) is FakeTensor for value in args)
            return quick(*args) if quick is not None and of_fakes else func(*args, **kwargs)
        tensors = list(_tensors((args, kwargs)))
        if any(type(tensor) not in RECORDED for tensor in tensors):
            return NotImplemented
        if _is_composite(func) and autograd_would_have_decomposed(func, tensors):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        # Before the operation, which may write into them.
        nodes = self._argument(tuple(args)), self._argument(kwargs)
        result = self._results.of(func, args, kwargs)
        # `lift_fresh` returns its argument, a constant that later operations would write into.
        lasting = aten.lift_fresh_copy.default if func is aten.lift_fresh.default else func
        self._know(result, self._graph.call_function(lasting, *nodes))
        return result

    def _know(self, result: Any, node: fx.Node) -> None:
        """Remember the node of a result, which may be several tensors."""
        node.meta["val"] = result
        if isinstance(result, Tensor):
            self._nodes[id(result)] = node
            self._alive.append(result)
        elif isinstance(result, list | tuple):
            for place, part in enumerate(result):
                if isinstance(part, Tensor | list | tuple):
                    self._know(part, self._graph.call_function(operator.getitem, (node, place)))

    def _argument(self, value: Any) -> Any:
        """Return the argument of a node for one of an operation."""
        if isinstance(value, Tensor):
            return self._nodes[id(value)] if id(value) in self._nodes else self._constant(value)
        if isinstance(value, list | tuple):
            return type(value)([self._argument(part) for part in value])
        if isinstance(value, dict):
            return {name: self._argument(part) for name, part in value.items()}
        return value

    def _constant(self, tensor: Tensor) -> fx.Node:
        """Add a tensor that is neither an argument nor computed."""
        if isinstance(tensor, FakeTensor):
            raise UnsoundTraceError("a tensor without values is used that was not computed here")
        name = f"constant_{len(self._alive)}"
        self._root.register_buffer(name, tensor)
        node = self._graph.create_node("get_attr", name)
        node.meta["val"] = self._fakes.from_tensor(tensor)
        self._nodes[id(tensor)] = node
        self._alive.append(tensor)
        return node


@contextmanager
def _without_cached_casts() -> Iterator[None]:
    """Let autocast cast a weight at each use: a cast from elsewhere would be a constant."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors among the arguments of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _numel(tensor: Tensor) -> int:
    """Return the number of entries that a tensor's storage has room for."""
    return tensor.untyped_storage().nbytes() // tensor.itemsize


def _detached(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_detached, value))
    if not isinstance(value, Tensor):
        return value
    return without_grad(value) if type(value) is FakeTensor else value.detach()


@functools.cache
def _is_composite(func: Any) -> bool:
    """Whether an operation is a function of others, which PyTorch's autograd runs instead."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(  # noqa: SLF001
        func.name(), "CompositeImplicitAutograd"
    )


@functools.cache
def is_query(func: Any) -> bool:
    """Whether an operation only says something about tensors, such as whether they have one shape."""
    schema = func._schema  # noqa: SLF001 - the operator's declaration
    results = [str(result.type) for result in schema.returns]
    return bool(results) and not schema.is_mutable and not any("Tensor" in name for name in results)
