"""Data that is read batch by batch and checked to be the same in every pass."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from hesspec.backend.ranks import ALONE, Ranks
from hesspec.operators.data.division import Division, count_samples
from hesspec.operators.data.fingerprints import Fingerprint, octets
from hesspec.operators.data.items import as_pair, check_data
from hesspec.operators.data.structures import Structure, flatten, map_tensors, named_tensors
from hesspec.operators.model.ambient import OwnRandomness
from hesspec.operators.risk.first_pass import Forward
from hesspec.operators.risk.losses import Loss
from hesspec.operators.risk.nature import NOT_ADDITIVE, Nature
from hesspec.operators.risk.terms import SAMPLES, SUM, Terms

__all__ = ["Batch", "Batches"]

ONE_SAMPLE = "it has one sample"
NOT_OF_SAMPLES = "inputs and targets differ in their first dimension, or contain objects other than tensors"


@dataclass(frozen=True)
class Batch:
    """One batch on the device of the model.

    Attributes
    ----------
    index : int
        Index of the batch in the data.
    inputs, targets
        Inputs and targets from the data, with tensors copied to the device, floating-point ones to the model's dtype.
        Later changes to the data's own tensors have no effect.
    share : float
        Weight of the loss of this batch in the loss of all data.
    samples : int
        Number of samples.
    indivisible : str
        Why the batch cannot be split into samples; "" if it can.
    """

    index: int
    inputs: Any
    targets: Any
    share: float
    samples: int = 1
    indivisible: str = ""

    def leaves(self) -> tuple[list[Tensor], Structure]:
        """Tensors of inputs and targets, and the structures without them."""
        return flatten((self.inputs, self.targets))

    @property
    def opaque(self) -> bool:
        """Whether it contains objects that may not be constant, so that its trace is not valid for other batches."""
        return self.leaves()[1].opaque


class Batches:
    """Batches that can be iterated repeatedly, with weights such that their losses add up to that of all data.

    Parameters
    ----------
    data : iterable
        A DataLoader or a list, for example. Items are pairs (inputs, targets), mappings of the model's arguments, or
        objects with their targets in an attribute (see `hesspec.operators.data.items.as_pair`), and of any structure
        for a closure. Inputs are a tensor or any object, a tuple or list of positional arguments of the model, or a
        mapping of keyword arguments.
    loss : Loss
    device, dtype
        Device and dtype to which tensors are moved; dtype applies to floating-point ones.
    ranks : Ranks, optional
        Processes, each with its own batches of the same data.
    model : torch.nn.Module, optional
        Model that processes the batches.
    forward : callable, optional
        From inputs to outputs at the model's real parameters, without substituted functions. If given, the loss of a
        few samples is evaluated first, to check that model, loss and data match and to find out what the loss is a mean
        over (see `hesspec.operators.risk.nature.Nature`).

    whole : str, optional
        Why batches must not be split; "" if they may.

    Attributes
    ----------
    sizes : tuple of int
        Number of samples of each batch.
    samples : int
        Number of samples in all batches.
    terms : float
        Number (or total weight) of loss terms in all batches of all ranks.
    shares : list of float
        Weight of each batch's loss in the loss of all data; 0 for a batch without terms.
    changes_inputs : bool
        Whether the model modifies its inputs in place, and must be given copies.

    Raises
    ------
    ValueError
        If the data is empty, can be iterated only once, contains anything other than batches, has no loss terms, or
        changes between passes (detected in the next pass); if model, loss and data do not match.

    Warns
    -----
    UserWarning
        If it cannot be determined how the losses of several batches add up.
    """

    def __init__(
        self,
        data: Iterable[Any],
        loss: Loss,
        *,
        device: torch.device,
        dtype: torch.dtype,
        ranks: Ranks = ALONE,
        model: nn.Module | None = None,
        forward: Forward | None = None,
        whole: str = "",
    ) -> None:
        check_data(data)
        self._whole = whole
        self._data: Iterable[Any] = OwnRandomness(data)
        self._loss, self._device, self._dtype = loss, device, dtype
        self._model = model
        # Of parts of the model that are not measured, such as a base below adapters.
        tensors = [] if model is None else [*model.parameters(), *model.buffers()]
        self._reduced = {tensor.dtype for tensor in tensors} & {torch.float16, torch.bfloat16}
        # Batches on the device, if they are in memory anyway.
        self._held: list[Batch] | None = None
        self._nature = Nature(loss, forward)
        self.sizes = ranks.together(self._read)
        self._nature.settle(ranks, self._numbers)
        self._check_counted(ranks)
        self._weigh(ranks)

    def again(self, data: Sequence[Any], ranks: Ranks = ALONE) -> Self:
        """Return other batches of the same kind, in memory.

        Nothing is found out again about the loss, and the batches are copied to the device once, not in every pass.
        """
        check_data(data)
        other = copy.copy(self)
        other._renew(data, ranks)  # noqa: SLF001 - it is of this class
        return other

    def _renew(self, data: Sequence[Any], ranks: Ranks) -> None:
        self._data, self._nature, self._held = data, self._nature.known(), []
        self.sizes = ranks.together(self._read)
        self._check_counted(ranks)
        self._weigh(ranks)
        pairs = ((index, self._pair(index, item)) for index, item in enumerate(data) if self.shares[index])
        self._held = [self._batch(index, *pair) for index, pair in pairs]

    def _batch(self, index: int, inputs: Any, targets: Any) -> Batch:
        inputs, targets = self._placed(inputs, targets)
        why = self._indivisible(inputs, targets, self.sizes[index])
        return Batch(index, inputs, targets, self.shares[index], self.sizes[index], why)

    def _weigh(self, ranks: Ranks) -> None:
        self.samples = sum(self.sizes)
        counts = [numbers[self._counted] for numbers in self._numbers]
        self.terms = ranks.total(sum(counts))
        if not self.terms > 0:
            raise ValueError(
                f"The loss has no terms: the terms (or weights) of all {self.samples} samples sum to {self.terms:g}, "
                "for example because every target has the ignored index."
            )
        # A batch without terms has the mean 0/0; it contributes nothing and is skipped.
        summed = self._nature.terms == SUM
        self.shares = [(1.0 if summed else count / self.terms) if count else 0.0 for count in counts]

    @property
    def changes_inputs(self) -> bool:
        """Whether the model modifies its inputs in place, and must be given copies."""
        return self._nature.changes_inputs

    @property
    def indivisible(self) -> str:
        """Why batches may not be split, as determined from one of them; "" if they may, or if it is unknown."""
        return self._nature.indivisible if self._nature.indivisible == NOT_ADDITIVE else ""

    @property
    def mean_over(self) -> Terms:
        """What the loss of a batch is a mean over; for a sum, the terms of the corresponding mean."""
        return self._counted

    @property
    def classes(self) -> int | None:
        """Number of classes of a cross-entropy; None for other losses, or if there are several such losses."""
        found = {allowed.classes for allowed in self._nature.ranges}
        return found.pop() if len(found) == 1 else None

    @property
    def _counted(self) -> Terms:
        """Rule for the number of terms of a batch; for a sum, the terms of the corresponding mean."""
        if self._nature.terms != SUM:
            return self._nature.terms
        return Terms("module") if all(Terms("module") in numbers for numbers in self._numbers) else SAMPLES

    def _read(self) -> tuple[int, ...]:
        """Read all batches and return their numbers of samples."""
        self._fingerprints: list[Fingerprint] = []
        self._numbers: list[dict[Terms, float]] = []
        self._agreed: list[bool] = []
        self._of_targets: list[bool] = []
        sizes: list[int] = []
        nature, loss = self._nature, self._loss
        for index, item in enumerate(self._data):
            inputs, targets = self._pair(index, item)
            samples, agreed, first = count_samples(inputs, targets, closed=loss.closure is not None)
            if samples and nature.wants(inputs, targets, samples):
                nature.look(index, *self._placed(inputs, targets), samples)
            named = {**named_tensors(inputs, "inputs"), **named_tensors(targets, "targets")} if nature.ranges else {}
            for allowed in nature.ranges:
                allowed.check(index, named)
            known = [SAMPLES, *([] if loss.given_terms is None else [Terms("given")])]
            known += [] if loss.known_terms(targets) is None else [Terms("module")]
            self._numbers.append({terms: terms.of(loss, inputs, targets, samples) for terms in [*known, *nature.open]})
            # Tensors with a different first dimension may be shared by all samples, as in a batch that was split.
            self._agreed.append(agreed or (nature.adds_up and nature.divides(inputs, targets, samples)))
            self._of_targets.append(samples == first)
            if self._held is None:
                self._fingerprints.append(self._fingerprint(inputs, targets))
            sizes.append(samples)
        if not sizes:
            raise ValueError("data is empty. Pass a DataLoader or a list of (inputs, targets) batches.")
        return tuple(sizes)

    def _check_counted(self, ranks: Ranks) -> None:
        """Reject batches whose weights depend on a number of samples on which inputs and targets do not agree.

        If the loss itself shows that it is a mean over samples, these are the samples of the targets (for example
        regions of an image, or sequences in a batch whose first dimension is time), provided that this holds in every
        batch.
        """
        unclear = next((index for index, agreed in enumerate(self._agreed) if not agreed), None)
        several = ranks.total(len(self.sizes)) > 1
        told = SAMPLES in self._nature.open and ranks.least(float(all(self._of_targets))) == 1

        def check() -> None:
            if unclear is not None and several and self._nature.terms == SAMPLES and not told:
                raise ValueError(
                    f"Batch {unclear}: it is not clear how many samples it has, as its tensors differ in their first "
                    "dimension. Batches are weighted by the number of terms in their mean: pass terms=..., a "
                    f"function of the {'targets' if self._loss.closure is None else 'batch'} that returns it, or all "
                    "data as one batch."
                )

        ranks.together(check)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.shares)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches in order, checking that they are those of the first pass.

        Raises
        ------
        ValueError
            If a batch, or the number of batches, has changed.
        """
        if self._held is not None:
            yield from self._held
            return
        count = 0
        for index, item in enumerate(self._data):
            count = index + 1
            if count > len(self):
                break
            inputs, targets = self._pair(index, item)
            self._check(index, inputs, targets)
            if self.shares[index]:
                yield self._batch(index, inputs, targets)
        if count != len(self):
            raise ValueError(
                f"data changed between passes: it had {len(self)} batches in the first pass, and now has "
                f"{'more' if count > len(self) else count}. A matrix needs the same data in every pass."
            )

    def digest(self) -> int:
        """Return a 128-bit content hash that does not depend on the order of samples or on batching.

        Hashes of parts of the data sum, modulo 2^128, to that of the whole. Batches that cannot be split count as one
        sample.
        """
        total = 0
        for index, item in enumerate(self._data):
            structure = self._pair(index, item)
            samples = self.sizes[index]
            if self._indivisible(*structure, samples):
                parts: Iterable[Any] = (structure,)
            else:
                division = self._division(structure, samples)
                parts = (division.taken(structure, torch.tensor([sample], device="cpu")) for sample in range(samples))
            total += sum(map(_digest, parts))
        return total % 2**128

    def split(self, batch: Batch, parts: int) -> list[Batch]:
        """Split a batch into parts of nearly equal numbers of samples; parts without a loss term are omitted.

        Every tensor of inputs and targets whose first dimension is the number of samples is split; others, such as a
        mask that all samples share, are given to each part. A batch that cannot be split stays whole
        (`Batch.indivisible`).

        Parameters
        ----------
        batch : Batch
            One of these batches.
        parts : int
            Number of parts, at most the number of samples.
        """
        if parts == 1 or batch.indivisible:
            return [batch]
        return self.select(batch, torch.arange(batch.samples, device="cpu").tensor_split(min(parts, batch.samples)))

    def select(self, batch: Batch, groups: Iterable[Tensor]) -> list[Batch]:
        """Yield groups of samples of a divisible batch, omitting those without a loss term.

        Parameters
        ----------
        batch : Batch
            One of these batches.
        groups : iterable of Tensor (k,)
            Indices of samples, ascending.
        """
        total, result = self._terms(batch.inputs, batch.targets, batch.samples), []
        division = self._division((batch.inputs, batch.targets), batch.samples)
        for group in groups:
            inputs, targets = division.taken((batch.inputs, batch.targets), group)
            terms = self._terms(inputs, targets, len(group))
            share = batch.share if self._nature.terms == SUM else batch.share * terms / total
            if terms:
                why = "" if len(group) > 1 else ONE_SAMPLE
                result.append(Batch(batch.index, inputs, targets, share, len(group), why))
        return result

    @property
    def summed(self) -> bool:
        """Whether the loss of a batch is a sum over its samples."""
        return self._nature.terms == SUM

    def chosen(self, batch: Batch, indices: Tensor) -> Batch:
        """Return samples of a divisible batch by their indices (k,), in any order and with repetitions."""
        structure = batch.inputs, batch.targets
        inputs, targets = self._division(structure, batch.samples).taken(structure, indices)
        why = "" if len(indices) > 1 else ONE_SAMPLE
        return Batch(batch.index, inputs, targets, batch.share, len(indices), why)

    def terms_of(self, batch: Batch) -> float:
        """Return the number, or total weight, of the loss terms of a batch."""
        return self._terms(batch.inputs, batch.targets, batch.samples)

    def _terms(self, inputs: Any, targets: Any, samples: int) -> float:
        return self._counted.of(self._loss, inputs, targets, samples)

    def _division(self, structure: Any, samples: int) -> Division:
        return self._nature.division or Division.of_pair(structure, samples)

    def _indivisible(self, inputs: Any, targets: Any, samples: int) -> str:
        """Return why a batch cannot be split into samples; "" if it can."""
        if samples == 1:
            return ONE_SAMPLE
        if self._whole:
            return self._whole
        return self._nature.indivisible if self._nature.divides(inputs, targets, samples) else NOT_OF_SAMPLES

    def _pair(self, index: int, item: Any) -> tuple[Any, Any]:
        if self._loss.closure is not None:
            return item, None
        # From here on, NumPy arrays are tensors.
        pair: tuple[Any, Any] = map_tensors(lambda tensor: tensor, as_pair(index, item, self._model))
        return pair

    def _check(self, index: int, inputs: Any, targets: Any) -> None:
        seen = self._fingerprint(inputs, targets)
        difference = self._fingerprints[index].difference(seen)
        if not difference:
            return
        if any(not other.difference(seen) for other in self._fingerprints):
            cause = f"batch {index} has the content of another batch; set shuffle=False"
        else:
            cause = (
                f"batch {index} has other values than in the first pass ({difference}); switch off random "
                "augmentation, and shuffle=False in a DataLoader"
            )
        raise ValueError(f"data changed between passes: {cause}. A matrix needs the same data in every pass.")

    def _fingerprint(self, inputs: Any, targets: Any) -> Fingerprint:
        if self._loss.closure is not None:
            return Fingerprint.of(batch=inputs)
        return Fingerprint.of(inputs=inputs, targets=targets)

    def _placed(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
        placed: tuple[Any, Any] = map_tensors(self._place, (inputs, targets))
        return placed

    def _place(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the device, except one that requires a gradient and is there already.

        Cached passes must not depend on the user's memory, which loaders may reuse for the next batch. A tensor that
        requires a gradient may be known to the loss, which differentiates with respect to it.
        """
        if tensor.is_meta:
            raise ValueError(
                f"data contains a tensor on the meta device, of shape {tuple(tensor.shape)}, which has no values. Make "
                "the data on the CPU or on the model's device."
            )
        own = not tensor.is_floating_point() or tensor.dtype in self._reduced
        dtype = tensor.dtype if own else self._dtype
        if tensor.is_complex():
            dtype = self._dtype.to_complex()
        with torch.inference_mode(mode=False):
            if not tensor.requires_grad:
                return tensor.to(device=self._device, dtype=dtype, copy=True)
            same = tensor.device == self._device and tensor.dtype == dtype
            return tensor if same else tensor.detach().to(device=self._device, dtype=dtype).requires_grad_()


def _digest(structure: Any) -> int:
    """Return a 128-bit content hash of a sample."""
    tensors, rest = flatten(structure)
    found = hashlib.blake2b(repr(rest.key).encode(), digest_size=16)
    for tensor in tensors:
        found.update(octets(tensor))
    return int.from_bytes(found.digest())
