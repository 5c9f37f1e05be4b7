"""Predicted memory of passes over a batch, from the shapes in a graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from hesspec.backend.memory import is_out_of_memory

__all__ = ["BytesWritten", "PassBytes", "RandomOperationError", "draws", "is_view", "saved_bytes", "trace_bytes"]

aten: Any = torch.ops.aten

# A storage of a graph: the node that allocates it and the index of the node's result.
Storage = tuple[fx.Node, int]


class RandomOperationError(ValueError):
    """The model draws random numbers."""


class PassBytes(NamedTuple):
    """Bytes allocated by the passes over one batch, in addition to parameters, buffers, the batch and the vectors.

    Attributes
    ----------
    kept : int
        Residuals of the primal pass for the tangent passes.
    primal : int
        Peak of the primal pass, including residuals.
    tangent : int
        Additional peak of a tangent pass, including products.
    shared : int
        Memory shared by all batches of one shape.
    """

    kept: int
    primal: int
    tangent: int
    shared: int = 0

    @property
    def streamed(self) -> int:
        """Peak of a primal and a tangent pass, one after the other."""
        return max(self.primal, self.kept + self.tangent)

    @property
    def least(self) -> int:
        """Memory of passes if nothing is cached."""
        return self.shared + self.streamed


def trace_bytes(shared: fx.Graph, primal: fx.Graph, tangents: Sequence[fx.Graph]) -> PassBytes:
    """Bytes of a trace cut into `shared -> residuals`, `primal -> (value, *residuals)`, parts `-> products`."""
    _, *residuals = cast("Sequence[fx.Node]", primal.output_node().args[0])
    common = cast("Sequence[fx.Node]", shared.output_node().args[0])
    return PassBytes(_bytes_of(primal, residuals), _peak(primal), max(map(_peak, tangents)), _bytes_of(shared, common))


def _bytes_of(graph: fx.Graph, results: Sequence[fx.Node]) -> int:
    """Bytes of these results of a graph, excluding its inputs."""
    storages = _storages(graph)
    return sum(map(_size, {storage for node in results for storage in storages[node]}))


def _peak(graph: fx.Graph) -> int:
    """Peak memory when the graph runs node by node, including results but not inputs."""
    storages = _storages(graph)
    last: dict[Storage, fx.Node] = {}
    for node in graph.nodes:
        for source in (node, *node.all_input_nodes):
            last.update(dict.fromkeys(storages[source], node))
    dying: dict[fx.Node, list[Storage]] = {}
    for storage, node in last.items():
        dying.setdefault(node, []).append(storage)
    alive = peak = 0
    for node in graph.nodes:
        alive += sum(_size(storage) for storage in storages[node] if storage[0] is node)
        peak = max(peak, alive)
        alive -= sum(map(_size, dying.get(node, ())))
    return peak


def _storages(graph: fx.Graph) -> dict[fx.Node, tuple[Storage, ...]]:
    """Storages of each node's results; views share those of their base."""
    found: dict[fx.Node, tuple[Storage, ...]] = {}
    for node in graph.nodes:
        base = _base(node)
        if node.op == "output":
            found[node] = ()
        elif base is None:
            found[node] = tuple((node, i) for i in range(len(_values(node))))
        elif node.target is operator.getitem and len(found[base]) > 1:
            found[node] = (found[base][cast("int", node.args[1])],)
        else:
            found[node] = found[base]
    return found


def _base(node: fx.Node) -> fx.Node | None:
    """Return the base of a view, or the node itself."""
    if node.op != "call_function":
        return None
    return node.all_input_nodes[0] if node.target is operator.getitem or is_view(node.target) else None


def is_view(target: Any) -> bool:
    """Whether the result of an operation shares the memory of its first input."""
    if target is aten._unsafe_view.default:  # noqa: SLF001 - a view unknown to autograd
        return True
    schema = getattr(target, "_schema", None)
    alias = schema.returns[0].alias_info if schema is not None and schema.returns else None
    return alias is not None and not alias.is_write


def draws(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation draws random numbers with these arguments.

    Fused attention is marked as random because of dropout, but draws nothing if that is zero; likewise RNNs on CUDA.
    """
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    arguments = target._schema.arguments  # noqa: SLF001 - the operator's declaration
    given = {argument.name: argument.default_value for argument in arguments}
    given.update(zip(given, args, strict=False))
    given.update(kwargs)
    chances = [given[name] for name in ("p", "dropout", "dropout_p") if isinstance(given.get(name), int | float)]
    return 0 not in chances and not any(given.get(name) is False for name in ("train", "training"))


def _size(storage: Storage) -> int:
    node, place = storage
    if node.op != "call_function":
        return 0
    value = _values(node)[place]
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _values(node: fx.Node) -> Sequence[Any]:
    value = node.meta.get("val")
    return value if isinstance(value, tuple | list) else (value,)


def saved_bytes(build: Callable[[], Any], beside: Iterable[Tensor]) -> int:
    """Bytes that autograd saves for the graphs created by `build`, without the tensors in `beside`.

    If transforms of `torch.func` in the model forbid hooks on saved tensors, the bytes of all results are returned.
    """
    try:
        return _seen_by_hooks(build, beside)
    except RuntimeError as error:
        if is_out_of_memory(error) or "saved tensor hooks" not in str(error):
            raise
    with BytesWritten() as counter:
        build()
    return int(counter.bytes)


def _seen_by_hooks(build: Callable[[], Any], beside: Iterable[Tensor]) -> int:
    # Weak references to storages: tensors that share one count once, and addresses are not reused meanwhile.
    reference = cast("Callable[[Any], Any]", StorageWeakRef)
    given = {reference(storage) for storage in map(_storage_of, beside) if storage is not None}
    found: dict[Any, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = _storage_of(tensor)
        if storage is not None:
            found[reference(storage)] = storage.nbytes()
        # A graph that held its own results would never be freed.
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        graphs = build()  # noqa: F841 - kept alive until everything is counted
        # Tensors saved temporarily for a gradient in between are gone.
        return sum(size for storage, size in found.items() if storage not in given and not storage.expired())


def _storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """Return the storage of a tensor, if any; sparse ones have none of their own."""
    return tensor.untyped_storage() if tensor.layout == torch.strided and not tensor.is_nested else None


class BytesWritten(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the results of all operations within this context.

    Attributes
    ----------
    bytes : int
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count its results unless they are views."""
        result = func(*args, **(kwargs or {}))
        if not is_view(func):
            for value in result if isinstance(result, tuple | list) else (result,):
                if isinstance(value, Tensor):
                    self.bytes += value.numel() * value.element_size()
        return result
