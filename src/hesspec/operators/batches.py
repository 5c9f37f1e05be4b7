"""Data that is read batch by batch, and checked to be the same in every pass."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hesspec._ranks import ALONE, Ranks
from hesspec.operators.losses import Loss

__all__ = ["Batch", "Batches", "can_be_split", "check_data", "octets", "pair", "taken"]

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Batch:
    """One batch on the device of the model.

    Attributes
    ----------
    index : int
        Its place in the data.
    inputs, targets
        As the data gives them, tensors moved to the device; floating-point ones in the model's dtype.
    share : float
        What the loss of this batch is multiplied by in the loss of all data.
    """

    index: int
    inputs: Any
    targets: Any
    share: float

    @property
    def samples(self) -> int:
        """Number of samples."""
        return _samples(self.inputs, self.targets)

    def leaves(self) -> tuple[list[Any], pytree.TreeSpec]:
        """The tensors (and whatever else) of inputs and targets in one list, and how to put them back."""
        return pytree.tree_flatten((self.inputs, self.targets))


class Batches:
    """Re-iterable `(inputs, targets)` batches with the weights that make batches add up to the whole.

    Parameters
    ----------
    data : iterable of (inputs, targets)
        A DataLoader, a list. Inputs are a tensor, a tuple or list of positional arguments of the model, or a mapping of
        keyword arguments.
    loss : Loss
    device, dtype
        Where tensors are brought to; dtype applies to floating-point ones.
    ranks : Ranks, optional
        Processes each of which has batches of its own, of the same data.

    Attributes
    ----------
    sizes : tuple of int
        Number of samples of each batch.
    samples : int
        Number of samples in all batches.
    terms : float
        Number (or total weight) of loss terms in all batches of all ranks.
    shares : list of float
        For each batch, what its loss is multiplied by in the loss of all data; 0 for a batch without terms.

    Raises
    ------
    ValueError
        If the data is empty, can be iterated once only, holds something else than pairs, has no loss term at all, or
        changes between passes (seen in the next pass).
    """

    def __init__(
        self, data: Iterable[Any], loss: Loss, *, device: torch.device, dtype: torch.dtype, ranks: Ranks = ALONE
    ) -> None:
        check_data(data)
        self._data, self._loss, self._device, self._dtype = data, loss, device, dtype
        self._fingerprints: list[tuple[float, ...]] = []
        self.sizes, terms = ranks.together(self._read)
        self.samples, self.terms = sum(self.sizes), ranks.total(sum(terms))
        if not self.terms > 0:
            raise ValueError(
                f"The loss has no term: the terms (or weights) of all samples sum to {self.terms:g}, as where every "
                "target has the ignored index."
            )
        summed = loss.reduction == "sum"
        # A batch without terms has the mean 0/0; it adds nothing and is passed over.
        self.shares = [(1.0 if summed else count / self.terms) if count else 0.0 for count in terms]

    def _read(self) -> tuple[tuple[int, ...], list[float]]:
        """Numbers of samples and of terms of all batches."""
        terms: list[float] = []
        samples: list[int] = []
        for index, item in enumerate(self._data):
            inputs, targets = pair(index, item)
            samples.append(_samples(inputs, targets))
            terms.append(self._loss.terms(targets, samples[-1]))
            self._fingerprints.append(_fingerprint(item))
        if not samples:
            raise ValueError(
                "data is empty: it has no batch. Pass a DataLoader or a list of (inputs, targets) batches."
            )
        return tuple(samples), terms

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.shares)

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order, checked to be those of the first pass.

        Raises
        ------
        ValueError
            If a batch is not what it was, or their number changed.
        """
        count = 0
        for index, item in enumerate(self._data):
            count = index + 1
            if count > len(self):
                break
            self._check(index, item)
            if self.shares[index]:
                inputs, targets = pytree.tree_map(self._place, pair(index, item))
                yield Batch(index, inputs, targets, self.shares[index])
        if count != len(self):
            raise ValueError(
                f"data changed between passes: it had {len(self)} batches in the first pass, and now has "
                f"{'more' if count > len(self) else count}. A matrix needs the same data in every pass."
            )

    def digest(self) -> int:
        """A number of 128 bits of the content: the same whatever the samples' order and batches are.

        Numbers of parts of the data add up, modulo 2^128, to that of the whole. Batches that cannot be split count as
        one sample.
        """
        total = 0
        for number, item in enumerate(self._data):
            batch = Batch(number, *pair(number, item), 1.0)
            leaves, _ = batch.leaves()
            count = batch.samples if can_be_split(batch) else 1
            # What all samples share counts with each of them.
            shared = [octets(x) if isinstance(x, Tensor) else repr(x).encode() for x in leaves if not _splits(x, count)]
            apart = [x for x in leaves if _splits(x, count)]
            for index in range(count):
                found = hashlib.blake2b(b"".join(shared), digest_size=16)
                for leaf in apart:
                    found.update(octets(leaf[index]))
                total += int.from_bytes(found.digest())
        return total % 2**128

    def split(self, batch: Batch, parts: int) -> list[Batch]:
        """Parts of a batch, of as equal numbers of samples as there are; those without a loss term are left out.

        Every tensor of inputs and targets whose first dimension is the number of samples is split, and each part is
        given all that is not (a mask that all samples share). This is not possible where that number cannot be told,
        and the batch then stays whole: inputs and targets do not begin with the same number (targets of all tokens in
        one dimension), or it is one.

        Parameters
        ----------
        batch : Batch
            One of these batches.
        parts : int
            Their number; at most the number of samples.
        """
        if parts == 1 or not can_be_split(batch):
            return [batch]
        return self.select(batch, torch.arange(batch.samples).tensor_split(min(parts, batch.samples)))

    def select(self, batch: Batch, groups: Iterable[Tensor]) -> list[Batch]:
        """Groups of the samples of a batch that can be split (`can_be_split`), without those that have no loss term.

        Parameters
        ----------
        batch : Batch
            One of these batches.
        groups : iterable of Tensor (k,)
            Indices of samples, ascending.
        """
        leaves, structure = batch.leaves()
        samples = batch.samples
        total = self._loss.terms(batch.targets, samples)
        result = []
        for group in groups:
            inputs, targets = pytree.tree_unflatten(taken(leaves, group, samples), structure)
            terms = self._loss.terms(targets, _samples(inputs, targets))
            share = batch.share if self._loss.reduction == "sum" else batch.share * terms / total
            if terms:
                result.append(Batch(batch.index, inputs, targets, share))
        return result

    def _check(self, index: int, item: Any) -> None:
        seen = _fingerprint(item)
        if _same(seen, self._fingerprints[index]):
            return
        if any(_same(seen, other) for other in self._fingerprints):
            cause = f"batch {index} is now what another batch was; set shuffle=False"
        else:
            cause = (
                f"batch {index} has other values than in the first pass (checksums {self._fingerprints[index][-1]:.9g} "
                f"and {seen[-1]:.9g}); switch off random augmentation, and shuffle=False in a DataLoader"
            )
        raise ValueError(f"data changed between passes: {cause}. A matrix needs the same data in every pass.")

    def _place(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.clone() if leaf.is_inference() else leaf
        return leaf.to(device=self._device, dtype=self._dtype if leaf.is_floating_point() else leaf.dtype)


def check_data(data: Any) -> None:
    """Refuse what is no iterable of batches, or can be iterated once only, with ValueError."""
    if not isinstance(data, Iterable):
        raise ValueError(f"data is a {type(data).__name__}, which is no iterable of (inputs, targets) batches.")
    if isinstance(data, Iterator):
        raise ValueError(
            f"data is a {type(data).__name__}, which can be iterated once only, and every matvec needs all of it; "
            "pass a DataLoader or a list of batches, list(data) for example."
        )
    if isinstance(data, Tensor | Mapping | str):
        raise ValueError(
            f"data is a {type(data).__name__}; it has to be an iterable of (inputs, targets) batches. For one "
            "batch pass [(inputs, targets)]."
        )


def octets(tensor: Tensor) -> bytes:
    """Content of a tensor of any dtype, by which it is told from others."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def can_be_split(batch: Batch) -> bool:
    """Whether a batch has several samples, and inputs and targets that agree on their number."""
    samples = batch.samples
    firsts = [
        next((leaf for leaf in pytree.tree_leaves(side) if isinstance(leaf, Tensor)), None)
        for side in (batch.inputs, batch.targets)
    ]
    return samples > 1 and all(_splits(first, samples) for first in firsts)


def _splits(leaf: Any, samples: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == samples


def taken(leaves: Iterable[Any], group: Tensor, samples: int) -> list[Any]:
    """A group of the samples of a batch, by their indices; what is not of samples is taken whole."""
    return [_taken(leaf, group) if _splits(leaf, samples) else leaf for leaf in leaves]


def _taken(leaf: Tensor, group: Tensor) -> Tensor:
    """Samples of a tensor: a view where they are neighbours."""
    first, last = int(group[0]), int(group[-1])
    if last - first + 1 == len(group):
        return leaf[first : last + 1]
    return leaf.index_select(0, group.to(leaf.device))


def pair(index: int, item: Any) -> tuple[Any, Any]:
    """Inputs and targets of an item of the data; ValueError where it is no pair."""
    if isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2:
        return item[0], item[1]
    raise ValueError(
        f"Batch {index} of data is a {type(item).__name__}"
        + (f" of {len(item)} items" if isinstance(item, Sequence | Mapping) else "")
        + "; every batch has to be a pair (inputs, targets)."
    )


def _samples(inputs: Any, targets: Any) -> int:
    """Number of samples: the first dimension of the first tensor of the targets, else of the inputs."""
    for leaf in [*pytree.tree_leaves(targets), *pytree.tree_leaves(inputs)]:
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    return 1


def _fingerprint(item: Any) -> tuple[float, ...]:
    """Shapes and position-weighted sums of all tensors: a flip, a crop or a permutation changes it."""
    numbers: list[float] = []
    for leaf in pytree.tree_leaves(item):
        if isinstance(leaf, Tensor):
            numbers.extend(leaf.shape)
            flat = leaf.detach().reshape(-1).to(torch.float64)
            weights = (torch.arange(flat.numel(), dtype=torch.float64, device=flat.device) * GOLDEN_RATIO).frac_()
            numbers.append(float(flat @ weights.add_(0.5)))
    return tuple(numbers)


def _same(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return len(one) == len(other) and all(
        a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(one, other, strict=True)
    )
