"""The spectrum of an operator from one Krylov run: outliers, their error bounds, and the density of the bulk."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.algebra import SymmetricOperator, check_operator
from hesspec.backend.heap import kept_heap
from hesspec.backend.memory import free_memory, parse_memory
from hesspec.backend.numbers import check_seed, is_whole
from hesspec.backend.ranks import ALONE, Ranks
from hesspec.krylov.lanczos import rounding_unit
from hesspec.krylov.ritz import Array
from hesspec.krylov.run import AUTO_FIRST, Progress, Run
from hesspec.krylov.snapshot import Snapshot
from hesspec.krylov.storage import STORAGES, Storage, available, storage
from hesspec.krylov.vectors import Space
from hesspec.spectra.sampling import residual_bound
from hesspec.spectra.spectrum import Spectrum

__all__ = [
    "BASIS_SHARE",
    "Eigenpairs",
    "agreed",
    "basis_in_words",
    "basis_room",
    "eigenpairs",
    "how_kept",
    "outlier_pairs",
    "spectrum",
]

# Of the free memory, what the basis may fill: operators take as much for what they keep, and the system wants some.
BASIS_SHARE = 0.4
# Fewest vectors of a restarted basis: with fewer, half of them are less than the outliers of most networks.
RESTARTED_FROM = 8


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
    snapshot: str | os.PathLike[str] | None = None,
    every: str | float = "10min",
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
    snapshot : path, optional
        Folder that the run is written to, every so often: a new or an empty one, or one with a snapshot. Where it holds
        a snapshot of this run, the call resumes from it: on one process with the same number of threads it ends with
        the same spectrum bit for bit, on another number of ranks up to rounding. The number of steps of the first probe
        may differ. The snapshot stays in the end, and takes about as much room as the basis. Nothing in the folder is
        ever removed or replaced but what hesspec has written there, and one run at a time can use it. Its files are
        safetensors and JSON: reading those of others runs no code.
    every : str or float
        Time between two snapshots: "10min", "30s", or a number of seconds.

    Returns
    -------
    Spectrum

    Raises
    ------
    ValueError
        If an argument is out of range, or the operator lacks an attribute or is not symmetric (`NotSymmetricError`), or
        the snapshot is of another model, data set, matrix or seed, or cannot be read, or the folder for it has other
        files and no snapshot.
    NonFiniteError
        If a product holds NaN or infinity.
    MemoryError
        If the Krylov basis, steps x p numbers, exceeds what it may fill.
    OSError
        If a snapshot or a basis on disk cannot be written, or another run uses the folder of the snapshot.
    RankError
        If another rank failed, or is gone.

    Notes
    -----
    Of an operator whose data is shared by the ranks of a group (`group=...`), every rank keeps a slice of each Krylov
    vector, and all ranks get the spectrum: vectors are gathered for a product and the products' slices scattered, and
    memory and time of the orthogonalisation fall with the number of ranks.

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
    return _measured(operator, steps, probes, seed, tolerance, memory, basis, on_step, 0, snapshot, every)[1]


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvectors of the resolved eigenvalues of largest absolute value, from the run that gave a spectrum.

    Attributes
    ----------
    values : array (k,)
        Rayleigh quotients v^T A v, by decreasing absolute value.
    residuals : array (k,)
        ||A v - value v||, measured, with what rounding may hide of it: an eigenvalue is no further than that from each
        value.
    vector_errors : array (k,)
        Bound of the sine of the angle between v and the eigenvector, residual / gap (Davis and Kahan 1970), where the
        gap is the distance to the nearest other eigenvalue or node of the spectrum, less its own error bound; 1 where
        it says nothing, as for an eigenvalue that is known to be multiple. It holds if no eigenvalue was overlooked in
        the gap.
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
    if not is_whole(count, 1):
        raise ValueError(f"count is {count!r}; it has to be a positive whole number.")
    run, found = _measured(operator, steps, 1, seed, 0.0, memory, basis, on_step, int(count))
    return _pairs(run, found, np.arange(len(run.top)))


def outlier_pairs(
    operator: SymmetricOperator,
    *,
    classes: int,
    least: int,
    steps: int = 64,
    seed: int = 0,
    memory: str | int | None = None,
    basis: str = "auto",
    on_step: Progress | None = None,
) -> tuple[Eigenpairs, npt.NDArray[np.intp]]:
    """As `eigenpairs`, of the outliers among the 2 C largest eigenvalues, and of the `least` largest in any case.

    Late in training the C eigenvalues of the class structure may be the end of a tail, which no rule tells from it.

    Returns
    -------
    pairs : Eigenpairs
    places : int array (n,)
        Their places in the spectrum.
    """
    run, found = _measured(operator, steps, 1, seed, 0.0, memory, basis, on_step, 2 * classes)
    found = replace(found, attributes={**found.attributes, "classes": classes})
    chosen = np.flatnonzero(found.is_outlier[: len(run.top)] | (np.arange(len(run.top)) < least))
    return _pairs(run, found, chosen), chosen


def _pairs(run: Run, found: Spectrum, chosen: npt.NDArray[np.intp]) -> Eigenpairs:
    """Eigenpairs of the chosen ones of the largest resolved eigenvalues, with a product for each."""
    operator, space = run.operator, run.space
    slices = torch.empty(space.length, chosen.size, dtype=operator.dtype, device=operator.device)
    values, residuals = np.empty(chosen.size), np.empty(chosen.size)
    for i, index in enumerate(chosen):
        vector = run.top[int(index)]
        slices[:, i] = vector / space.norm(vector)
    products = operator @ slices if chosen.size else slices
    for i, (vector, product) in enumerate(zip(slices.T, products.T, strict=True)):
        values[i] = space.inner(vector, product)
        residuals[i] = space.norm(product - values[i] * vector)
    # What rounding, and whatever else products are off by, may have hidden of a residual.
    floor = max(rounding_unit(operator.dtype) * found.norm, found.rounding / math.sqrt(found.steps))
    values, residuals = operator.restore(values), operator.restore(residuals) + floor
    vectors = slices
    if space.ranks.size > 1:
        vectors = torch.empty(space.size, chosen.size, dtype=operator.dtype, device=operator.device)
        for i, vector in enumerate(slices.T):
            vectors[:, i] = space.ranks.whole(vector, space.size)
    errors = _vector_errors(found, chosen, values, residuals)
    # Of an eigenvalue that is multiple, or may be, there is no such vector.
    errors[~run.simple[chosen]] = 1.0
    return Eigenpairs(values, residuals, errors, vectors, found)


def _vector_errors(found: Spectrum, chosen: npt.NDArray[np.intp], values: Array, residuals: Array) -> Array:
    """Residual over gap, the distance that all other points of the measure have at least."""
    points = np.concatenate([found.eigenvalues, found.bulk_nodes])
    radii = np.concatenate([found.error_bounds, [residual_bound(found, node) for node in found.bulk_nodes]])
    distances = np.abs(points - values[:, None]) - radii
    distances[np.arange(chosen.size), chosen] = np.inf
    gaps = distances.min(axis=1, initial=np.inf)
    return np.asarray(np.divide(residuals, gaps, out=np.ones(chosen.size), where=residuals < gaps))


@kept_heap()
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
    snapshot: str | os.PathLike[str] | None = None,
    every: str | float = "10min",
) -> tuple[Run, Spectrum]:
    """The spectrum, and the run that gave it, with as many eigenvectors as are wanted."""
    p = check_operator(operator)
    if steps != "auto" and not is_whole(steps, 1):
        raise ValueError(f"steps is {steps!r}; it has to be a positive whole number, or 'auto'.")
    if not is_whole(probes, 1):
        raise ValueError(f"probes is {probes!r}; it has to be a positive whole number.")
    seed = check_seed(seed)
    begin = time.perf_counter()
    device = torch.device(operator.device)
    operator, ranks = _sliced(operator), getattr(operator, "ranks", ALONE)
    space = Space(p, ranks)
    budget = basis_room(device, ranks) if memory is None else parse_memory(memory)
    limit = min(steps, p) if steps != "auto" else _most_steps(operator, space, basis, budget)
    keeping = agreed(ranks, lambda: how_kept(operator, -(-p // ranks.size), limit, basis, budget))
    keeper = None
    if snapshot is not None:
        identity = {**_identity(operator), "seed": str(seed), "number of probes": str(probes)}
        keeper = Snapshot(snapshot, every, space, dtype=operator.dtype, device=device, identity=identity)
    with keeper or nullcontext():
        run = Run(operator, space, seed, keeping, limit if steps != "auto" else None, probes, on_step, wanted, keeper)
        run.first(limit, None if steps != "auto" else tolerance)
        run.others(_together(operator, space, run.keeping, limit, budget))
        run.confirm()
    attributes: dict[str, Any] = {
        **getattr(operator, "attributes", {}),
        "seed": seed,
        "basis": basis_in_words(run.keeping),
        "seconds": time.perf_counter() - begin,
        **({} if keeper is None else {"snapshot_seconds": keeper.seconds}),
        **_surroundings(operator),
        "reorthogonalised_steps": run.reorthogonalised_steps,
    }
    return run, Spectrum(**run.measure(), attributes=attributes)


def _sliced(operator: SymmetricOperator) -> SymmetricOperator:
    """The operator on slices of vectors, where ranks share its data."""
    sliced: SymmetricOperator = operator.sliced() if hasattr(operator, "sliced") else operator
    return sliced


def basis_room(device: torch.device, ranks: Ranks) -> int:
    """Bytes that a rank's part of the basis may fill by default, the same on all of them."""
    return int(ranks.least(int(free_memory(device) * BASIS_SHARE) // (ranks.neighbours if device.type == "cpu" else 1)))


def agreed(ranks: Ranks, choose: Callable[[], Storage | int]) -> Storage | int:
    """What the first rank chooses: what is free may differ between machines, and the arithmetic must not."""
    return ranks.gather(ranks.together(choose))[0]


def _identity(operator: SymmetricOperator) -> dict[str, str]:
    """What an operator is, by its content where that is known."""
    known: dict[str, str] = getattr(operator, "identity", dict)()
    if isinstance(operator, Tensor):
        known = {"matrix's content": hashlib.blake2b(operator.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]}
    return {
        "matrix": type(operator).__name__,
        "number of parameters": str(operator.shape[0]),
        "dtype": str(operator.dtype),
        **known,
    }


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


def _most_steps(operator: SymmetricOperator, space: Space, basis: str, budget: int) -> int:
    """Steps that "auto" may take."""
    kept, p = STORAGES["half"] if basis == "auto" else storage(basis), space.size
    room = available(kept, budget, torch.device(operator.device))
    fitting = int(space.ranks.least(room // kept.row_bytes(-(-p // space.ranks.size), operator.dtype)))
    if fitting < min(p, AUTO_FIRST):
        raise MemoryError(
            f'steps="auto" needs a basis of {min(p, AUTO_FIRST)} vectors of {p:,} numbers at least, and {fitting} fit '
            f"into the {budget / 1e9:.2f} GB that it may fill; give it more with memory=, or a number of steps."
        )
    return min(p, fitting)


def _together(operator: SymmetricOperator, space: Space, keeping: Storage | int, limit: int, budget: int) -> int:
    """Number of probes whose bases fit into memory beside one another, and the resolved eigenvectors beside them."""
    length = -(-space.size // space.ranks.size)
    if isinstance(keeping, int):
        return max(1, budget // (4 * Storage().row_bytes(length, operator.dtype)))
    room = int(space.ranks.least(available(keeping, budget, torch.device(operator.device))))
    return max(1, room // (limit * keeping.row_bytes(length, operator.dtype)) - 1)


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
