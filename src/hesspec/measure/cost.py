"""Analytical cost model of a spectrum (computation, communication, memory) for hypothetical networks and devices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch

from hesspec.backend.memory import parse_memory
from hesspec.backend.memory_shares import BASIS_SHARE, PRODUCTS_SHARE
from hesspec.backend.suggest import unknown
from hesspec.krylov.run import PARTIAL_FROM
from hesspec.krylov.storage import STORAGES, Storage
from hesspec.matrices import DEFAULT_MATRICES, MATRICES
from hesspec.measure.cost_result import H100, Cost, Device, Way
from hesspec.measure.plan import ROWS, ROWS_WHEN_DUE, VECTORS

__all__ = ["cost"]

# All numbers are float32, hesspec's default.
ITEM: Final = torch.float32.itemsize
# Share of a device's memory that a measurement may use: the default shares of operators and basis.
USABLE: Final = PRODUCTS_SHARE + BASIS_SHARE

# Forward passes in a gradient: one forward, and a backward pass that costs two.
GRADIENT: Final = 3

# Whole vectors of p numbers on a device that holds the model: the model's parameters and the operator's copy of them;
# with several devices also the gathered vector, the summed product, that of a batch, and a temporary of the tangent
# pass. On a single device the last four are among those of a step (`VECTORS`).
PARAMETERS: Final = 2
WHOLE: Final = 4
# Vectors of a step that are stored in slices: the last two Lanczos vectors, the product, the residual.
SLICED: Final = 4
# Additional slices with sharded parameters: a copy from which both points are set, and two gradients.
POINTS: Final = 3
# Layers of a sharded model that are whole at the same time: the current one, the next one, and the gradients of both.
GATHERED: Final = 4
# Collectives of p numbers in a gradient of sharded parameters: gather in the forward pass, gather in the backward pass,
# scatter of the gradient. In a product of a whole model: gather of the vector, scatter of the product.
COLLECTIVES_SHARDED: Final = 3
COLLECTIVES_WHOLE: Final = 2
# Vectors that a step reads or writes besides the product and the basis: sums of the recurrence, four inner products and
# norms, scaling, storing.
TOUCHED: Final = 20

# Language models are assumed to have a width of 128 times the number of layers, 12 width^2 parameters per layer, heads
# of 64 and a vocabulary of 50,000 (GPT-2: 50,257; Llama 2: 32,000). Layers x width hardly depends on the first.
ASPECT: Final = 128
BY_LAYER: Final = 12
HEAD: Final = 64
VOCABULARY: Final = 50_000
# Numbers that a pass stores per token: per layer and unit of width, per layer, head and token of the context, and per
# word of the vocabulary. Traced passes from `PassBytes`, a gradient (with a fused attention kernel) from what autograd
# saves: GPT-2 of transformers with widths of 128 and 256, 2 and 4 layers.
KEPT_NUMBERS: Final = {"Hessian": (68, 4, 5), "GaussNewton": (34, 2, 3), "Residual": (68, 4, 5), "gradient": (28, 0, 2)}
# Memory of a running pass relative to what it stores: 1.2 (GPT-2) to 1.4 (small CNN).
WORKING: Final = 1.5
# Largest number of devices that is considered.
MOST_DEVICES: Final = 1 << 24


def cost(
    params: float,
    *,
    tokens: float | None = None,
    context: int = 2048,
    samples: float | None = None,
    flops_forward: float | None = None,
    activations: str | int | None = None,
    devices: int = 1,
    memory: str | int = "80GB",
    device: Device = H100,
    steps: int = 64,
    matrix: str = "Hessian",
    basis: str = "auto",
) -> Cost:
    """Estimate time and memory of `hesspec.spectrum` for a hypothetical network and devices.

    Parameters
    ----------
    params : float
        Number of parameters, p.
    tokens : float, optional
        Number of tokens in the data, for a language model.
    context : int
        Number of tokens in a sequence, T.
    samples, flops_forward : float, optional
        For any other network, instead of `tokens`: number of samples, and floating-point operations of a forward pass
        of one sample, counting a multiply-add as two.
    activations : str or int, optional
        Memory that the primal pass of one sample (a sequence for a language model) stores: "50MB", or a number of
        bytes. By default it is estimated for language models; for other networks it is left out of the memory, and no
        passes are assumed to be cached.
    devices : int
        Number of devices, R.
    memory : str or int
        Memory of a device: "80GB", or a number of bytes. 90% of it is used.
    device : Device
        Rates of each device.
    steps : int
        Number of Lanczos steps, m.
    matrix : {"Hessian", "GaussNewton", "Residual"}
        Curvature matrix.
    basis : {"auto", "full", "half"}
        Precision in which the Krylov basis is stored; "auto" uses "half" if "full" does not fit.

    Returns
    -------
    Cost

    Raises
    ------
    ValueError
        If an argument is out of range, or neither `tokens` nor `samples` is given.

    Notes
    -----
    All numbers are float32, there is one probe, and computation and communication do not overlap. There are N samples,
    at most ceil(N/R) on a device, and the forward pass of one takes F operations; for a language model N = tokens / T
    and F = T (2 p + 4 l d T), with l d = (p/12)^(2/3) / 128^(1/3) for l layers of width d = 128 l:

    - a product: 6 F N operations (Gauss-Newton: 4), plus those of the primal passes that are not cached, 2 F N in
      linear layers and 3 F N in convolutions (Gauss-Newton: 1); 6 F N as a central difference of two gradients;
    - communication of a device: 2 x 4 p (R - 1)/R bytes if it holds the whole model; with sharded parameters 2 x 3 x 4
      p (R - 1)/R bytes for each micro-batch of its share of the data;
    - rest of a step: 2 m/4 rows of the basis are read (2 m/2 below 262,144 parameters), and 20 vectors, each a slice
      p/R;
    - memory of a device: see the attributes of `Cost`; the basis is 4 m p/R bytes, or 2 m p/R.

    The formulas are derived and compared with measurements in docs/scaling.md.

    Examples
    --------
    >>> found = cost(124e6, tokens=1e8, context=1024, devices=8)
    >>> found.way, found.basis, found.fits
    ('whole', 'full', True)
    >>> found.bytes_communicated == 2 * 4 * 124e6 * 7 / 8
    True
    """
    p, n_devices = _whole("params", params), _whole("devices", devices)
    m = min(_whole("steps", steps), p)
    if matrix not in DEFAULT_MATRICES:
        raise ValueError(unknown("matrix", matrix, DEFAULT_MATRICES))
    if basis not in ("auto", "full", "half"):
        raise ValueError(unknown("basis for a hypothetical network", basis, ["auto", "full", "half"]))
    problem = _problem(p, tokens, context, samples, flops_forward, activations, matrix)
    size = parse_memory(memory)
    bases = ["full", "half"] if basis == "auto" else [basis]
    layouts = _Layouts(problem, matrix, m, int(USABLE * size))
    chosen = layouts.first_fit(n_devices, bases)
    fits = chosen is not None
    layout = chosen or layouts.smallest(n_devices, bases)
    share = -(-problem.samples // n_devices)
    operations: float = 2 * GRADIENT
    if layout.way == "whole":
        operations = MATRICES[matrix].tangent + (1 - layout.kept) * problem.primal
    others = (n_devices - 1) / n_devices
    collectives = COLLECTIVES_WHOLE if layout.way == "whole" else 2 * COLLECTIVES_SHARDED * layout.micro_batches
    row = STORAGES[layout.basis].row_bytes(-(-p // n_devices), torch.float32)
    rows = m * (ROWS_WHEN_DUE if p >= PARTIAL_FROM else ROWS)
    step_bytes = 2 * rows * row + TOUCHED * ITEM * -(-p // n_devices)
    return Cost(
        matrix=matrix,
        params=p,
        samples=problem.samples,
        tokens=problem.tokens,
        devices=n_devices,
        steps=m,
        way=layout.way,
        basis=layout.basis,
        fits=fits,
        kept=layout.kept,
        flops_forward=problem.samples * problem.flops,
        flops_matvec=problem.samples * problem.flops * operations,
        bytes_communicated=collectives * ITEM * p * others,
        seconds_compute=share * problem.flops * operations / device.flops,
        seconds_communicate=collectives * ITEM * p * others / device.bandwidth,
        seconds_step=step_bytes / device.memory_bandwidth,
        seconds_setup=share * problem.flops * (GRADIENT if layout.way == "sharded" else problem.primal) / device.flops,
        bytes_parameters=layout.parameters,
        bytes_vectors=layout.vectors,
        bytes_basis=layout.rows,
        bytes_passes=layout.passes,
        memory=size,
        least_devices=layouts.least(bases),
        full_from=layouts.least(["full"]),
        activations_known=problem.known,
        device=device,
    )


@dataclass(frozen=True)
class _Problem:
    """Network and data: operations of the forward pass of a sample, its primal pass relative to them, and its bytes.

    `kept` and `gradient` are the bytes that a pass of the matrix, and a gradient, store for a sample.
    """

    params: int
    samples: int
    tokens: int | None
    flops: float
    primal: int
    kept: float
    gradient: float
    known: bool


def _problem(
    p: int,
    tokens: float | None,
    context: int,
    samples: float | None,
    flops_forward: float | None,
    activations: str | int | None,
    matrix: str,
) -> _Problem:
    given = None if activations is None else parse_memory(activations)
    if tokens is not None:
        if samples is not None or flops_forward is not None:
            raise ValueError(
                "tokens are for a language model, samples and flops_forward for any other network; give either "
                "the first or the last two."
            )
        count, length = _whole("tokens", tokens), _whole("context", context)
        per_token = 2 * p + 4 * _layers_by_width(p) * length
        kept, gradient = (
            given if given is not None else length * _token_bytes(p, length, pass_) for pass_ in (matrix, "gradient")
        )
        return _Problem(
            p,
            -(-count // length),
            count,
            length * per_token,
            MATRICES[matrix].recomputed[0],
            kept,
            gradient,
            known=True,
        )
    if samples is None or flops_forward is None:
        raise ValueError(
            "The size of the data is missing. Give tokens for a language model; for any other network samples, and "
            "flops_forward, the floating-point operations of a forward pass of one of them."
        )
    if not flops_forward > 0 or not math.isfinite(flops_forward):
        raise ValueError(f"flops_forward is {flops_forward!r}; it must be a positive number.")
    size = float(given or 0)
    return _Problem(
        p,
        _whole("samples", samples),
        None,
        float(flops_forward),
        MATRICES[matrix].recomputed[1],
        size,
        size,
        known=given is not None,
    )


def _layers(p: int) -> float:
    """Number of layers of a language model with p parameters."""
    return max(1.0, math.cbrt(p / (BY_LAYER * ASPECT**2)))


def _layers_by_width(p: int) -> float:
    """Number of layers times width."""
    return ASPECT * _layers(p) ** 2


def _token_bytes(p: int, context: int, kind: str) -> float:
    by_width, by_score, by_word = KEPT_NUMBERS[kind]
    return ITEM * (_layers_by_width(p) * (by_width + by_score * context / HEAD) + by_word * VOCABULARY)


@dataclass(frozen=True)
class _Layout:
    """Memory of a device, in bytes, for one way of computing a spectrum."""

    way: Way
    basis: str
    kept: float
    micro_batches: int
    parameters: float
    vectors: float
    rows: float
    passes: float

    @property
    def bytes(self) -> float:
        return self.parameters + self.vectors + self.rows + self.passes


class _Layouts:
    """Ways of computing a spectrum, best first, and their memory on a device."""

    def __init__(self, problem: _Problem, matrix: str, steps: int, usable: int) -> None:
        self._problem, self._matrix, self._steps, self._usable = problem, matrix, steps, usable

    def first_fit(self, devices: int, bases: list[str]) -> _Layout | None:
        return next((layout for layout in self._all(devices, bases) if layout.bytes <= self._usable), None)

    def smallest(self, devices: int, bases: list[str]) -> _Layout:
        return min(self._all(devices, bases), key=lambda layout: layout.bytes)

    def least(self, bases: list[str]) -> int | None:
        """Smallest number of devices on which it fits, by bisection: more devices never need more memory each."""

        def fits(devices: int) -> bool:
            return self.first_fit(devices, bases) is not None

        if not fits(MOST_DEVICES):
            return None
        low, high = 0, MOST_DEVICES
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high

    def _all(self, devices: int, bases: list[str]) -> Iterator[_Layout]:
        yield from (self._whole(devices, name, STORAGES[name]) for name in bases)
        if devices > 1 and self._matrix == "Hessian":
            yield from (self._sharded(devices, name, STORAGES[name]) for name in bases)

    def _whole(self, devices: int, name: str, kept_as: Storage) -> _Layout:
        p, part = self._problem.params, -(-self._problem.params // devices)
        share, size = -(-self._problem.samples // devices), self._problem.kept
        vectors = ITEM * (VECTORS * p if devices == 1 else WHOLE * p + SLICED * part)
        rows = self._steps * kept_as.row_bytes(part, torch.float32)
        room = self._usable - ITEM * PARAMETERS * p - vectors - rows
        if not self._problem.known:
            kept = 0
        elif room >= (share + WORKING - 1) * size:
            kept = share
        else:
            kept = max(0, int((room - WORKING * size) // size))
        at_work = (WORKING if kept < share else WORKING - 1) * size
        return _Layout("whole", name, kept / share, 0, ITEM * PARAMETERS * p, vectors, rows, kept * size + at_work)

    def _sharded(self, devices: int, name: str, kept_as: Storage) -> _Layout:
        p, part = self._problem.params, -(-self._problem.params // devices)
        share, size = -(-self._problem.samples // devices), WORKING * self._problem.gradient
        # The parameters, their copy and the gathered layers; gradients count as vectors.
        parameters = ITEM * (2 * part + GATHERED * p / _layers(p))
        vectors = ITEM * (SLICED + POINTS - 1) * part
        rows = self._steps * kept_as.row_bytes(part, torch.float32)
        room = self._usable - parameters - vectors - rows
        together = min(share, max(1, int(room // size))) if size else share
        return _Layout("sharded", name, 0.0, -(-share // together), parameters, vectors, rows, together * size)


def _whole(name: str, value: float) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a positive number, such as 7e9.")
    return round(value)
