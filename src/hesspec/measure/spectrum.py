"""Measurement of the spectrum of an operator with one Krylov run: `hesspec.spectrum`."""

from __future__ import annotations

import os
from typing import Literal

from hesspec.backend.algebra import SymmetricOperator
from hesspec.backend.bars import steps_of
from hesspec.backend.heap import returned_memory
from hesspec.backend.numbers import is_real
from hesspec.krylov.run import OnStep
from hesspec.measure.runs import name_of, run_spectrum
from hesspec.measure.trace import with_trace
from hesspec.spectra.spectrum import Spectrum

__all__ = ["spectrum"]


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
        another number of ranks, or of steps for which products are computed in another mode, up to rounding. The number
        of steps of the first probe may differ. The snapshot is not
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
        run = run_spectrum(operator, steps, probes, seed, tolerance, memory, basis, offload, shown, 0, snapshot, every)
    found = run[1]
    if trace is None:
        return found
    with steps_of(f"trace of {name_of(operator)}", None, wanted=progress and on_step is None, unit="product") as shown:
        return with_trace(operator, found, float(trace), seed, memory, shown)
