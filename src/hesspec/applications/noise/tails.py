"""Tail index of stable data from the growth of sums with the length of blocks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hesspec.applications.noise.tail_record import TailIndex
from hesspec.backend.numbers import is_whole, real_array
from hesspec.backend.text import kind_of
from hesspec.spectra.record import Array

__all__ = ["tail_index"]

# Fewest blocks for which an estimate of the curve has a standard error worth drawing.
FEWEST_BLOCKS = 10


def tail_index(x: Any, *, block: int | None = None, axis: int | None = 0) -> TailIndex:
    r"""Estimate the tail index alpha of symmetric stable data, whose sums of n values grow like n^(1/alpha).

    With the values of a component cut into n2 blocks of n1 successive ones, and Y_i the sum of block i,

    .. math:: \frac{1}{\hat\alpha} = \frac{1}{\log n_1} \Big( \frac{1}{n_2} \sum_i \log |Y_i|
              - \frac{1}{n_1 n_2} \sum_j \log |X_j| \Big)

    Parameters
    ----------
    x : array or Tensor (n,) or (n, k)
        Independent values with mean or median 0, such as gradient noise: a row for each batch, a column for each
        component. A mean that is not 0 makes sums grow like n, and alpha tend to 1.
    block : int, optional
        Length of blocks, n1; by default the largest integer up to sqrt(n). Values after the last whole block are
        not used.
    axis : int or None
        Axis of the batches, along which values are summed. None sums successive entries of the flattened array, as the
        authors' code (sgd_tail_index) does with gradients; use it for comparison only. The entries of a gradient have
        different scales, and a mixture of scales looks like heavy tails.

    Returns
    -------
    TailIndex
        alpha of each component and of all components together, with standard errors, and alpha against the length of
        blocks.

    Raises
    ------
    ValueError
        If the shape or an argument is out of range, values are not finite, or all are zero.

    Notes
    -----
    Corollary 2.4 of Mohammadi (2014), as the authors' code cites it. For stable data 1/alpha is unbiased for any length
    of blocks. For all other data alpha depends on it: finite variance gives alpha = 2 only for long blocks, so a single
    number does not show that tails are heavy. Compare alpha for several lengths (`TailIndex.plot`): that of stable data
    is constant.

    The standard error is that of the mean over blocks, which is right for dependent components as well. The variance of
    log\|X\| of stable data is pi^2/6 (1/alpha^2 + 1/2), and the standard error of 1/alpha is about its square root
    divided by sqrt(n2) log n1.

    Exact zeros, as from units that are inactive, have no logarithm. They are dropped and counted, and a block counts by
    its number of nonzero values (ours): 1/alpha is then the sum over blocks of log\|Y_i\| minus the mean log\|X_j\| in
    the block, divided by the sum of the logarithms of these numbers.

    Examples
    --------
    >>> import torch, hesspec
    >>> draws = hesspec.noise.stable_noise(1.5, (10_000, 3), torch.Generator().manual_seed(0))
    >>> found = hesspec.noise.tail_index(draws)
    >>> round(found.alpha, 1), found.alphas.round(1)
    (1.5, array([1.5, 1.5, 1.5]))
    """
    values = _checked(x, axis)
    n = len(values)
    if block is None:
        block = math.isqrt(n)
    elif not is_whole(block, 2):
        raise ValueError(f"block is {block!r}; it must be an integer of at least 2, the number of values in a sum.")
    if n // block < 2:
        raise ValueError(f"There are {n:,} values, fewer than two blocks of {block:,}; reduce block=.")
    inverses, errors, inverse, error = _estimate(values, int(block))
    lengths = {1 << power for power in range(1, n.bit_length()) if n >> power >= FEWEST_BLOCKS} | {int(block)}
    curve = [_estimate(values, length)[2:] for length in sorted(lengths)]
    return TailIndex(
        inverse=inverse,
        inverse_error=error,
        inverses=inverses,
        inverse_errors=errors,
        block=int(block),
        blocks=n // int(block),
        samples=n,
        zeros=(values == 0).sum(axis=0).astype(np.int64),
        lengths=np.array(sorted(lengths), dtype=np.int64),
        curve=np.array([each for each, _ in curve]),
        curve_errors=np.array([each for _, each in curve]),
    )


def _checked(x: Any, axis: int | None) -> Array:
    """Return the values (n, k), scaled by the largest of each component so that sums do not overflow."""
    values = _columns(x, axis)
    if len(values) < 4:
        raise ValueError(f"x has {len(values)} values for each component; a tail index needs at least 4, better 1,000.")
    largest = np.abs(values).max(axis=0)
    if not largest.any():
        raise ValueError("All values of x are zero; there is no tail to measure.")
    return np.asarray(values / np.where(largest > 0, largest, 1.0))


def _columns(x: Any, axis: int | None) -> Array:
    """Return the values with a row for each batch and a column for each component."""
    if hasattr(x, "along_eigenvectors"):
        raise ValueError(f"x is {kind_of(x)}; pass its along_eigenvectors or its in_bulk.")
    values = real_array("x", x)
    if axis is None:
        values = values.reshape(-1)
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(f"x has shape {values.shape}; it must be (n,), or (n, k) with a column for each component.")
    if axis is not None:
        if not is_whole(axis) or not -values.ndim <= axis < values.ndim:
            raise ValueError(
                f"axis is {axis!r}, but x has {values.ndim} dimensions; pass that of the batches, or None."
            )
        values = np.moveaxis(values, axis, 0)
    return values.reshape(len(values), -1)


def _estimate(values: Array, block: int) -> tuple[Array, Array, float, float]:
    """Return 1/alpha and its standard error for each component, and for all components together."""
    blocks = len(values) // block
    cut = values[: blocks * block].reshape(blocks, block, -1)
    sums, counts = np.abs(cut.sum(axis=1)), (cut != 0).sum(axis=1)
    with np.errstate(divide="ignore"):
        logs = np.where(cut != 0, np.log(np.abs(cut)), 0.0).sum(axis=1)
        # Blocks without values, and those whose values cancel exactly, are left out.
        used = (counts > 0) & (sums > 0)
        growth = np.where(used, np.log(sums) - logs / np.maximum(counts, 1), 0.0)
    lengths = np.where(used, np.log(np.maximum(counts, 1)), 0.0)
    inverses, errors = _ratio(growth, lengths)
    inverse, error = _ratio(growth.sum(axis=1, keepdims=True), lengths.sum(axis=1, keepdims=True))
    return inverses, errors, float(inverse[0]), float(error[0])


def _ratio(growth: Array, lengths: Array) -> tuple[Array, Array]:
    """Ratios of sums over blocks, and their standard errors by linearisation; nan without nonzero values."""
    blocks, total = len(growth), lengths.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = growth.sum(axis=0) / total
        rest = ((growth - found * lengths) ** 2).sum(axis=0)
        return found, np.sqrt(rest * blocks / (blocks - 1)) / total
