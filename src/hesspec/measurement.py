"""The spectrum of an operator from one Krylov run: outliers, their error bounds, and the density of the bulk."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.stats
import torch

from hesspec._memory import free_memory
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.lanczos import Lanczos, rounding_unit
from hesspec.krylov.operator import SymmetricOperator, check_operator
from hesspec.krylov.ritz import Array, RitzPairs, clustered_bounds, resolve, ritz_pairs
from hesspec.krylov.vectors import random_vector
from hesspec.result import Spectrum

__all__ = ["spectrum"]

Progress = Callable[[int, int | None], None]

# "auto" looks at the measure from this step on, and each so many steps: often enough to waste few matvecs.
AUTO_FIRST, AUTO_EVERY = 16, 8
# Of the free memory, what the basis may fill where "auto" sets its size.
BASIS_SHARE = 0.5


def spectrum(
    operator: SymmetricOperator,
    *,
    steps: int | Literal["auto"] = 64,
    probes: int = 1,
    seed: int = 0,
    tolerance: float = 0.05,
    on_step: Progress | None = None,
) -> Spectrum:
    """Measure the whole spectrum of a symmetric operator with one Lanczos run.

    Ritz pairs that their residual bounds prove to be single eigenvalues become atoms of weight 1/p; the other nodes of
    the same run are the Gauss quadrature of the rest of the measure and share its weight. Further probes start
    orthogonal to the resolved eigenvectors and refine the bulk only.

    Parameters
    ----------
    operator
        Anything symmetric with `shape` (p, p), `dtype` (float32 or float64), `device` and `@`: operators of hesspec or
        curvlinops, a dense tensor. One matvec a step is all that is asked of it.
    steps : int or "auto"
        Lanczos steps of each probe. "auto" goes on until the measure from all steps and that from the first half of
        them differ by at most `tolerance`. More than p steps give the exact spectrum after p.
    probes : int
        Random start vectors. The error of the bulk from one falls like 1/sqrt(p): the standard error of any mean over
        the spectrum is sqrt(2/(p + 2)) of the standard deviation, 0.03% for p = 28 million, so that one is enough
        for networks; more help where p is a few thousand.
    seed : int
        Of the probes; the same seed gives the same spectrum.
    tolerance : float
        For "auto": Wasserstein-1 distance relative to the mean of |lambda|.
    on_step : callable, optional
        Called after each step with the number of steps done and their total in all probes (None while "auto" does not
        know it).

    Returns
    -------
    Spectrum

    Raises
    ------
    ValueError
        If an argument is out of range, or the operator lacks an attribute or is not symmetric (`NotSymmetricError`).
    NonFiniteError
        If a product holds NaN or infinity.
    MemoryError
        If the Krylov basis, steps x p numbers, exceeds the memory that is free on the device. With several probes it
        is twice that: the resolved eigenvectors stay beside the basis of the probe at work.

    Notes
    -----
    Bhattacharjee, Jayaram, C. Musco, C. Musco and Ray, "Improved Spectral Density Estimation via Explicit and Implicit
    Deflation" (2024), for the deflated measure; error statements are described at `Spectrum`. A multiple eigenvalue is
    resolved once (or as often as rounding brings up copies), and its other copies are a node of the bulk, with the
    weight that was measured. Multiplicities of two or three, of a few eigenvalues, are not noticed unless the Krylov
    space fills R^p, as a probe cannot tell them from simple ones: they are counted once.

    Examples
    --------
    >>> import torch, hesspec
    >>> operator = torch.diag(torch.cat([torch.linspace(-0.1, 0.1, 300), torch.tensor([5.0, 9.0])]))
    >>> result = hesspec.spectrum(operator, steps=32)
    >>> result.outliers.round(4)
    array([9., 5.])
    >>> bool((abs(result.outliers - [9, 5]) <= result.error_bounds[:2]).all())
    True
    """
    p = check_operator(operator)
    if steps != "auto" and (not isinstance(steps, (int, np.integer)) or steps < 1):
        raise ValueError(f"steps is {steps!r}; it has to be a positive whole number, or 'auto'.")
    if not isinstance(probes, (int, np.integer)) or probes < 1:
        raise ValueError(f"probes is {probes!r}; it has to be a positive whole number.")
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance!r}; it has to be positive.")
    begin = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    limit = _step_limit(operator, p, steps, probes)
    run = _Run(operator, generator, limit if steps != "auto" else None, probes, on_step)
    stopped = run.first(p, limit, None if steps != "auto" else tolerance)
    run.others()
    attributes: dict[str, Any] = {
        **getattr(operator, "attributes", {}),
        "seed": seed,
        "seconds": time.perf_counter() - begin,
        **_surroundings(operator),
    }
    return run.spectrum(stopped, attributes)


class _Run:
    """Lanczos processes of all probes, and the measure that they add up to."""

    def __init__(
        self,
        operator: SymmetricOperator,
        generator: torch.Generator,
        steps: int | None,
        probes: int,
        on_step: Progress | None,
    ) -> None:
        self._operator, self._generator, self._probes = operator, generator, probes
        self._total = None if steps is None else steps * probes
        self._done, self._on_step = 0, on_step
        self._pairs: list[RitzPairs] = []
        self._deflated: KrylovBasis | None = None

    def first(self, p: int, limit: int, tolerance: float | None) -> str:
        """Run the first probe; say why it ended. Its basis goes with the end of it."""
        lanczos = self._start(p)
        stopped = self._run_first(lanczos, p, limit, tolerance)
        self._p, self._steps, self._exact = p, len(lanczos), lanczos.exhausted
        self._measure = _measure(lanczos, p, len(lanczos))
        self._pairs.append(_first_block(lanczos))
        if self._probes > 1 and self._measure.bulk_nodes.size:
            self._deflated = lanczos.basis.subspace(torch.from_numpy(self._measure.resolved_vectors))
        return stopped

    def _run_first(self, lanczos: Lanczos, p: int, limit: int, tolerance: float | None) -> str:
        while not lanczos.exhausted and len(lanczos) < limit:
            self._step(lanczos)
            if tolerance is not None and len(lanczos) >= AUTO_FIRST and len(lanczos) % AUTO_EVERY == 0:
                moved = _movement(lanczos, p)
                if moved <= tolerance:
                    return f"the measure moved by {moved:.2g} of the mean |eigenvalue| since half of the steps"
        if lanczos.exhausted:
            return "the Krylov spaces filled R^p: the spectrum is exact"
        return "all steps done" if tolerance is None else "the basis reached half of the free memory"

    def others(self) -> None:
        """Run the other probes in the complement of the resolved eigenvectors, which leaves a bulk to measure."""
        if self._deflated is None:
            return
        for _ in range(self._probes - 1):
            lanczos = self._start(self._p, self._deflated)
            while not lanczos.exhausted and len(lanczos.starts) == 1 and len(lanczos) < self._steps:
                self._step(lanczos)
            self._pairs.append(_first_block(lanczos))

    def spectrum(self, stopped: str, attributes: dict[str, Any]) -> Spectrum:
        """The measure of all probes."""
        measure, count = self._measure, len(self._pairs)
        mass = float(measure.bulk_weights.sum())
        others = self._pairs[1:]
        order = np.argsort(-np.abs(measure.eigenvalues), kind="stable")
        return Spectrum(
            dimension=self._p,
            eigenvalues=measure.eigenvalues[order],
            error_bounds=measure.error_bounds[order],
            eigenvalue_weights=measure.eigenvalue_weights[order],
            bulk_nodes=np.concatenate([measure.bulk_nodes, *(pairs.values for pairs in others)]),
            bulk_weights=np.concatenate(
                [measure.bulk_weights, *(pairs.weights / pairs.weights.sum() * mass for pairs in others)]
            )
            / count,
            bulk_probe=np.repeat(np.arange(count), [measure.bulk_nodes.size, *(pairs.values.size for pairs in others)]),
            ritz_values=np.concatenate([pairs.values for pairs in self._pairs]),
            ritz_weights=np.concatenate([pairs.weights for pairs in self._pairs]),
            ritz_bounds=np.concatenate([pairs.residuals + measure.rounding for pairs in self._pairs]),
            ritz_probe=np.repeat(np.arange(count), [pairs.values.size for pairs in self._pairs]),
            norm=measure.norm,
            rounding=measure.rounding,
            probes=count,
            steps=self._steps,
            matvecs=self._done,
            exact=self._exact,
            stopped=stopped,
            attributes=attributes,
        )

    def _start(self, p: int, deflated: KrylovBasis | None = None) -> Lanczos:
        start = random_vector(p, self._generator, dtype=self._operator.dtype, device=self._operator.device)
        return Lanczos(self._operator, start, self._generator, deflated)

    def _step(self, lanczos: Lanczos) -> None:
        lanczos.step()
        self._done += 1
        if self._on_step is not None:
            self._on_step(self._done, self._total)


@dataclass(frozen=True)
class _Measure:
    """The measure that the first probe gives; fields as in `Spectrum`, and the Ritz vectors in the Lanczos basis."""

    eigenvalues: Array
    error_bounds: Array
    eigenvalue_weights: Array
    bulk_nodes: Array
    bulk_weights: Array
    norm: float
    rounding: float
    resolved_vectors: Array


def _measure(lanczos: Lanczos, p: int, steps: int) -> _Measure:
    """Resolved eigenvalues and bulk from the first `steps` steps of a run on R^p."""
    alpha, beta = (entries[:steps] for entries in lanczos.tridiagonal())
    starts = [start for start in lanczos.starts if start < steps]
    exact = lanczos.exhausted and steps == len(lanczos)
    if len(starts) > 1 and not exact and steps not in lanczos.starts:
        # The blocks before an unfinished one are invariant and hold all distinct eigenvalues: it would tell less.
        steps = starts.pop()
    blocks = [ritz_pairs(alpha[a:b], beta[a:b]) for a, b in zip(starts, [*starts[1:], steps], strict=True)]
    norm = max(float(np.abs(pairs.values).max()) for pairs in blocks)
    # ||F|| <= sqrt(m) max ||f_j|| for the matrix F of what each of the m steps rounds off.
    rounding = float(np.sqrt(steps)) * max(rounding_unit(lanczos.basis[0].dtype) * norm, lanczos.step_error)
    # Blocks before the last one are invariant: each of their Ritz values is an eigenvalue. The last one is the
    # quadrature of the complement of the others.
    last, rest = blocks[-1], p - starts[-1]
    everything = np.arange(last.values.size), np.zeros(last.values.size)
    chosen, share = everything if exact else resolve(last, rest, rounding)
    known = [pairs.values for pairs in blocks[:-1]]
    eigenvalues = np.concatenate([*known, last.values[chosen]])
    residuals = np.concatenate([np.zeros(starts[-1]), last.residuals[chosen]])
    weights = np.full(eigenvalues.size, 1 / p)
    bulk = np.flatnonzero(share)
    bulk_weights = share[bulk]
    if exact:
        # Restarts that broke down at once found eigenvectors at random: their eigenvalue is that of the whole rest.
        weights[-1] += lanczos.rest / p
    else:
        bulk_weights = bulk_weights / bulk_weights.sum() * (1 - eigenvalues.size / p)
    vectors = np.zeros((len(lanczos), eigenvalues.size))
    for pairs, start in zip(blocks[:-1], starts, strict=False):
        vectors[start : start + pairs.values.size, start : start + pairs.values.size] = pairs.vectors
    vectors[starts[-1] : steps, starts[-1] :] = last.vectors[:, chosen]
    bounds = clustered_bounds(eigenvalues, residuals, rounding)
    return _Measure(eigenvalues, bounds, weights, last.values[bulk], bulk_weights, norm, rounding, vectors)


def _first_block(lanczos: Lanczos) -> RitzPairs:
    """Ritz pairs of a probe: those of its own start vector."""
    end = lanczos.starts[1] if len(lanczos.starts) > 1 else len(lanczos)
    alpha, beta = lanczos.tridiagonal()
    return ritz_pairs(alpha[:end], beta[:end])


def _movement(lanczos: Lanczos, p: int) -> float:
    """W1 distance between the measures of all steps and of the first half, relative to the mean |eigenvalue|."""
    now, before = _measure(lanczos, p, len(lanczos)), _measure(lanczos, p, len(lanczos) // 2)
    points = [np.concatenate([m.eigenvalues, m.bulk_nodes]) for m in (now, before)]
    masses = [np.concatenate([m.eigenvalue_weights, m.bulk_weights]) for m in (now, before)]
    size = float(masses[0] @ np.abs(points[0]))
    distance = float(scipy.stats.wasserstein_distance(*points, *masses))
    return distance / size if size > 0 else 0.0


def _step_limit(operator: SymmetricOperator, p: int, steps: int | str, probes: int) -> int:
    row = p * torch.finfo(operator.dtype).bits // 8 * (2 if probes > 1 else 1)
    fitting = int(free_memory(torch.device(operator.device)) * (BASIS_SHARE if steps == "auto" else 1) // row)
    wanted = p if isinstance(steps, str) else min(steps, p)
    if isinstance(steps, str) and fitting >= AUTO_FIRST:
        return min(wanted, fitting)
    needed = min(wanted, AUTO_FIRST) if isinstance(steps, str) else wanted
    if needed > fitting:
        beside = ", with as many resolved eigenvectors beside it," if probes > 1 else ""
        raise MemoryError(
            f"The Krylov basis of {needed} vectors of {p:,} numbers{beside} needs {needed * row / 1e9:.1f} GB and "
            f"{fitting * row / 1e9:.1f} GB are free on {operator.device}; take fewer steps (at most {fitting})."
        )
    return wanted


def _surroundings(operator: SymmetricOperator) -> dict[str, str | int]:
    device = torch.device(operator.device)
    machine = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    )
    return {
        "dtype": str(operator.dtype).removeprefix("torch."),
        "device": str(device),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **_versions(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": machine,
    }


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("hesspec", "torch", "numpy", "scipy")}
