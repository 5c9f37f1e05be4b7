"""Predicted cost of passes over a batch: bytes from the graph, seconds from operation counts.

Predictions depend only on shapes, never on a clock: the same problem is always computed in the same way, with the same
results bit for bit.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hesspec.backend.memory import is_out_of_memory

__all__ = [
    "ForwardWork",
    "PassBytes",
    "RandomOperationError",
    "count_work",
    "draws",
    "is_view",
    "saved_bytes",
    "trace_bytes",
    "trace_pays",
]

aten: Any = torch.ops.aten

# A storage of a graph: the node that allocates it and the index of the node's result.
Storage = tuple[fx.Node, int]


# A spectrum takes 64 products by default, over which a trace must pay off.
PRODUCTS = 64
# Seconds that tracing takes for each operation of a forward pass. Measured on one CPU core (torch 2.14), Hessian and
# Gauss-Newton: MLP of 24 operations 0.014 and 0.005; CNN, 32: 0.018 and 0.007; encoder, 522: 0.009 and 0.005;
# ResNet18, 148: 0.030 and 0.010.
TRACE_SECONDS = 0.02
# Seconds that a traced product is faster than one by double backward, for each operation, each byte written and each
# floating-point operation of a forward pass. CPU: rough fit to the measured differences, 0.2 ms (MLP, 100 samples), 0.9
# ms (CNN, 100 digits), 14 ms (1,000 digits), 0.3 s (1,000 images 32x32), 53 ms (encoder, 64 sequences) and 1.0 s
# (VGG11-BN, 256 images): these span orders of magnitude, and near the border either mode will do. CUDA: not measured;
# the same cost per launch is assumed, and a fraction of an H100's rates for the rest.
SAVED_SECONDS = {"cpu": (8e-6, 5e-10, 8e-12), "cuda": (8e-6, 4e-12, 2e-13)}


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


class ForwardWork(NamedTuple):
    """Work of the forward pass of a batch: kernels called, floating-point operations, bytes written."""

    operations: int
    flops: int
    bytes: int


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
    with _Counter(random=True) as counter:
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


def count_work(forward: Callable[[], Any]) -> ForwardWork:
    """Count the work of a forward pass.

    Raises
    ------
    RandomOperationError
        If the forward pass draws random numbers.
    """
    with FlopCounterMode(display=False) as flops, _Counter() as counter:
        forward()
    return ForwardWork(counter.operations, flops.get_total_flops(), counter.bytes)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, *, random: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.bytes = 0
        # Whether random numbers may be drawn.
        self._random = random

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not self._random and draws(func, args, kwargs or {}):
            raise RandomOperationError(str(func))
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        if is_view(func):
            return result
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.bytes += value.numel() * value.element_size()
        return result


def trace_pays(
    work: ForwardWork, *, batches: int, scale: float, shapes: int, points: int, device: torch.device
) -> tuple[bool, str]:
    """Predict whether tracing saves more than it costs over `PRODUCTS` products at each point; also as text.

    Parameters
    ----------
    work : ForwardWork
        Work of the forward pass of one batch.
    batches : int
        Number of batches.
    scale : float
        Number of samples in all batches relative to this one.
    shapes : int
        Number of distinct batch shapes, each of which is traced separately.
    points : int
        Number of points, with this number of products each.
    device : torch.device
    """
    by_operation, by_byte, by_flop = SAVED_SECONDS["cuda" if device.type == "cuda" else "cpu"]
    product = batches * work.operations * by_operation + scale * (work.bytes * by_byte + work.flops * by_flop)
    products = PRODUCTS * points
    cost, saving = shapes * work.operations * TRACE_SECONDS, products * product
    words = f"predicted {cost:.2g} s for tracing, {saving:.2g} s saved in {products} products"
    return saving > cost, f"a trace {'pays off' if saving > cost else 'does not pay off'}: {words}"
