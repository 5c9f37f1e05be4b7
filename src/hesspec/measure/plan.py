"""What a measurement will take: `hesspec.plan`, from one timed batch."""

from __future__ import annotations

import functools
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor

from hesspec.backend.heap import kept_heap
from hesspec.backend.memory import free_memory, in_words, parse_memory
from hesspec.backend.numbers import is_whole
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.lanczos import Lanczos
from hesspec.krylov.quadrature import measure, wasserstein_distance
from hesspec.krylov.run import PARTIAL_FROM
from hesspec.krylov.storage import STORAGES, Storage
from hesspec.krylov.vectors import Space, norm, random_vector
from hesspec.measure.spectrum import BASIS_SHARE, basis_in_words, how_kept
from hesspec.operators.base import KEPT_SHARE, CurvatureOperator

__all__ = ["Plan", "duration", "plan", "shares_of"]

# Lanczos steps on the first batch from which the number of steps for a wanted accuracy is extrapolated.
PILOT = 64
# Rates at which the error may fall with the number of steps: the theory's 1, and no more than what is plausible while
# eigenvalues are still being resolved.
RATES = (1.0, 3.0)
# Vectors of p numbers that a step has beside the basis: the last two Lanczos vectors, the product, the residual, and
# what makes the product.
VECTORS = 6
# Rows that a step reorthogonalises against on average, as a share of all in the end: where that is done in every step,
# and where it is done when it is due. The latter takes from a fifth of the steps to all (VGG11-BN, 8 images: 12 of
# 64 steps for the Hessian, 44 for G, and 64 with a half-width basis): half of them are planned for.
ROWS, ROWS_WHEN_DUE = 0.5, 0.25
# Timed steps and reorthogonalisations: the median of three leaves out one disturbance.
CALLS = 3


@dataclass(frozen=True)
class Plan:
    """A measurement before it is run.

    Attributes
    ----------
    matrix : str
        The operator's class.
    dimension : int
        p.
    samples, batches : int
        Number of samples and of batches.
    mode, reason : str
        How products are had, and why.
    kept : float
        Share of the data whose primal passes are kept; the rest is streamed.
    basis : str
        How the Krylov basis is kept (see `hesspec.spectrum`).
    steps, probes, matvecs : int
        Of the spectrum.
    seconds_setup : float
        Before the first product: traces and primal passes.
    seconds_matvec : float
        A product with a vector.
    seconds_step : float
        The rest of a Lanczos step: orthogonalisation, norms.
    seconds : float
        All of it.
    flops_matvec : float
        Floating-point operations of a product over all of the data.
    peak_bytes : int
        Most memory that a device takes: what the process has now, and what the measurement adds.
    devices : int
        Number of devices that the data is spread over. Seconds are those of this machine's device, divided by their
        number; communication is not in them.
    accuracy : float or None
        Expected Wasserstein-1 distance, relative to the mean of |lambda|, where it was asked for.
    """

    matrix: str
    dimension: int
    samples: int
    batches: int
    mode: str
    reason: str
    kept: float
    basis: str
    steps: int
    probes: int
    matvecs: int
    seconds_setup: float
    seconds_matvec: float
    seconds_step: float
    seconds: float
    flops_matvec: float
    peak_bytes: int
    devices: int
    accuracy: float | None

    def summary(self) -> dict[str, str]:
        """Names and values in words, as `repr` and the command line show them."""
        streamed = "" if self.kept >= 1 else f", {1 - self.kept:.0%} of the data streamed"
        rows = {
            "matrix": self.matrix,
            "parameters": f"{self.dimension:,}",
            "samples": f"{self.samples:,} in {self.batches} batch{'es' * (self.batches != 1)}",
            "mode": f"{self.mode}{streamed}",
            "basis": self.basis,
            "Lanczos steps": f"{self.steps} (probes: {self.probes}, matvecs: {self.matvecs})",
            "set-up": duration(self.seconds_setup),
            "matvec": f"{duration(self.seconds_matvec)}, {self.flops_matvec / 1e9:.3g} GFLOP",
            "rest of a step": duration(self.seconds_step),
            "total": duration(self.seconds),
            "peak memory": in_words(self.peak_bytes),
        }
        if self.devices > 1:
            rows["devices"] = f"{self.devices}, each as fast as this one; without communication"
        if self.accuracy is not None:
            rows["expected accuracy"] = f"Wasserstein-1 distance {self.accuracy:.2g} of the mean |eigenvalue|"
        return rows

    def __repr__(self) -> str:
        """Summary, a line each."""
        rows = self.summary()
        width = max(map(len, rows))
        return "Plan\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items())


@kept_heap()
def plan(
    operator: CurvatureOperator,
    *,
    steps: int | None = None,
    probes: int | None = None,
    accuracy: float | None = None,
    memory: str | int | None = None,
    basis: str = "auto",
    devices: int = 1,
) -> Plan:
    """Say what `hesspec.spectrum(operator)` will take, before it is run.

    Parameters
    ----------
    operator : CurvatureOperator
        Of hesspec. Its passes over the first batch are traced and timed; nothing of that is kept.
    steps, probes : int, optional
        As in `hesspec.spectrum`; 64 and 1 by default.
    accuracy : float, optional
        Wanted Wasserstein-1 distance to the true measure, relative to the mean of |lambda|. The cheapest steps and
        probes that are expected to reach it are planned, unless they are given.
    memory : str or int, optional
        Memory of a device, another one than this perhaps: "80GB", or a number of bytes. By default what is free on the
        operator's. Products and the Krylov basis share it as `hesspec.spectrum` shares what is free.
    basis : str
        As in `hesspec.spectrum`.
    devices : int
        Number of devices that the data is spread over.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If an argument is out of range.
    MemoryError
        If it cannot be measured with this memory.

    Notes
    -----
    The error of the bulk's quadrature falls like 1/steps (Bhattacharjee, Jayaram, C. Musco, C. Musco and Ray 2024), and
    faster as long as further eigenvalues are resolved. Size and rate are measured by 64 steps on the first batch, from
    the distances between the measures of 16, 32 and 64 steps. The error of sampling by one probe is the integral of
    sqrt(2 F (1 - F)/(p + 2)) over the bulk. Seconds are as good as the machine is quiet.
    """
    _check(steps, probes, accuracy, devices)
    if operator.ranks.size > 1:
        raise ValueError(
            f"The operator's data is shared by {operator.ranks.size} ranks; plan with an operator of all data on one "
            f"process, without group=, and devices={operator.ranks.size}."
        )
    p, device = operator.shape[0], operator.device
    # Before anything is timed: what that allocates is part of the prediction.
    before = _allocated(device)
    for_products, for_basis = (None, int(BASIS_SHARE * free_memory(device))) if memory is None else shares_of(memory)
    passes = operator.forecast(for_products, devices=devices)
    expected = None
    if accuracy is not None:
        errors = _errors(operator, passes.apply)
        probes = probes or max(1, math.ceil((2 * errors.sampling / accuracy) ** 2))
        left = max(accuracy - errors.sampling / math.sqrt(probes), accuracy / 2)
        steps = steps or min(p, max(8, 8 * math.ceil(errors.steps_for(left) / 8)))
        expected = errors.quadrature(steps) + errors.sampling / math.sqrt(probes)
    steps, probes = min(steps or 64, p), probes or 1
    kept = how_kept(operator, p, steps, basis, for_basis)
    storage = kept if isinstance(kept, Storage) else STORAGES["full"]
    rows = steps if isinstance(kept, Storage) else kept
    step = _seconds_of_step(operator, storage, rows)
    matvec = passes.seconds_product()
    others = passes.seconds_product(max(probes - 1, 1))
    products = steps * probes
    basis_bytes = rows * storage.row_bytes(p, operator.dtype) * min(probes, 2)
    on_device = storage.place == "device" or (storage.place == "host" and device.type == "cpu")
    vectors = VECTORS * p * operator.dtype.itemsize
    return Plan(
        matrix=type(operator).__name__,
        dimension=p,
        samples=operator.samples,
        batches=operator.batches,
        mode=passes.mode,
        reason=passes.why,
        kept=passes.kept,
        basis=basis_in_words(kept),
        steps=steps,
        probes=probes,
        # The first is taken twice.
        matvecs=products + 1,
        seconds_setup=passes.seconds_setup,
        seconds_matvec=matvec,
        seconds_step=step,
        seconds=passes.seconds_setup + (steps + 1) * matvec + (products - steps) * others + products * step,
        flops_matvec=passes.flops,
        peak_bytes=before + passes.peak_bytes + vectors + (basis_bytes if on_device else 0),
        devices=devices,
        accuracy=expected,
    )


def shares_of(memory: str | int) -> tuple[int, int]:
    """Bytes for the products and bytes for the Krylov basis out of one budget."""
    size = parse_memory(memory)
    products = int(size * KEPT_SHARE / (KEPT_SHARE + BASIS_SHARE))
    return products, size - products


def _check(steps: int | None, probes: int | None, accuracy: float | None, devices: int) -> None:
    for name, value in (("steps", steps), ("probes", probes), ("devices", devices)):
        if value is not None and not is_whole(value, 1):
            raise ValueError(f"{name} is {value!r}; it has to be a positive whole number.")
    if accuracy is not None and not accuracy > 0:
        raise ValueError(f"accuracy is {accuracy!r}; it has to be positive.")


@dataclass(frozen=True)
class _Errors:
    """Wasserstein-1 errors relative to the mean |lambda|: `size` at `PILOT` steps, falling at a rate; of one probe."""

    size: float
    rate: float
    sampling: float

    def quadrature(self, steps: int) -> float:
        """Error of as many steps."""
        return float(self.size * (PILOT / steps) ** self.rate)

    def steps_for(self, error: float) -> float:
        """Steps of which the error is no larger."""
        return float(PILOT * (self.size / error) ** (1 / self.rate))


def _errors(operator: CurvatureOperator, multiply: Callable[[Tensor], Tensor]) -> _Errors:
    """Errors seen in a run on the first batch."""
    p, generator = operator.shape[0], torch.Generator().manual_seed(0)
    start = random_vector(p, generator, dtype=operator.dtype, device=operator.device)
    lanczos = Lanczos(start, generator, storage=STORAGES["half"], partial=p >= PARTIAL_FROM)
    while len(lanczos) < min(PILOT, p) and not lanczos.finished:
        lanczos.step(multiply(lanczos.vector))
    if lanczos.exhausted:
        return _Errors(0.0, 1.0, 0.0)
    found = [measure(lanczos, p, steps) for steps in (PILOT, PILOT // 2, PILOT // 4)]
    points = [np.concatenate([m.eigenvalues, m.bulk_nodes]) for m in found]
    masses = [np.concatenate([m.eigenvalue_weights, m.bulk_weights]) for m in found]
    scale = float(masses[0] @ np.abs(points[0])) or 1.0
    late, early = (wasserstein_distance(points[i], points[i + 1], masses[i], masses[i + 1]) for i in (0, 1))
    rate = float(np.clip(np.log2(early / late), *RATES)) if late > 0 else RATES[0]
    order = np.argsort(found[0].bulk_nodes)
    nodes, below = found[0].bulk_nodes[order], np.cumsum(found[0].bulk_weights[order])
    spread = np.sqrt(2 * np.clip(below * (below[-1] - below), 0, None) / (p + 2))[:-1] if nodes.size else np.empty(0)
    # With errors c m^-rate the measures of m/2 and m steps differ by (2^rate - 1) times the error at m.
    return _Errors(late / (2**rate - 1) / scale, rate, float(np.diff(nodes) @ spread) / scale)


def _seconds_of_step(operator: CurvatureOperator, storage: Storage, rows: int) -> float:
    """Seconds of a Lanczos step beside its product, from steps with a vector in the product's place."""
    p, generator = operator.shape[0], torch.Generator().manual_seed(0)
    vectors = [random_vector(p, generator, dtype=operator.dtype, device=operator.device) for _ in range(2)]
    lanczos = Lanczos(vectors[0], generator, storage=storage)
    basis = KrylovBasis(Space(p), dtype=operator.dtype, device=operator.device, storage=storage)
    plain: list[float] = []
    while len(plain) < 1 + CALLS and not lanczos.finished:
        # Made before the clock starts: it stands for a product, which is timed by itself.
        image = torch.roll(lanczos.vector, 1) + torch.roll(lanczos.vector, -1)
        plain.append(_seconds(functools.partial(lanczos.step, image)))
    count = min(4, p)
    for _ in range(count):
        basis.append(vectors[0] / norm(vectors[0]))
    seconds = [_seconds(functools.partial(basis.orthogonalise, vectors[1].clone())) for _ in range(1 + CALLS)]
    row = statistics.median(seconds[1:]) / count
    # The first ones take memory that a run has at hand from then on.
    step = statistics.median(plain[1:] or plain or [0.0])
    return step + row * rows * (ROWS_WHEN_DUE if p >= PARTIAL_FROM else ROWS)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _allocated(device: torch.device) -> int:
    """Bytes that this process has on the device now."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process(os.getpid()).memory_info().rss)


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them, to three digits.

    Examples
    --------
    >>> [duration(seconds) for seconds in (0.0213, 90, 600, 40_000, 1e7)]
    ['21.3 ms', '90 s', '10 min', '11.1 h', '116 days']
    """
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.3g} min"
    hours = seconds / 3600
    return f"{hours:.3g} h" if hours < 72 else f"{hours / 24:,.0f} days"
