"""Predicted seconds of a trace, and those that it saves, from the operations of a forward pass.

Predictions depend only on shapes, never on a clock: the same problem is always computed in the same way, with the same
results bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hesspec.operators.engine.budget import BytesWritten, RandomOperationError, draws, is_view
from hesspec.operators.engine.graph.fakes import form_of
from hesspec.operators.engine.graph.recording import is_query

__all__ = [
    "GAUSS_NEWTON",
    "HESSIAN",
    "RESIDUAL",
    "ForwardWork",
    "TraceShares",
    "count_work",
    "seconds_saved",
    "trace_pays",
]

aten: Any = torch.ops.aten

# Products that are assumed where their number is not known: those of a spectrum by default.
PRODUCTS = 64


class _Kind(NamedTuple):
    """Seconds of a trace of the Hessian for an operation of the forward pass, and more for the first with its shapes.

    A trace also records the operations of three derivatives of each, which the kinds differ by: a matrix product
    becomes about 40 operations, a normalisation 130, a nonlinear function 15. Results are remembered by shapes
    (`hesspec.operators.engine.graph.fakes`).
    """

    each: float
    first: float


# Fitted to the CPU seconds of traces of 18 networks (convolutional and residual networks, transformers, recurrent
# networks, multilayer perceptrons, a U-Net) on one thread of an AMD EPYC, torch 2.14. Errors on other networks are in
# docs/guide/memory-and-speed.md.
TRACE_START = 0.01
PRODUCT, NORMALISATION = _Kind(0.0050, 0.011), _Kind(0.027, 0.011)
NONLINEAR, OTHER, VIEW = _Kind(0.0044, 0.0), _Kind(0.0025, 0.0), _Kind(0.0, 0.0)
PRODUCTS_OF_MATRICES = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.mv, aten.dot, aten.convolution}
NORMALISATIONS = {
    aten.native_batch_norm,
    aten._native_batch_norm_legit,  # noqa: SLF001 - names of ATen
    aten._native_batch_norm_legit_no_training,  # noqa: SLF001
    aten.cudnn_batch_norm,
    aten.native_group_norm,
    aten.native_layer_norm,
    aten._fused_rms_norm,  # noqa: SLF001
}
# Nonlinear without being elementwise, or without being declared so.
ALSO_NONLINEAR = {
    aten._softmax,  # noqa: SLF001
    aten._safe_softmax,  # noqa: SLF001
    aten._log_softmax,  # noqa: SLF001
    aten.logsumexp,
    aten.hardswish,
    aten.hardswish_,
}
# Elementwise and linear, or constant.
LINEAR = {
    aten.add,
    aten.add_,
    aten.sub,
    aten.sub_,
    aten.neg,
    aten.clone,
    aten.where,
    aten.masked_fill,
    aten.eq,
    aten.ne,
    aten.lt,
    aten.le,
    aten.gt,
    aten.ge,
    aten.logical_and,
    aten.logical_not,
}
# Seconds that a traced product is faster than one by double backward, for each operation, each byte written and each
# floating-point operation of a forward pass. CPU: fitted to the same networks with small and large batches. Operations
# cost time, as Python runs those of a trace. CUDA: not measured; the same cost of operations is assumed, and a fraction
# of an H100's rates for the rest.
SAVED_SECONDS = {"cpu": (-8e-6, 1.5e-10, 3.3e-11), "cuda": (-8e-6, 4e-12, 2e-13)}


class TraceShares(NamedTuple):
    """Seconds of a trace for operations of the forward pass, relative to those of a trace of the Hessian.

    Attributes
    ----------
    each : float
        Of each operation of the model.
    shapes : float
        Of the first with its shapes, and of each normalisation.
    loss : float
        Of all operations of the loss.
    """

    each: float
    shapes: float
    loss: float


HESSIAN = TraceShares(1.0, 1.0, 1.0)
# Fitted to 59 networks of benchmarks/zoo, and tried on 28 others: see docs/guide/memory-and-speed.md.
GAUSS_NEWTON, RESIDUAL = TraceShares(0.95, 0.55, 0.23), TraceShares(1.0, 1.0, 0.3)


class ForwardWork(NamedTuple):
    """Work of the forward pass of a batch.

    Attributes
    ----------
    operations : int
        Kernels called. Queries of tensors, such as for their device, and views are none.
    flops : int
        Floating-point operations.
    bytes : int
        Bytes written.
    trace_seconds : float
        Predicted seconds of a trace of the matrix.
    """

    operations: int
    flops: int
    bytes: int
    trace_seconds: float


def count_work(
    forward: Callable[[], Any], loss: Callable[[Any], Any] | None = None, shares: TraceShares = HESSIAN
) -> ForwardWork:
    """Count the work of a forward pass.

    Parameters
    ----------
    forward : callable
        Computes the outputs of the model.
    loss : callable, optional
        Computes the loss of these outputs.
    shares : TraceShares, optional
        Those of the matrix that is traced.

    Raises
    ------
    RandomOperationError
        If the forward pass draws random numbers.
    """
    with FlopCounterMode(display=False) as flops, BytesWritten() as written, _Counter(shares) as counter:
        outputs = forward()
        counter.shares = TraceShares(shares.loss, shares.loss, shares.loss)
        if loss is not None:
            loss(outputs)
    return ForwardWork(counter.operations, flops.get_total_flops(), written.bytes, counter.trace_seconds)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, shares: TraceShares) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shares = shares
        self.operations, self.trace_seconds = 0, TRACE_START
        self._forms: set[Hashable] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if draws(func, args, kwargs):
            raise RandomOperationError(str(func))
        kind = _kind(func)
        if kind is not VIEW:
            self.operations += 1
            self.trace_seconds += kind.each * (self.shares.shapes if kind is NORMALISATION else self.shares.each)
        if kind.first:
            form = form_of(func, args, kwargs)
            if form is None or form not in self._forms:
                self.trace_seconds += kind.first * self.shares.shapes
                self._forms.add(form)
        return func(*args, **kwargs)


@functools.cache
def _kind(func: Any) -> _Kind:
    if not isinstance(func, torch._ops.OpOverload):  # noqa: SLF001 - a higher-order operation
        return OTHER
    if is_query(func) or is_view(func):
        return VIEW
    packet = func.overloadpacket
    if packet in PRODUCTS_OF_MATRICES:
        return PRODUCT
    if packet in NORMALISATIONS:
        return NORMALISATION
    elementwise = torch.Tag.pointwise in func.tags and packet not in LINEAR
    return NONLINEAR if elementwise or packet in ALSO_NONLINEAR else OTHER


def seconds_saved(work: ForwardWork, batches: int, scale: float, device: torch.device) -> float:
    """Predict by how many seconds a traced product is faster than one by double backward; see `trace_pays`."""
    by_operation, by_byte, by_flop = SAVED_SECONDS["cuda" if device.type == "cuda" else "cpu"]
    return batches * work.operations * by_operation + scale * (work.bytes * by_byte + work.flops * by_flop)


def trace_pays(
    work: ForwardWork,
    *,
    batches: int,
    scale: float,
    shapes: int,
    points: int,
    device: torch.device,
    products: int | None = None,
) -> tuple[bool, str]:
    """Predict whether tracing saves more than it costs over all products; also as text.

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
        Number of points.
    device : torch.device
    products : int, optional
        Number of products at each point; `PRODUCTS` if it is not known.
    """
    products = (PRODUCTS if products is None else products) * points
    cost, saving = shapes * work.trace_seconds, products * seconds_saved(work, batches, scale, device)
    saved = f"{saving:.2g} s" if saving > 0 else "nothing"
    words = f"predicted {cost:.2g} s for tracing, {saved} saved in {products} products"
    return saving > cost, f"a trace {'pays off' if saving > cost else 'does not pay off'}: {words}"
