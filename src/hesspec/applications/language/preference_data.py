"""Batches of preferences: pairs, single sequences with labels, and rankings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

from hesspec.backend.numbers import check_counts, is_whole
from hesspec.operators.data.structures import describe, flatten, map_tensors, tensors_of

__all__ = ["labelled", "pairs", "rankings"]

# Target that CrossEntropyLoss ignores unless told otherwise.
IGNORED: Final = -100


def pairs(good: Any, bad: Any, batch_size: int = 32) -> list[tuple[tuple[Any, Any], Tensor]]:
    """Make batches ((good, bad), zeros) for `Pairwise` and `torch.nn.CrossEntropyLoss`.

    Parameters
    ----------
    good, bad : Tensor (N, ...), or a structure of such tensors
        Inputs of the reward model: sequence i of `good` is preferred to sequence i of `bad`.
    batch_size : int
        Pairs in a batch; the last batch may be shorter.

    Returns
    -------
    list of ((good, bad), targets)
        Targets are zeros (n,), torch.int64.

    Raises
    ------
    ValueError
        If there are other numbers of good sequences than of bad ones, or none.
    """
    count = _common(good, bad)
    return [
        ((_taken(good, chosen), _taken(bad, chosen)), torch.zeros(chosen.stop - chosen.start, dtype=torch.int64))
        for chosen in _slices(count, batch_size)
    ]


def labelled(good: Any, bad: Any, batch_size: int = 32) -> list[tuple[Any, Tensor]]:
    """Make batches of single sequences with labels 1 and 0, for a reward model and `torch.nn.BCEWithLogitsLoss`.

    Parameters
    ----------
    good, bad : Tensor (N, ...), or a structure of such tensors
        As for `pairs`; sequences are padded to one length.
    batch_size : int
        Sequences in a batch, an even number: half of them are good.

    Returns
    -------
    list of (inputs, targets)
        Targets (n,) are 1 for the good sequences, which come first in each batch, and 0 for the bad ones, in the
        default dtype.

    Raises
    ------
    ValueError
        As `pairs`; or if sequences differ in their shapes, or `batch_size` is odd.
    """
    count = _common(good, bad)
    if not is_whole(batch_size, 2) or batch_size % 2:
        raise ValueError(f"batch_size is {batch_size!r}; it must be an even number, for as many good sequences as bad.")
    (firsts, form), (seconds, other) = flatten(good), flatten(bad)
    if form != other or [tensor.shape for tensor in firsts] != [tensor.shape for tensor in seconds]:
        raise ValueError(
            f"The good sequences are {describe(good)}, and the bad ones {describe(bad)}; pad both to one length, so "
            "that they fit into one batch."
        )
    made = []
    for chosen in _slices(count, batch_size // 2):
        joined = form.fill([torch.cat([a[chosen], b[chosen]]) for a, b in zip(firsts, seconds, strict=True)])
        half = chosen.stop - chosen.start
        made.append((joined, torch.cat([torch.ones(half), torch.zeros(half)])))
    return made


def rankings(responses: Any, ranks: Any = None, batch_size: int = 32) -> list[tuple[tuple[Any], Tensor]]:
    """Make batches ((responses,), targets) for `Ranking` and `torch.nn.CrossEntropyLoss`.

    Parameters
    ----------
    responses : Tensor (N, K, ...), or a structure of such tensors
        Inputs of the reward model for K responses to each of N prompts.
    ranks : Tensor (N, K), optional
        Rank of each response: the smaller the better. Equal ranks are ties, whose pair does not count. By default
        responses are given best first.
    batch_size : int
        Prompts in a batch; the last batch may be shorter.

    Returns
    -------
    list of ((responses,), targets)
        Responses best first; targets (n, K (K - 1) / 2), torch.int64, are 0, or -100 for ties.

    Raises
    ------
    ValueError
        If tensors have no common N and K, or the shape of `ranks` is not (N, K).
    """
    shapes = {tuple(tensor.shape[:2]) for tensor in tensors_of(responses)}
    shape = next(iter(shapes)) if len(shapes) == 1 else ()
    if len(shape) != 2 or not shape[0] or shape[1] < 2:
        raise ValueError(
            f"The responses are {describe(responses)}; rankings need tensors (N, K, ...) of K responses to each of N "
            "prompts, at least 2."
        )
    places = torch.arange(shape[1]).expand(shape) if ranks is None else torch.as_tensor(ranks).cpu()
    if places.shape != shape:
        raise ValueError(f"ranks has shape {tuple(places.shape)}; it must be {shape}, one rank for each response.")
    values, order = places.sort(dim=1, stable=True)
    better, worse = torch.triu_indices(shape[1], shape[1], offset=1)
    targets = torch.where(values[:, better] == values[:, worse], IGNORED, 0)
    rows = torch.arange(shape[0])[:, None]
    ordered = map_tensors(lambda tensor: tensor[rows.to(tensor.device), order.to(tensor.device)], responses)
    return [((_taken(ordered, chosen),), targets[chosen]) for chosen in _slices(shape[0], batch_size)]


def _common(good: Any, bad: Any) -> int:
    """Return the number of pairs."""
    found = []
    for name, side in (("good", good), ("bad", bad)):
        counts = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors_of(side)}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(
                f"{name} is {describe(side)}; it must be a tensor (N, ...), or a structure of tensors with the same "
                "N > 0."
            )
        found.append(counts.pop())
    if found[0] != found[1]:
        raise ValueError(
            f"There are {found[0]:,} good and {found[1]:,} bad sequences; a pair has one of each, in this order. Leave "
            "out those without a partner."
        )
    return found[0]


def _slices(count: int, size: int) -> Iterator[slice]:
    check_counts(batch_size=size)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _taken(structure: Any, chosen: slice) -> Any:
    return map_tensors(lambda tensor: tensor[chosen], structure)
