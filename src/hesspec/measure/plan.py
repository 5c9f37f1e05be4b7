"""Prediction of time and memory of a measurement from one timed batch: `hesspec.plan`."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hesspec.backend.arithmetic import full_float32
from hesspec.backend.host_memory import resident_memory
from hesspec.backend.memory import in_words
from hesspec.backend.memory_shares import free_shares, shares_of
from hesspec.backend.number_text import duration
from hesspec.backend.numbers import check_counts
from hesspec.backend.shown import Shown
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.lanczos import Lanczos
from hesspec.krylov.quadrature import spectral_measure, wasserstein_distance
from hesspec.krylov.run import PARTIAL_FROM
from hesspec.krylov.storage import STORAGES, Storage
from hesspec.krylov.vectors import Space, norm, random_vector
from hesspec.measure.basis_memory import choose_storage, storage_text
from hesspec.operators.base import CurvatureOperator

__all__ = ["Plan", "plan"]

# Lanczos steps on the first batch, from which the number of steps for a requested accuracy is extrapolated.
PILOT = 64
# Rates at which the error may decrease with the number of steps: at least 1, by theory, and at most what is plausible
# while further eigenvalues are being resolved.
RATES = (1.0, 3.0)
# Vectors of p numbers that a step holds besides the basis: the last two Lanczos vectors, the product, the residual, and
# those of the product itself.
VECTORS = 6
# Rows against which a step reorthogonalises on average, as a share of the final number: with reorthogonalisation in
# every step, and only when required. The latter occurs in a fifth of the steps to all of them (VGG11-BN, 8 images, when
# each pass was for one vector: 12 of 64 steps for the Hessian, 44 for G, and 64 with a half-precision basis); half of
# them are assumed.
ROWS, ROWS_WHEN_DUE = 0.5, 0.25
# Number of timed steps and reorthogonalisations: a median of three ignores one disturbance.
CALLS = 3


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """Predicted time and memory of a measurement.

    Attributes
    ----------
    matrix : str
        Name of the operator's class.
    dimension : int
        Number of parameters, p.
    samples, batches : int
        Number of samples and of batches.
    mode, reason : str
        How products are computed ("traced", "double backward", ...), and why.
    kept : float
        Share of the data whose primal passes are cached; those of the rest are recomputed in every product.
    basis : str
        How the Krylov basis is stored (see `hesspec.spectrum`).
    steps, probes, matvecs : int
        Number of Lanczos steps per probe, of probes, and of products.
    seconds_setup : float
        Seconds before the first product: tracing and primal passes.
    seconds_matvec : float
        Seconds of a product with a vector.
    seconds_step : float
        Seconds of the rest of a Lanczos step: orthogonalisation, norms.
    seconds : float
        Seconds of the whole measurement.
    flops_matvec : float
        Floating-point operations of a product over all data.
    peak_bytes : int
        Peak memory of a device in bytes: what the process uses now plus what the measurement adds.
    devices : int
        Number of devices that share the data. Seconds are those of this machine's device divided by their number,
        without communication.
    accuracy : float or None
        Expected Wasserstein-1 distance relative to the mean of |lambda|, if an accuracy was requested.
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
        """Names and values as text, for `repr` and the command line."""
        streamed = "" if self.kept >= 1 else f", {1 - self.kept:.0%} of the data recomputed"
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


@full_float32()
def plan(
    operator: CurvatureOperator,
    *,
    steps: int | None = None,
    probes: int | None = None,
    accuracy: float | None = None,
    memory: str | int | None = None,
    basis: str = "auto",
    offload: str | None = None,
    devices: int = 1,
) -> Plan:
    """Predict time and memory of `hesspec.spectrum(operator)`, without running it.

    Parameters
    ----------
    operator : CurvatureOperator
        Operator of hesspec. Its passes over the first batch are traced and timed; nothing is cached.
    steps, probes : int, optional
        As in `hesspec.spectrum`; 64 and 1 by default.
    accuracy : float, optional
        Requested Wasserstein-1 distance to the true measure, relative to the mean of |lambda|. The cheapest numbers of
        steps and probes that are expected to reach it are chosen, unless they are given.
    memory : str or int, optional
        Memory of a device, possibly a different one: "80GB", or a number of bytes. By default the free memory of the
        operator's device. Products and the Krylov basis share it in the same proportion as in `hesspec.spectrum`.
    basis, offload
        As in `hesspec.spectrum`.
    devices : int
        Number of devices that share the data.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If an argument is out of range.
    MemoryError
        If this memory is not enough for the measurement.

    Notes
    -----
    The error of the bulk's quadrature decreases like 1/steps (Bhattacharjee, Jayaram, C. Musco, C. Musco and Ray 2024),
    and faster as long as further eigenvalues are resolved. Its size and rate are estimated from 64 steps on the first
    batch, by the distances between the measures from 16, 32 and 64 steps. The sampling error of one probe is the
    integral of sqrt(2 F (1 - F)/(p + 2)) over the bulk. Times are reliable only if nothing else runs on the machine.
    """
    _check(steps, probes, accuracy, devices)
    if operator.ranks.size > 1:
        raise ValueError(
            f"The operator's data is shared by {operator.ranks.size} ranks; plan with an operator of all data in one "
            f"process, without group=, and devices={operator.ranks.size}."
        )
    p, device = operator.shape[0], operator.device
    # Taken before timing, whose own allocations are part of the prediction.
    before = _allocated(device)
    for_products, for_basis = (None, free_shares(device).basis) if memory is None else shares_of(memory)
    passes = operator.forecast(for_products, devices=devices, products=min(steps or 64, p) * (probes or 1))
    expected = None
    if accuracy is not None:
        errors = _errors(operator, passes.apply)
        probes = probes or max(1, math.ceil((2 * errors.sampling / accuracy) ** 2))
        left = max(accuracy - errors.sampling / math.sqrt(probes), accuracy / 2)
        steps = steps or min(p, max(8, 8 * math.ceil(errors.steps_for(left) / 8)))
        expected = errors.quadrature(steps) + errors.sampling / math.sqrt(probes)
        # A trace may pay off for their number only.
        passes = operator.forecast(for_products, devices=devices, products=min(steps, p) * probes)
    steps, probes = min(steps or 64, p), probes or 1
    kept = choose_storage(operator, p, steps, basis, offload, for_basis)
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
        basis=storage_text(kept),
        steps=steps,
        probes=probes,
        # The first product is computed twice.
        matvecs=products + 1,
        seconds_setup=passes.seconds_setup,
        seconds_matvec=matvec,
        seconds_step=step,
        seconds=passes.seconds_setup + (steps + 1) * matvec + (products - steps) * others + products * step,
        flops_matvec=passes.flops,
        # The first product is verified before there is a basis.
        peak_bytes=before
        + max(passes.peak_bytes + vectors + (basis_bytes if on_device else 0), passes.verification_bytes),
        devices=devices,
        accuracy=expected,
    )


def _check(steps: int | None, probes: int | None, accuracy: float | None, devices: int) -> None:
    given = {"steps": steps, "probes": probes, "devices": devices}
    check_counts(**{name: value for name, value in given.items() if value is not None})
    if accuracy is not None and not accuracy > 0:
        raise ValueError(f"accuracy is {accuracy!r}; it must be positive.")


@dataclass(frozen=True)
class _Errors:
    """Wasserstein-1 errors of one probe relative to the mean |lambda|: `size` at `PILOT` steps, and its decay rate."""

    size: float
    rate: float
    sampling: float

    def quadrature(self, steps: int) -> float:
        """Error of the quadrature after a number of steps."""
        return float(self.size * (PILOT / steps) ** self.rate)

    def steps_for(self, error: float) -> float:
        """Number of steps after which the error is at most this large."""
        return float(PILOT * (self.size / error) ** (1 / self.rate))


def _errors(operator: CurvatureOperator, multiply: Callable[[Tensor], Tensor]) -> _Errors:
    """Estimate errors from a run on the first batch."""
    p, generator = operator.shape[0], torch.Generator().manual_seed(0)
    start = random_vector(p, generator, dtype=operator.dtype, device=operator.device)
    lanczos = Lanczos(start, generator, storage=STORAGES["half"], partial=p >= PARTIAL_FROM)
    while len(lanczos) < min(PILOT, p) and not lanczos.finished:
        lanczos.step(multiply(lanczos.vector))
    if lanczos.exhausted:
        return _Errors(0.0, 1.0, 0.0)
    found = [spectral_measure(lanczos, p, steps) for steps in (PILOT, PILOT // 2, PILOT // 4)]
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
    """Time a Lanczos step without its product, by steps that use a fixed vector as the product."""
    p, generator = operator.shape[0], torch.Generator().manual_seed(0)
    vectors = [random_vector(p, generator, dtype=operator.dtype, device=operator.device) for _ in range(2)]
    lanczos = Lanczos(vectors[0], generator, storage=storage)
    basis = KrylovBasis(Space(p), dtype=operator.dtype, device=operator.device, storage=storage)
    plain: list[float] = []
    while len(plain) < 1 + CALLS and not lanczos.finished:
        # Created before the clock starts: it replaces the product, which is timed separately.
        image = torch.roll(lanczos.vector, 1) + torch.roll(lanczos.vector, -1)
        plain.append(_seconds(functools.partial(lanczos.step, image)))
    count = min(4, p)
    for _ in range(count):
        basis.append(vectors[0] / norm(vectors[0]))
    seconds = [_seconds(functools.partial(basis.orthogonalise, vectors[1].clone())) for _ in range(1 + CALLS)]
    row = statistics.median(seconds[1:]) / count
    # The first steps allocate memory that later steps reuse.
    step = statistics.median(plain[1:] or plain or [0.0])
    return step + row * rows * (ROWS_WHEN_DUE if p >= PARTIAL_FROM else ROWS)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _allocated(device: torch.device) -> int:
    """Bytes that this process has allocated on the device."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return resident_memory()
