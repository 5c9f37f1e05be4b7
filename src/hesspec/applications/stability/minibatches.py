"""Spectra of minibatch Hessians at one point."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, Literal

from torch import nn

from hesspec.backend.numbers import is_whole
from hesspec.measure.spectrum import spectrum
from hesspec.operators import GraphCache, Hessian
from hesspec.operators.risk.losses import LossFunction
from hesspec.operators.risk.parameters import ParameterSpec
from hesspec.spectra.spectrum import Spectrum

__all__ = ["minibatch_spectra"]


def minibatch_spectra(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    runs: int | None = None,
    steps: int | Literal["auto"] = 64,
    seed: int = 0,
    params: ParameterSpec = None,
) -> list[Spectrum]:
    """Measure the spectrum of the Hessian of each minibatch's loss, for `sharpness_dimension`.

    Parameters
    ----------
    model, loss_fn, params
        See `hesspec.Hessian`.
    batches : iterable
        Minibatches, such as a `DataLoader` that shuffles; iterated once. Each is the data of a separate operator.
    runs : int, optional
        Largest number of batches to measure; by default all of one pass.
    steps : int or "auto"
        See `hesspec.spectrum`. A step takes a product with the Hessian of one minibatch.
    seed : int
        Seed of the probe of the first spectrum; run r uses the seed `seed` + r.

    Returns
    -------
    list of Spectrum

    Raises
    ------
    ValueError
        If there are no batches, `runs` is out of range, or for the reasons of `hesspec.Hessian` and `hesspec.spectrum`.

    Notes
    -----
    Appendix C of arXiv 2604.19740 uses a fresh minibatch for each run, with 500 runs of 100 steps.
    """
    if runs is not None and not is_whole(runs, 1):
        raise ValueError(f"runs is {runs!r}; it must be a positive integer or None.")
    graphs = GraphCache(points=100 if runs is None else int(runs))
    found = [
        spectrum(Hessian(model, loss_fn, [batch], params, graphs=graphs), steps=steps, seed=seed + run)
        for run, batch in enumerate(islice(batches, runs))
    ]
    if not found:
        raise ValueError("There are no minibatches to measure: the data is empty.")
    return found
