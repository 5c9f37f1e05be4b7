"""Krylov runs of operators: the choice of their storage, their phases, and the spectra that they yield."""

from __future__ import annotations

import hashlib
import os
import time
import types
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from hesspec.backend.algebra import SymmetricOperator, check_operator, expect_products
from hesspec.backend.arithmetic import full_float32
from hesspec.backend.memory import parse_memory
from hesspec.backend.memory_shares import free_shares
from hesspec.backend.numbers import check_counts, check_seed, is_whole
from hesspec.backend.ranks import ALONE
from hesspec.krylov.requests import Requests, answered
from hesspec.krylov.run import KrylovRun, OnStep
from hesspec.krylov.snapshot import Snapshot
from hesspec.krylov.vectors import Space
from hesspec.matrices import MATRICES, symbol_of
from hesspec.measure.arrays import as_operator
from hesspec.measure.basis_memory import choose_storage, most_steps, parallel_probes, same_on_all_ranks, storage_text
from hesspec.measure.environment import environment
from hesspec.spectra.spectrum import Spectrum

__all__ = ["check_run", "name_of", "run_spectrum", "spectrum_requests"]


@full_float32()
def run_spectrum(
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
    # Of the whole run, also if a snapshot holds a part of it, so that it resumes in the same mode.
    expect_products(operator, None if steps == "auto" else min(steps, p) * probes)
    begin = time.perf_counter()
    device = torch.device(operator.device)
    operator, ranks = _sliced(operator), getattr(operator, "ranks", ALONE)
    space = Space(p, ranks)
    budget = int(ranks.least(free_shares(device, ranks).basis)) if memory is None else parse_memory(memory)
    limit = min(steps, p) if steps != "auto" else most_steps(operator, space, basis, offload, budget)
    keeping = same_on_all_ranks(
        ranks, lambda: choose_storage(operator, -(-p // ranks.size), limit, basis, offload, budget)
    )
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


def spectrum_requests(
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
    keeping = choose_storage(operator, p, limit, "auto", None, budget)
    run = KrylovRun(operator, space, seed, keeping, limit if steps != "auto" else None, probes, on_step, 0)
    yield from _phases(run, operator, space, limit, budget, None if steps != "auto" else tolerance)
    return _result(run, operator, seed, begin)


def check_run(steps: int | str, probes: int) -> None:
    """Raise ValueError unless these are numbers of steps and probes."""
    if steps != "auto" and not is_whole(steps, 1):
        raise ValueError(f"steps is {steps!r}; it must be a positive integer or 'auto'.")
    check_counts(probes=probes)


def _phases(
    run: KrylovRun, operator: SymmetricOperator, space: Space, limit: int, budget: int, tolerance: float | None
) -> Requests[None]:
    yield from run.first(limit, tolerance)
    yield from run.others(parallel_probes(operator, space, run.keeping, limit, budget))
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
        "basis": storage_text(run.keeping),
        "seconds": time.perf_counter() - begin,
        **saved,
        **environment(operator),
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
