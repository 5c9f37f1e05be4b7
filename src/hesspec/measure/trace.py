"""Trace of an operator to a wanted relative error, after its spectrum."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from hesspec.backend.algebra import SymmetricOperator, expect_products
from hesspec.backend.arithmetic import full_float32
from hesspec.backend.memory import parse_memory
from hesspec.backend.memory_shares import free_shares
from hesspec.backend.progress import OnStep
from hesspec.backend.ranks import ALONE
from hesspec.backend.user_warnings import warn
from hesspec.krylov.xtrace import FEWEST, LAST, xtrace_to
from hesspec.measure.arrays import as_operator
from hesspec.spectra.spectrum import Spectrum

__all__ = ["with_trace"]


@full_float32()
def with_trace(
    operator: SymmetricOperator,
    found: Spectrum,
    wanted: float,
    seed: int,
    memory: str | int | None,
    on_product: OnStep | None = None,
) -> Spectrum:
    """Add an estimate of the trace to a spectrum of the same operator, unless the spectrum itself is accurate enough.

    Parameters
    ----------
    operator : SymmetricOperator
    found : Spectrum
    wanted : float
        Relative error, half of the 95% interval over the trace.
    seed : int
        Seed of the test vectors.
    memory : str, int or None
        Device memory for the vectors, as in `hesspec.spectrum`.
    on_product : callable, optional
        See `hesspec.krylov.xtrace.xtrace_to`.

    Raises
    ------
    MemoryError
        If not even two test vectors fit.
    NonFiniteError
        If a product contains NaN or infinity.

    Warns
    -----
    UserWarning
        If the error is not reached.
    """
    if 2 * found.trace_standard_error <= wanted * abs(found.trace):
        return found
    operator = as_operator(operator)
    begin, ranks = time.perf_counter(), getattr(operator, "ranks", ALONE)
    device = torch.device(operator.device)
    budget = int(ranks.least(free_shares(device, ranks).basis)) if memory is None else parse_memory(memory)
    # XTrace holds three vectors for every two products.
    fitting = 2 * (budget // (3 * found.dimension * operator.dtype.itemsize))
    if fitting < FEWEST:
        raise MemoryError(
            f"The trace needs {3 * found.dimension * operator.dtype.itemsize * FEWEST / 2e9:.2f} GB in addition to the "
            "products; increase memory=, or leave out trace=."
        )
    expect_products(operator, None)
    # A relative error below that of the products themselves has no meaning.
    floor = found.dimension * found.rounding
    estimate = xtrace_to(operator, wanted, most=min(fitting, LAST), seed=seed, least=floor, on_product=on_product)
    measured = replace(
        found,
        xtrace=estimate.value,
        xtrace_error=estimate.standard_error,
        xtrace_matvecs=estimate.matvecs,
        attributes={
            **found.attributes,
            "wanted_trace_error": wanted,
            "trace_seconds": time.perf_counter() - begin,
        },
    )
    reached = 2 * estimate.standard_error
    if reached > max(wanted * abs(estimate.value), floor) and ranks.rank == 0:
        warn(
            f"The trace is {estimate.value:.4g} with an error of {reached:.2g} after {estimate.matvecs} products, "
            f"which is more than {wanted:g} of it: "
            + (
                "its eigenvalues nearly cancel, and a relative error cannot be reached."
                if reached >= abs(estimate.value)
                else "more products would be necessary than fit into memory or are worth their time."
            )
        )
    return measured
