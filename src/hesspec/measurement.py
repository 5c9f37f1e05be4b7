"""The spectrum of an operator from one Krylov run: outliers, their error bounds, and the density of the bulk."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec._memory import free_memory, parse_memory
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.lanczos import Lanczos
from hesspec.krylov.measure import first_block, measure, movement
from hesspec.krylov.operator import SymmetricOperator, check_operator
from hesspec.krylov.ritz import Array, RitzPairs, clustered_bounds
from hesspec.krylov.sketch import Sketch
from hesspec.krylov.storage import STORAGES, Storage, available, storage
from hesspec.krylov.thick_restart import thick_restart
from hesspec.krylov.vectors import inner, norm, random_vector
from hesspec.result import Spectrum

__all__ = [
    "BASIS_SHARE",
    "PARTIAL_FROM",
    "Eigenpairs",
    "basis_in_words",
    "eigenpairs",
    "how_kept",
    "outlier_pairs",
    "spectrum",
]

Progress = Callable[[int, int | None], None]

# "auto" looks at the measure from this step on, and each so many steps: often enough to waste few matvecs.
AUTO_FIRST, AUTO_EVERY = 16, 8
# Of the free memory, what the basis may fill: operators take as much for what they keep, and the system wants some.
BASIS_SHARE = 0.4
# Reorthogonalising fully reads the basis in every step, which costs less than the rest of a step where it fits into the
# processor's cache; from this p on it is done where it is needed.
PARTIAL_FROM = 1 << 18
# Fewest vectors of a restarted basis: with fewer, half of them are less than the outliers of most networks.
RESTARTED_FROM = 8
# Products whose error is measured, against those of full precision, are the 1st, 2nd, 4th, 8th ...; the largest error
# seen, times this, stands for those of all.
NOISE_MARGIN = 2.0
# Resolved eigenvalues whose eigenvectors are kept as sketches, the largest: 8 KB each.
SKETCHED = 64


def spectrum(
    operator: SymmetricOperator,
    *,
    steps: int | Literal["auto"] = 64,
    probes: int = 1,
    seed: int = 0,
    tolerance: float = 0.05,
    memory: str | int | None = None,
    basis: str = "auto",
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
        curvlinops, a dense tensor. It is asked for products with vectors (p,), and with several probes for those with
        matrices (p, k) too. If it has a `reference`, an operator that is the same at full precision, the error of its
        products is measured, and is part of all bounds.
    steps : int or "auto"
        Lanczos steps of each probe. "auto" goes on until the measure from all steps and that from the first half of
        them differ by at most `tolerance`. More than p steps give the exact spectrum after p.
    probes : int
        Random start vectors. The error of the bulk from one falls like 1/sqrt(p): the standard error of any mean over
        the spectrum is sqrt(2/(p + 2)) of the standard deviation, 0.03% for p = 28 million, so that one is enough
        for networks; more help where p is a few thousand. The first goes alone, as it finds the eigenvalues that the
        others are kept orthogonal to; these go in lockstep, as many as fit into memory: the data is read twice `steps`
        times, however many there are.
    seed : int
        Of the probes; the same seed gives the same spectrum.
    tolerance : float
        For "auto": Wasserstein-1 distance relative to the mean of |lambda|.
    memory : str or int, optional
        What the Krylov basis may fill of the device's memory: "8GB", "500MB", or a number of bytes. By default 40% of
        what is free.
    basis : str
        How the basis is kept: "full" (in the precision of the vectors) or "half" (with half of the bits, which is as
        good: see `hesspec.krylov.storage.Storage`), either alone or followed by " on host" or " on disk"; "restarted"
        keeps as many vectors as fit, finds the outermost eigenvalues by thick restarts, and measures the bulk by a run
        that keeps none. "auto" takes the first of these, in the order "full", "half", on the device, the host and the
        disk, "restarted", that fits.
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
        If the Krylov basis, steps x p numbers, exceeds what it may fill.

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
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance!r}; it has to be positive.")
    return _measured(operator, steps, probes, seed, tolerance, memory, basis, on_step, 0)[1]


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvectors of the resolved eigenvalues of largest absolute value, from the run that gave a spectrum.

    Attributes
    ----------
    values : array (k,)
        Rayleigh quotients v^T A v, by decreasing absolute value.
    residuals : array (k,)
        ||A v - value v||, measured: an eigenvalue is no further than that from each value.
    vector_errors : array (k,)
        Bound of the sine of the angle between v and the eigenvector, residual / gap (Davis and Kahan 1970), where the
        gap is the distance to the nearest other eigenvalue or node of the spectrum; 1 where it says nothing. It holds
        if no eigenvalue was overlooked in the gap.
    vectors : Tensor (p, k)
        Unit vectors, a column each.
    spectrum : Spectrum
        Of the same run.
    """

    values: Array
    residuals: Array
    vector_errors: Array
    vectors: Tensor
    spectrum: Spectrum


def eigenpairs(
    operator: SymmetricOperator,
    *,
    count: int,
    steps: int = 64,
    seed: int = 0,
    memory: str | int | None = None,
    basis: str = "auto",
    on_step: Progress | None = None,
) -> Eigenpairs:
    """Measure a spectrum as `spectrum` does, and keep the eigenvectors of its largest resolved eigenvalues.

    Parameters
    ----------
    operator, steps, seed, memory, basis, on_step
        As in `spectrum`.
    count : int
        How many are kept at most; fewer where fewer are resolved. Each takes another product, and p numbers.

    Returns
    -------
    Eigenpairs

    Raises
    ------
    ValueError, NonFiniteError, MemoryError
        As `spectrum`.

    Examples
    --------
    >>> import torch, hesspec
    >>> operator = torch.diag(torch.cat([torch.linspace(-0.1, 0.1, 300), torch.tensor([5.0, 9.0])]))
    >>> pairs = hesspec.eigenpairs(operator, count=2, steps=32)
    >>> pairs.values.round(4), pairs.vectors[-1].abs().round(decimals=4)
    (array([9., 5.]), tensor([1., 0.]))
    """
    if not isinstance(count, (int, np.integer)) or count < 1:
        raise ValueError(f"count is {count!r}; it has to be a positive whole number.")
    run, found = _measured(operator, steps, 1, seed, 0.0, memory, basis, on_step, int(count))
    return _pairs(operator, run.top, found, np.arange(len(run.top)))


def outlier_pairs(
    operator: SymmetricOperator,
    *,
    most: int,
    steps: int = 64,
    seed: int = 0,
    memory: str | int | None = None,
    basis: str = "auto",
    on_step: Progress | None = None,
) -> tuple[Eigenpairs, npt.NDArray[np.intp]]:
    """As `eigenpairs`, of the outliers among the `most` largest eigenvalues alone; and their places in the spectrum."""
    run, found = _measured(operator, steps, 1, seed, 0.0, memory, basis, on_step, most)
    chosen = np.flatnonzero(found.is_outlier[: len(run.top)])
    return _pairs(operator, run.top, found, chosen), chosen


def _pairs(operator: SymmetricOperator, top: KrylovBasis, found: Spectrum, chosen: npt.NDArray[np.intp]) -> Eigenpairs:
    """Eigenpairs of the chosen ones of the largest resolved eigenvalues, with a product for each."""
    vectors = torch.empty(operator.shape[0], chosen.size, dtype=operator.dtype, device=operator.device)
    values, residuals = np.empty(chosen.size), np.empty(chosen.size)
    for i, index in enumerate(chosen):
        vector = top[int(index)]
        vectors[:, i] = vector / norm(vector)
    products = operator @ vectors if chosen.size else vectors
    for i, (vector, product) in enumerate(zip(vectors.T, products.T, strict=True)):
        values[i] = inner(vector, product)
        residuals[i] = norm(product - values[i] * vector)
    others = np.concatenate([found.eigenvalues, found.bulk_nodes])
    gaps = np.empty(values.size)
    for i, value in enumerate(values):
        # Its own copy among the resolved ones is the nearest of them.
        mine = np.argmin(np.abs(found.eigenvalues - value))
        gaps[i] = np.abs(np.delete(others, mine) - value).min(initial=np.inf)
    clear = np.maximum(gaps - residuals, np.finfo(float).tiny)
    return Eigenpairs(values, residuals, np.minimum(1.0, residuals / clear), vectors, found)


def _measured(
    operator: SymmetricOperator,
    steps: int | Literal["auto"],
    probes: int,
    seed: int,
    tolerance: float,
    memory: str | int | None,
    basis: str,
    on_step: Progress | None,
    wanted: int,
) -> tuple[_Run, Spectrum]:
    """The spectrum, and the run that gave it, with as many eigenvectors as are wanted."""
    p = check_operator(operator)
    if steps != "auto" and (not isinstance(steps, (int, np.integer)) or steps < 1):
        raise ValueError(f"steps is {steps!r}; it has to be a positive whole number, or 'auto'.")
    if not isinstance(probes, (int, np.integer)) or probes < 1:
        raise ValueError(f"probes is {probes!r}; it has to be a positive whole number.")
    begin = time.perf_counter()
    device = torch.device(operator.device)
    budget = int(free_memory(device) * BASIS_SHARE) if memory is None else parse_memory(memory)
    limit = min(steps, p) if steps != "auto" else _most_steps(operator, p, basis, budget)
    keeping = how_kept(operator, p, limit, basis, budget)
    generator = torch.Generator().manual_seed(seed)
    run = _Run(operator, generator, keeping, limit if steps != "auto" else None, probes, on_step, wanted)
    stopped = run.first(limit, None if steps != "auto" else tolerance)
    run.others(_together(operator, p, keeping, limit, budget))
    attributes: dict[str, Any] = {
        **getattr(operator, "attributes", {}),
        "seed": seed,
        "basis": basis_in_words(keeping),
        "seconds": time.perf_counter() - begin,
        **_surroundings(operator),
    }
    return run, run.spectrum(stopped, attributes)


class _Run:
    """Lanczos processes of all probes, and the measure that they add up to."""

    def __init__(
        self,
        operator: SymmetricOperator,
        generator: torch.Generator,
        keeping: Storage | int,
        steps: int | None,
        probes: int,
        on_step: Progress | None,
        wanted: int,
    ) -> None:
        self._operator, self._generator, self._probes, self._wanted = operator, generator, probes, wanted
        self._reference = getattr(operator, "reference", None)
        self._keeping, self._p = keeping, int(operator.shape[0])
        self._total = None if steps is None else steps * probes
        self._done, self._on_step, self._passes = 0, on_step, 0.0
        self._pairs: list[RitzPairs] = []
        self._bulks: list[tuple[Array, Array]] = []
        self._deflated: KrylovBasis | None = None
        self._sketch = Sketch(self._p, torch.device(operator.device))
        self._sketches: list[npt.NDArray[np.float64]] = []
        self.top = KrylovBasis(self._p, dtype=operator.dtype, device=torch.device(operator.device))

    def first(self, limit: int, tolerance: float | None) -> str:
        """Run the first probe; say why it ended. Its basis goes with the end of it."""
        lanczos = self._start(Storage() if isinstance(self._keeping, int) else self._keeping)
        capacity = min(limit, self._keeping) if isinstance(self._keeping, int) else limit
        stopped = self._run_first(lanczos, capacity, tolerance)
        self._steps, self._exact = len(lanczos), lanczos.exhausted
        self._measure = measure(lanczos, self._p, len(lanczos))
        self._pairs.append(first_block(lanczos))
        if capacity < limit and not lanczos.exhausted and len(lanczos.starts) == 1:
            return self._restarted(lanczos, limit)
        self._bulks.append((self._measure.bulk_nodes, self._measure.bulk_weights))
        if self._wanted:
            largest = np.argsort(-np.abs(self._measure.eigenvalues), kind="stable")[: self._wanted]
            self.top = lanczos.basis.subspace(torch.from_numpy(self._measure.resolved_vectors[:, largest]))
        if self._probes > 1 and self._measure.bulk_nodes.size:
            self._deflated = lanczos.basis.subspace(torch.from_numpy(self._measure.resolved_vectors))
        return stopped

    def _run_first(self, lanczos: Lanczos, limit: int, tolerance: float | None) -> str:
        while not lanczos.finished and len(lanczos) < limit:
            # Sketches are linear: those of the Lanczos vectors give those of all Ritz vectors.
            self._sketches.append(self._sketch(lanczos.vector))
            self._advance([lanczos])
            if tolerance is not None and len(lanczos) >= AUTO_FIRST and len(lanczos) % AUTO_EVERY == 0:
                moved = movement(lanczos, self._p)
                if moved <= tolerance:
                    return f"the measure moved by {moved:.2g} of the mean |eigenvalue| since half of the steps"
        if lanczos.exhausted:
            return "the Krylov spaces filled R^p: the spectrum is exact"
        return "all steps done" if tolerance is None else "the basis reached the memory that it may fill"

    def _restarted(self, lanczos: Lanczos, limit: int) -> str:
        """Go on without more memory: the outermost eigenvalues by restarts, then the bulk by a run that keeps nothing.

        Half of the products may go to the restarts. The run for the bulk is orthogonal to what is resolved, which is
        what makes Lanczos vectors lose orthogonality, and ends where its own do.
        """

        def rounding(steps: int) -> float:
            """As `Lanczos.backward_error`, of more steps than it has taken."""
            return float(np.sqrt(steps / len(lanczos))) * lanczos.backward_error(len(lanczos))

        outer = thick_restart(lanczos, self._multiply_one, max(limit // 2, len(lanczos)), rounding)
        bulk = self._start(None, outer.vectors)
        while not bulk.finished and outer.matvecs + len(bulk) < limit:
            self._advance([bulk])
        pairs = first_block(bulk)
        k, floor = len(outer.values), rounding(outer.matvecs)
        self._pairs.append(pairs)
        self._steps = outer.matvecs + len(bulk)
        weights = pairs.weights / pairs.weights.sum() * (1 - k / self._p)
        self._bulks = [(pairs.values, weights)]
        self._measure = replace(
            self._measure,
            eigenvalues=outer.values,
            error_bounds=clustered_bounds(outer.values, outer.residuals, floor),
            eigenvalue_weights=np.full(k, 1 / self._p),
            norm=max(self._measure.norm, float(np.abs(outer.values).max(initial=0.0))),
            rounding=floor,
        )
        self._sketches = [self._sketch(outer.vectors[i]) for i in range(k)]
        self._measure = replace(self._measure, resolved_vectors=np.eye(k))
        self._deflated = outer.vectors if self._probes > 1 else None
        if self._wanted:
            largest = np.argsort(-np.abs(outer.values), kind="stable")[: self._wanted]
            self.top = outer.vectors.subspace(torch.eye(k, dtype=torch.float64)[:, largest])
        if bulk.spent:
            return f"the bulk's run, without a basis, lost orthogonality after {len(bulk)} steps; more memory helps"
        return "all steps done"

    def others(self, together: int) -> None:
        """Run the other probes in the complement of the resolved eigenvectors, which leaves a bulk to measure.

        As many as `together` go in lockstep, so that one pass over the data serves all of them.
        """
        if self._deflated is None:
            return
        storage = None if isinstance(self._keeping, int) else self._keeping
        nodes, weights = self._bulks[0]
        # After restarts, which took their share of the first probe's steps, as many as its bulk was given.
        steps = self._steps if storage is not None else len(nodes)
        mass, waiting = float(weights.sum()), self._probes - 1
        while waiting:
            group = [self._start(storage, self._deflated) for _ in range(min(together, waiting))]
            waiting -= len(group)
            while working := [
                lanczos
                for lanczos in group
                if not lanczos.finished and len(lanczos.starts) == 1 and len(lanczos) < steps
            ]:
                self._advance(working)
            for lanczos in group:
                pairs = first_block(lanczos)
                self._pairs.append(pairs)
                self._bulks.append((pairs.values, pairs.weights / pairs.weights.sum() * mass))

    def spectrum(self, stopped: str, attributes: dict[str, Any]) -> Spectrum:
        """The measure of all probes."""
        found, count = self._measure, len(self._bulks)
        order = np.argsort(-np.abs(found.eigenvalues), kind="stable")
        return Spectrum(
            dimension=self._p,
            eigenvalues=found.eigenvalues[order],
            error_bounds=found.error_bounds[order],
            eigenvalue_weights=found.eigenvalue_weights[order],
            eigenvector_sketches=self._sketches_of(order[:SKETCHED]),
            bulk_nodes=np.concatenate([nodes for nodes, _ in self._bulks]),
            bulk_weights=np.concatenate([weights for _, weights in self._bulks]) / count,
            bulk_probe=np.repeat(np.arange(count), [nodes.size for nodes, _ in self._bulks]),
            ritz_values=np.concatenate([pairs.values for pairs in self._pairs]),
            ritz_weights=np.concatenate([pairs.weights for pairs in self._pairs]),
            ritz_bounds=np.concatenate([pairs.residuals + found.rounding for pairs in self._pairs]),
            ritz_probe=np.repeat(np.arange(len(self._pairs)), [pairs.values.size for pairs in self._pairs]),
            norm=found.norm,
            rounding=found.rounding,
            probes=count,
            steps=self._steps,
            matvecs=self._done,
            exact=self._exact,
            stopped=stopped,
            attributes={**attributes, "reorthogonalised_steps": round(self._passes, 2)},
        )

    def _sketches_of(self, chosen: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        if not chosen.size:
            return np.empty((0, 0), np.float32)
        sketches = self._measure.resolved_vectors[:, chosen].T @ np.stack(self._sketches)
        # In float32, whose rounding is nothing beside the sketches' own error.
        return sketches.astype(np.float32)

    def _start(self, storage: Storage | None, deflated: KrylovBasis | None = None) -> Lanczos:
        start = random_vector(self._p, self._generator, dtype=self._operator.dtype, device=self._operator.device)
        partial = self._p >= PARTIAL_FROM
        return Lanczos(start, self._generator, deflated=deflated, storage=storage, partial=partial)

    def _advance(self, group: Sequence[Lanczos]) -> None:
        """One step of each process, with one product for all of them."""
        vectors = [lanczos.vector for lanczos in group]
        for lanczos, vector, image in zip(group, vectors, self._multiply(vectors), strict=True):
            passes, error = lanczos.passes, self._error(len(lanczos) + 1, vector, image)
            lanczos.step(image, error)
            self._passes += lanczos.passes - passes

    def _error(self, step: int, vector: Tensor, image: Tensor) -> float:
        """Norm of what the product is off by, where the operator can tell and it is time to ask."""
        if self._reference is None or step & (step - 1):
            return 0.0
        return NOISE_MARGIN * norm(self._reference @ vector - image)

    def _multiply(self, vectors: Sequence[Tensor]) -> list[Any]:
        products = self._operator @ (vectors[0] if len(vectors) == 1 else torch.stack(list(vectors), dim=1))
        for _ in vectors:
            self._done += 1
            if self._on_step is not None:
                self._on_step(self._done, self._total)
        return [products] if len(vectors) == 1 else list(products.unbind(dim=1))

    def _multiply_one(self, vector: Tensor) -> Tensor:
        image: Tensor = self._multiply([vector])[0]
        return image


def how_kept(operator: SymmetricOperator, p: int, rows: int, basis: str, budget: int) -> Storage | int:
    """How the basis of `rows` vectors is kept, or the size of one that is restarted."""
    dtype, device = operator.dtype, torch.device(operator.device)
    if basis not in ("auto", "restarted"):
        chosen = storage(basis)
        needed = rows * chosen.row_bytes(p, dtype)
        space = available(chosen, budget, device)
        if needed > space:
            raise MemoryError(
                f"The Krylov basis of {rows} vectors of {p:,} numbers, kept as {basis!r}, needs {needed / 1e9:.1f} GB, "
                f"and it may fill {space / 1e9:.1f} GB; take fewer steps (at most {space * rows // needed}), or leave "
                'the choice with basis="auto".'
            )
        return chosen
    if basis == "auto":
        for chosen in STORAGES.values():
            if rows * chosen.row_bytes(p, dtype) <= available(chosen, budget, device):
                return chosen
    # While a basis is rotated, half of it is in memory twice.
    size = min(budget // Storage().row_bytes(p, dtype) * 2 // 3, rows)
    if size < min(RESTARTED_FROM, rows):
        raise MemoryError(
            f"Vectors of {p:,} numbers need {p * dtype.itemsize / 1e9:.2f} GB each, and the Krylov basis may fill "
            f"{budget / 1e9:.2f} GB on {device}: too few of them for a spectrum. Give it more with memory=."
        )
    return int(size)


def _most_steps(operator: SymmetricOperator, p: int, basis: str, budget: int) -> int:
    """Steps that "auto" may take."""
    kept = STORAGES["half"] if basis == "auto" else storage(basis)
    fitting = available(kept, budget, torch.device(operator.device)) // kept.row_bytes(p, operator.dtype)
    if fitting < min(p, AUTO_FIRST):
        raise MemoryError(
            f'steps="auto" needs a basis of {min(p, AUTO_FIRST)} vectors of {p:,} numbers at least, and {fitting} fit '
            f"into the {budget / 1e9:.2f} GB that it may fill; give it more with memory=, or a number of steps."
        )
    return min(p, fitting)


def _together(operator: SymmetricOperator, p: int, keeping: Storage | int, limit: int, budget: int) -> int:
    """Number of probes whose bases fit into memory beside one another, and the resolved eigenvectors beside them."""
    if isinstance(keeping, int):
        return max(1, budget // (4 * Storage().row_bytes(p, operator.dtype)))
    space = available(keeping, budget, torch.device(operator.device))
    return max(1, space // (limit * keeping.row_bytes(p, operator.dtype)) - 1)


def basis_in_words(keeping: Storage | int) -> str:
    """Name of a way to keep a basis, as `spectrum` takes it."""
    if isinstance(keeping, int):
        return f"restarted, {keeping} vectors"
    return next(name for name, kept in STORAGES.items() if kept == keeping)


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
