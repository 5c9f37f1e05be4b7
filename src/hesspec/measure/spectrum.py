"""Measurement of the spectrum of an operator with one Krylov run: `hesspec.spectrum` and `hesspec.eigenpairs`."""

from __future__ import annotations

import hashlib
import math
import os
import time
import types
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hesspec.backend.algebra import SymmetricOperator, check_operator
from hesspec.backend.arithmetic import full_float32
from hesspec.backend.bars import steps_of
from hesspec.backend.heap import returned_memory
from hesspec.backend.memory import parse_memory
from hesspec.backend.memory_shares import free_shares
from hesspec.backend.number_text import plus_minus
from hesspec.backend.numbers import check_seed, is_real, is_whole
from hesspec.backend.ranks import ALONE, Ranks
from hesspec.backend.shown import Shown, TextTable
from hesspec.krylov.lanczos_state import rounding_unit
from hesspec.krylov.requests import Requests, answered
from hesspec.krylov.ritz import Array
from hesspec.krylov.run import KrylovRun, OnStep
from hesspec.krylov.snapshot import Snapshot
from hesspec.krylov.storage import Storage
from hesspec.krylov.vectors import Space
from hesspec.matrices import MATRICES, symbol_of
from hesspec.measure.arrays import as_operator
from hesspec.measure.keeping import basis_in_words, how_kept, most_steps, together
from hesspec.measure.surroundings import surroundings
from hesspec.measure.trace import with_trace
from hesspec.spectra.sampling import residual_bound
from hesspec.spectra.spectrum import Spectrum

__all__ = [
    "Eigenpairs",
    "agreed",
    "eigenpairs",
    "measured",
    "measuring",
    "outlier_pairs",
    "pairs_of",
    "spectrum",
]


@returned_memory()
def spectrum(
    operator: SymmetricOperator,
    *,
    steps: int | Literal["auto"] = 64,
    probes: int = 1,
    seed: int = 0,
    tolerance: float = 0.05,
    trace: float | None = None,
    memory: str | int | None = None,
    basis: str = "auto",
    offload: str | None = None,
    on_step: OnStep | None = None,
    progress: bool = True,
    snapshot: str | os.PathLike[str] | None = None,
    every: str | float = "10min",
) -> Spectrum:
    """Measure the whole spectrum of a symmetric operator with one Lanczos run.

    Ritz pairs whose residual bounds prove them to be single eigenvalues become atoms of weight 1/p; the other nodes of
    the same run form a Gauss quadrature of the rest of the measure and share its weight. Further probes start
    orthogonal to the resolved eigenvectors and refine only the bulk.

    Parameters
    ----------
    operator : SymmetricOperator
        Any symmetric operator with `shape` (p, p), `dtype` (float32 or float64), `device` and `@` with vectors (p,),
        for several probes also with matrices (p, k): operators of hesspec or curvlinops, a dense tensor; or a NumPy
        array, a sparse matrix or `LinearOperator` of SciPy. If it has a `reference`, the same operator at full
        precision, the error of its products is measured and included in all bounds.
    steps : int or "auto"
        Lanczos steps of each probe. "auto" continues until the measure from all steps and that from the first half of
        them differ by at most `tolerance`. At most p steps are taken, after which the spectrum is exact.
    probes : int
        Number of random start vectors. One is enough for large networks: the standard error of any mean over the
        spectrum is sqrt(2/(p + 2)) of the standard deviation, 0.03% for p = 28 million. More probes help if p is a few
        thousand. The first runs alone, as it finds the eigenvalues to which the others are kept orthogonal; the others
        run in lockstep, as many as fit into memory, so the data is read about twice `steps` times, however many there
        are.
    seed : int
        Seed of the probes; the same seed gives the same spectrum.
    tolerance : float
        Wasserstein-1 distance relative to the mean of |lambda| at which `steps="auto"` stops.
    trace : float, optional
        Wanted relative error of the trace, such as 0.02: half of its 95% interval over its size. If the run does not
        give it, further products do (`hesspec.krylov.xtrace.xtrace_to`), at most 1,008 of them and as many as fit into
        memory; they come after the Krylov run, whose snapshot is complete by then. Their estimate becomes
        `Spectrum.trace`. If the error is not reached, as for a trace near zero, a warning says so.
    memory : str or int, optional
        Device memory that the Krylov basis may use: "8GB", "500MB", or a number of bytes. By default 40% of the free
        memory.
    basis : str
        How the basis is stored: "full" (in the precision of the vectors) or "half" (with half of the bits, which is as
        accurate: see `hesspec.krylov.storage.Storage`); "restarted" stores as many vectors as fit, finds the outermost
        eigenvalues by thick restarts, and measures the bulk with a run that stores none. "auto" uses the first that
        fits: "full" or "half" on the device, on the host, on disk, then "restarted".
    offload : {"host", "disk"}, optional
        Store the basis in the memory of the host, or in a temporary file, instead of on the operator's device.
    on_step : callable, optional
        Called after each step with the number of completed steps and their total over all probes (None while it is
        unknown with "auto").
    progress : bool
        Whether to show a bar with the current phase (reading, tracing, verifying, steps) if this takes longer than two
        seconds, in a terminal or a notebook. There is none if `on_step` is given.
    snapshot : path, optional
        Folder for periodic snapshots: new, empty, or with a snapshot. If it holds a snapshot of this run, the call
        resumes from it: in one process with the same number of threads it returns the same spectrum bit for bit, with
        another number of ranks up to rounding. The number of steps of the first probe may differ. The snapshot is not
        deleted at the end, and needs about as much space as the basis. Only files that hesspec wrote are removed or
        replaced, and only one run at a time can use the folder. The files are safetensors and JSON: reading those of
        others does not execute code.
    every : str or float
        Time between snapshots: "10min", "30s", or a number of seconds.

    Returns
    -------
    Spectrum

    Raises
    ------
    ValueError
        If an argument is out of range; the operator lacks an attribute or is not symmetric (`NotSymmetricError`); or
        the snapshot cannot be read or belongs to another model, data set, matrix or seed, or its folder has other files
        and no snapshot.
    NonFiniteError
        If a product contains NaN or infinity.
    MemoryError
        If the Krylov basis, steps x p numbers, exceeds its memory.
    OSError
        If a snapshot or a basis on disk cannot be written, or another run uses the folder of the snapshot.
    RankError
        If another rank failed or exited.

    Notes
    -----
    If the ranks of a group share the data of the operator (`group=...`), every rank stores a slice of each Krylov
    vector, and all ranks return the spectrum. Vectors are gathered for each product and the slices of products are
    scattered; memory and time of orthogonalisation decrease with the number of ranks.

    Bhattacharjee, Jayaram, C. Musco, C. Musco and Ray, "Improved Spectral Density Estimation via Explicit and Implicit
    Deflation" (2024), for the deflated measure; errors are described at `Spectrum`. A multiple eigenvalue is resolved
    once (or as often as rounding produces copies), and its other copies form a node of the bulk with the measured
    weight. Multiplicities of two or three of a few eigenvalues are not detected unless the Krylov space fills R^p, as a
    probe cannot tell them from simple eigenvalues: they are counted once.

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
    if not is_real(tolerance) or not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance!r}; it must be positive.")
    if trace is not None and not (isinstance(trace, int | float) and 0 < trace < 1):
        raise ValueError(f"trace is {trace!r}; it must be a relative error between 0 and 1, such as 0.02.")
    with steps_of(f"spectrum of {name_of(operator)}", on_step, wanted=progress) as shown:
        run = measured(operator, steps, probes, seed, tolerance, memory, basis, offload, shown, 0, snapshot, every)
    found = run[1]
    if trace is None:
        return found
    with steps_of(f"trace of {name_of(operator)}", None, wanted=progress and on_step is None, unit="product") as shown:
        return with_trace(operator, found, float(trace), seed, memory, shown)


@dataclass(frozen=True, repr=False)
class Eigenpairs(Shown):
    """Eigenvectors of the resolved eigenvalues with the largest absolute value, and the spectrum of the same run.

    Attributes
    ----------
    values : array (k,)
        Rayleigh quotients v^T A v, largest absolute value first.
    residuals : array (k,)
        Measured ||A v - value v||, plus an allowance for rounding: each value is at most this far from an eigenvalue.
    vector_errors : array (k,)
        Bound on the sine of the angle between v and the eigenvector, residual / gap (Davis and Kahan 1970). The gap is
        the distance to the nearest other eigenvalue or node of the spectrum, minus the error bound of that one. The
        bound is 1 if it gives no information, as for an eigenvalue that is known to be multiple. It holds if no
        eigenvalue in the gap was missed.
    vectors : Tensor (p, k)
        Unit eigenvectors, one per column.
    spectrum : Spectrum
        Spectrum from the same run.
    """

    values: Array
    residuals: Array
    vector_errors: Array
    vectors: Tensor
    spectrum: Spectrum

    def summary(self) -> dict[str, str]:
        """Names and values as text."""
        return {
            "matrix": symbol_of(str(self.spectrum.attributes.get("matrix", "operator"))),
            "parameters": f"{self.spectrum.dimension:,}",
            "eigenvectors": f"{self.values.size}, {self.vectors.dtype} on {self.vectors.device}",
        }

    def tables(self) -> list[TextTable]:
        """Table of the eigenvalues."""
        numbers = zip(self.values, self.residuals, self.vector_errors, strict=True)
        rows = [
            (str(rank), plus_minus(value, residual), f"{error:.2g}")
            for rank, (value, residual, error) in enumerate(numbers, 1)
        ]
        return [TextTable("", ("", "eigenvalue", "error of the eigenvector"), rows)]


@returned_memory()
def eigenpairs(
    operator: SymmetricOperator,
    *,
    count: int,
    steps: int = 64,
    seed: int = 0,
    memory: str | int | None = None,
    basis: str = "auto",
    offload: str | None = None,
    on_step: OnStep | None = None,
    progress: bool = True,
) -> Eigenpairs:
    """Measure a spectrum, and return it with the eigenvectors of its largest resolved eigenvalues.

    Parameters
    ----------
    operator, steps, seed, memory, basis, offload, on_step, progress
        See `spectrum`.
    count : int
        Largest number of eigenvectors, by absolute eigenvalue; fewer are returned if fewer are resolved. Each needs
        one more product and p numbers of memory.

    Returns
    -------
    Eigenpairs

    Raises
    ------
    ValueError, NonFiniteError, MemoryError
        See `spectrum`.

    Examples
    --------
    >>> import torch, hesspec
    >>> operator = torch.diag(torch.cat([torch.linspace(-0.1, 0.1, 300), torch.tensor([5.0, 9.0])]))
    >>> pairs = hesspec.eigenpairs(operator, count=2, steps=32)
    >>> pairs.values.round(4), pairs.vectors[-1].abs().round(decimals=4)
    (array([9., 5.]), tensor([1., 0.]))
    """
    if not is_whole(count, 1):
        raise ValueError(f"count is {count!r}; it must be a positive integer.")
    with steps_of(f"eigenpairs of {name_of(operator)}", on_step, wanted=progress) as shown:
        run, found = measured(operator, steps, 1, seed, 0.0, memory, basis, offload, shown, int(count))
    return pairs_of(run, found, np.arange(len(run.top)))


@returned_memory()
def outlier_pairs(
    operator: SymmetricOperator,
    *,
    classes: int,
    least: int,
    steps: int = 64,
    seed: int = 0,
    memory: str | int | None = None,
    basis: str = "auto",
    offload: str | None = None,
    on_step: OnStep | None = None,
) -> tuple[Eigenpairs, npt.NDArray[np.intp]]:
    """Measure the eigenpairs of the outliers among the 2 C largest eigenvalues, and of the `least` largest in any case.

    Late in training the C eigenvalues of the class structure may blend into the tail of the bulk.

    Returns
    -------
    pairs : Eigenpairs
    places : int array (n,)
        Their indices in the spectrum.
    """
    run, found = measured(operator, steps, 1, seed, 0.0, memory, basis, offload, on_step, 2 * classes)
    found = replace(found, attributes={**found.attributes, "classes": classes})
    chosen = np.flatnonzero(found.is_outlier[: len(run.top)] | (np.arange(len(run.top)) < least))
    return pairs_of(run, found, chosen), chosen


def pairs_of(run: KrylovRun, found: Spectrum, chosen: npt.NDArray[np.intp]) -> Eigenpairs:
    """Compute selected eigenpairs of the largest resolved eigenvalues, with one product for each."""
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
    # Largest part of a residual that rounding and other errors of products may hide.
    floor = max(rounding_unit(operator.dtype) * found.norm, found.rounding / math.sqrt(found.steps))
    values, residuals = operator.restore(values), operator.restore(residuals) + floor
    vectors = slices
    if space.ranks.size > 1:
        vectors = torch.empty(space.size, chosen.size, dtype=operator.dtype, device=operator.device)
        for i, vector in enumerate(slices.T):
            vectors[:, i] = space.ranks.whole(vector, space.size)
    errors = _vector_errors(found, chosen, values, residuals)
    # The eigenvector of an eigenvalue that is or may be multiple is not unique.
    errors[~run.simple[chosen]] = 1.0
    return Eigenpairs(values, residuals, errors, vectors, found)


def _vector_errors(found: Spectrum, chosen: npt.NDArray[np.intp], values: Array, residuals: Array) -> Array:
    """Residual over gap, where the gap is the smallest distance to another point of the measure."""
    points = np.concatenate([found.eigenvalues, found.bulk_nodes])
    radii = np.concatenate([found.error_bounds, [residual_bound(found, node) for node in found.bulk_nodes]])
    distances = np.abs(points - values[:, None]) - radii
    distances[np.arange(chosen.size), chosen] = np.inf
    gaps = distances.min(axis=1, initial=np.inf)
    return np.asarray(np.divide(residuals, gaps, out=np.ones(chosen.size), where=residuals < gaps))


@full_float32()
def measured(
    operator: SymmetricOperator,
    steps: int | Literal["auto"],
    probes: int,
    seed: int,
    tolerance: float,
    memory: str | int | None,
    basis: str,
    offload: str | None,
    on_step: OnStep | None,
    wanted: int,
    snapshot: str | os.PathLike[str] | None = None,
    every: str | float = "10min",
) -> tuple[KrylovRun, Spectrum]:
    """Return the spectrum and the run that it comes from, with the requested number of eigenvectors."""
    p = check_operator(operator := as_operator(operator))
    check_run(steps, probes)
    seed = check_seed(seed)
    if on_step is not None and not callable(on_step):
        raise ValueError(f"on_step is {on_step!r}; it must be a function of the steps done and their number.")
    if snapshot is not None and not isinstance(snapshot, str | os.PathLike):
        raise ValueError(f"snapshot is {snapshot!r}; it must be the path of a folder.")
    begin = time.perf_counter()
    device = torch.device(operator.device)
    operator, ranks = _sliced(operator), getattr(operator, "ranks", ALONE)
    space = Space(p, ranks)
    budget = int(ranks.least(free_shares(device, ranks).basis)) if memory is None else parse_memory(memory)
    limit = min(steps, p) if steps != "auto" else most_steps(operator, space, basis, offload, budget)
    keeping = agreed(ranks, lambda: how_kept(operator, -(-p // ranks.size), limit, basis, offload, budget))
    keeper = None
    if snapshot is not None:
        identity = {**_identity(operator), "seed": str(seed), "number of probes": str(probes)}
        keeper = Snapshot(snapshot, every, space, dtype=operator.dtype, device=device, identity=identity)
    with keeper or nullcontext():
        run = KrylovRun(
            operator, space, seed, keeping, limit if steps != "auto" else None, probes, on_step, wanted, keeper
        )
        answered(_phases(run, operator, space, limit, budget, None if steps != "auto" else tolerance), run.multiplied)
    saved = {} if keeper is None else {"snapshot_seconds": keeper.seconds}
    return run, _result(run, operator, seed, begin, saved)


def measuring(
    operator: SymmetricOperator,
    *,
    steps: int | Literal["auto"],
    probes: int,
    seed: int,
    tolerance: float,
    budget: int,
    on_step: OnStep | None = None,
) -> Requests[Spectrum]:
    """Measure a spectrum with products that are computed elsewhere: see `hesspec.krylov.requests`.

    Several of them can advance in lockstep, with one pass over the data for the products of all.

    Parameters
    ----------
    operator, steps, probes, seed, tolerance, on_step
        See `spectrum`. Only the operator's `reference` is multiplied here. Its vectors are whole on each rank.
    budget : int
        Device memory for the Krylov basis, in bytes.
    """
    p = check_operator(operator)
    begin, space = time.perf_counter(), Space(p)
    limit = min(steps, p) if steps != "auto" else most_steps(operator, space, "auto", None, budget)
    keeping = how_kept(operator, p, limit, "auto", None, budget)
    run = KrylovRun(operator, space, seed, keeping, limit if steps != "auto" else None, probes, on_step, 0)
    yield from _phases(run, operator, space, limit, budget, None if steps != "auto" else tolerance)
    return _result(run, operator, seed, begin)


def check_run(steps: int | str, probes: int) -> None:
    """Raise ValueError unless these are numbers of steps and probes."""
    if steps != "auto" and not is_whole(steps, 1):
        raise ValueError(f"steps is {steps!r}; it must be a positive integer or 'auto'.")
    if not is_whole(probes, 1):
        raise ValueError(f"probes is {probes!r}; it must be a positive integer.")


def _phases(
    run: KrylovRun, operator: SymmetricOperator, space: Space, limit: int, budget: int, tolerance: float | None
) -> Requests[None]:
    yield from run.first(limit, tolerance)
    yield from run.others(together(operator, space, run.keeping, limit, budget))
    yield from run.confirm()


def _result(
    run: KrylovRun,
    operator: SymmetricOperator,
    seed: int,
    begin: float,
    saved: Mapping[str, float] = types.MappingProxyType({}),
) -> Spectrum:
    attributes: dict[str, Any] = {
        **getattr(operator, "attributes", {}),
        "seed": seed,
        "basis": basis_in_words(run.keeping),
        "seconds": time.perf_counter() - begin,
        **saved,
        **surroundings(operator),
        "reorthogonalised_steps": run.reorthogonalised_steps,
    }
    return Spectrum(**run.measure(), attributes=attributes)


def name_of(operator: SymmetricOperator) -> str:
    """Symbol of a curvature matrix, or what another operator is."""
    name = type(operator).__name__
    return symbol_of(name) if name in MATRICES else "an operator"


def _sliced(operator: SymmetricOperator) -> SymmetricOperator:
    """Return the operator on slices of vectors if ranks share its data."""
    sliced: SymmetricOperator = operator.sliced() if hasattr(operator, "sliced") else operator
    return sliced


def agreed(ranks: Ranks, choose: Callable[[], Storage | int]) -> Storage | int:
    """Return rank 0's choice on every rank: free memory differs between machines, but the arithmetic must not."""
    return ranks.gather(ranks.together(choose))[0]


def _identity(operator: SymmetricOperator) -> dict[str, str]:
    """Identify an operator, by its content where that is known."""
    known: dict[str, str] = getattr(operator, "identity", dict)()
    if isinstance(operator, Tensor):
        known = {"matrix's content": hashlib.blake2b(operator.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]}
    return {
        "matrix": type(operator).__name__,
        "number of parameters": str(operator.shape[0]),
        "dtype": str(operator.dtype),
        **known,
    }
