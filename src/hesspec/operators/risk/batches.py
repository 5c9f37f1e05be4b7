"""Data that is read batch by batch, and checked to be the same in every pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

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
NOT_OF_SAMPLES = "inputs and targets do not begin with the same number of samples, or hold other objects than tensors"


@dataclass(frozen=True)
class Batch:
    """One batch on the device of the model.

    Attributes
    ----------
    index : int
        Its place in the data.
    inputs, targets
        As the data gives them, with tensors copied to the device, and floating-point ones to the model's dtype. What
        happens to the data's own tensors later has no effect on them.
    share : float
        What the loss of this batch is multiplied by in the loss of all data.
    samples : int
        Number of samples.
    indivisible : str
        Why it cannot be cut into samples; "" if it can.
    """

    index: int
    inputs: Any
    targets: Any
    share: float
    samples: int = 1
    indivisible: str = ""

    def leaves(self) -> tuple[list[Tensor], Structure]:
        """All tensors of inputs and targets, and the rest of them: what is not the same in all batches, and what is."""
        return flatten((self.inputs, self.targets))

    @property
    def opaque(self) -> bool:
        """Whether something is in it that may not be a constant: no trace of it can be used for another batch."""
        return self.leaves()[1].opaque


class Batches:
    """Re-iterable batches with the weights that make them add up to the whole.

    Parameters
    ----------
    data : iterable
        A DataLoader, a list. Its items are pairs (inputs, targets), mappings of a model's arguments, or objects with
        their targets in an attribute (see `hesspec.operators.data.items.as_pair`); of any structure for a closure.
        Inputs are a tensor or any object, a tuple or list of positional arguments of the model, or a mapping of keyword
        arguments.
    loss : Loss
    device, dtype
        Where tensors are brought to; dtype applies to floating-point ones.
    ranks : Ranks, optional
        Processes each of which has batches of its own, of the same data.
    model : torch.nn.Module, optional
        What the batches are for.
    forward : callable, optional
        From inputs to outputs at the model's real parameters, with the functions of PyTorch as they are. With it the
        first thing that happens is the loss of a few samples, which tells whether model, loss and data belong
        together, and what the loss is a mean over (see `hesspec.operators.risk.nature.Nature`).

    whole : str, optional
        Why batches must not be cut; "" if they may.

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
    changes_inputs : bool
        Whether the model works in place on its inputs, and must be given copies.

    Raises
    ------
    ValueError
        If the data is empty, can be iterated only once, holds anything but batches, has no loss term at all, or
        changes between passes (seen in the next pass); if model, loss and data do not belong together.

    Warns
    -----
    UserWarning
        If how the losses of several batches add up cannot be told.
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
        self._data, self._loss, self._device, self._dtype = OwnRandomness(data), loss, device, dtype
        self._model = model
        self._nature = Nature(loss, forward)
        self._fingerprints: list[Fingerprint] = []
        self._numbers: list[dict[Terms, float]] = []
        self._agreed: list[bool] = []
        self._of_targets: list[bool] = []
        self.sizes = ranks.together(self._read)
        self.samples = sum(self.sizes)
        self._nature.settle(ranks, self._numbers)
        self._check_counted(ranks)
        counts = [numbers[self._counted] for numbers in self._numbers]
        self.terms = ranks.total(sum(counts))
        if not self.terms > 0:
            raise ValueError(
                f"The loss has no term: the terms (or weights) of all samples sum to {self.terms:g}, as where every "
                "target has the ignored index."
            )
        # A batch without terms has the mean 0/0; it adds nothing and is passed over.
        summed = self._nature.terms == SUM
        self.shares = [(1.0 if summed else count / self.terms) if count else 0.0 for count in counts]

    @property
    def changes_inputs(self) -> bool:
        """Whether the model works in place on its inputs, and must be given copies."""
        return self._nature.changes_inputs

    @property
    def indivisible(self) -> str:
        """Why batches may not be cut, as was found on one of them; "" if they may, or it was not found out."""
        return self._nature.indivisible if self._nature.indivisible == NOT_ADDITIVE else ""

    @property
    def _counted(self) -> Terms:
        """What the number of terms of a batch is; of a sum, what its mean would be over."""
        if self._nature.terms != SUM:
            return self._nature.terms
        return Terms("module") if all(Terms("module") in numbers for numbers in self._numbers) else SAMPLES

    def _read(self) -> tuple[int, ...]:
        """Numbers of samples of all batches."""
        sizes: list[int] = []
        nature, loss = self._nature, self._loss
        for index, item in enumerate(self._data):
            inputs, targets = self._pair(index, item)
            samples, agreed, first = count_samples(inputs, targets)
            if nature.wants(inputs, targets, samples):
                nature.look(index, *self._placed(inputs, targets), samples)
            named = {**named_tensors(inputs, "inputs"), **named_tensors(targets, "targets")} if nature.ranges else {}
            for allowed in nature.ranges:
                allowed.check(index, named)
            known = [SAMPLES, *([] if loss.given_terms is None else [Terms("given")])]
            known += [] if loss.known_terms(targets) is None else [Terms("module")]
            self._numbers.append({terms: terms.of(loss, inputs, targets, samples) for terms in [*known, *nature.open]})
            # Tensors that begin with another number may be what all samples share, as those of a batch that was cut.
            self._agreed.append(agreed or (nature.adds_up and nature.divides(inputs, targets, samples)))
            self._of_targets.append(samples == first)
            self._fingerprints.append(self._fingerprint(inputs, targets))
            sizes.append(samples)
        if not sizes:
            raise ValueError(
                "data is empty: it has no batch. Pass a DataLoader or a list of (inputs, targets) batches."
            )
        return tuple(sizes)

    def _check_counted(self, ranks: Ranks) -> None:
        """Refuse batches whose weights depend on a number of samples that inputs and targets do not agree on.

        Where the loss itself tells that it is a mean over samples, they are those of the targets, as the regions of an
        image and the sequences of a batch are whose first dimension is time; if only they are counted so in every
        batch.
        """
        unclear = next((index for index, agreed in enumerate(self._agreed) if not agreed), None)
        several = ranks.total(len(self.sizes)) > 1
        told = SAMPLES in self._nature.open and ranks.least(float(all(self._of_targets))) == 1

        def check() -> None:
            if unclear is not None and several and self._nature.terms == SAMPLES and not told:
                raise ValueError(
                    f"Batch {unclear}: it is not clear how many samples it has, as its tensors begin with different "
                    "numbers. Batches are weighted by the number of terms that their mean is over: pass terms=..., a "
                    "function of the targets that returns it, or all data as one batch."
                )

        ranks.together(check)

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
            inputs, targets = self._pair(index, item)
            self._check(index, inputs, targets)
            if self.shares[index]:
                inputs, targets = self._placed(inputs, targets)
                why = self._indivisible(inputs, targets, self.sizes[index])
                yield Batch(index, inputs, targets, self.shares[index], self.sizes[index], why)
        if count != len(self):
            raise ValueError(
                f"data changed between passes: it had {len(self)} batches in the first pass, and now has "
                f"{'more' if count > len(self) else count}. A matrix needs the same data in every pass."
            )

    def digest(self) -> int:
        """A number of 128 bits of the content: the same whatever the samples' order and batches are.

        Numbers of parts of the data add up, modulo 2^128, to that of the whole. Batches that cannot be cut count as one
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
        """Parts of a batch, of as equal numbers of samples as possible; those without a loss term are left out.

        Every tensor of inputs and targets whose first dimension is the number of samples is split, and each part is
        given all that is not (a mask that all samples share). A batch that cannot be cut stays whole
        (`Batch.indivisible`).

        Parameters
        ----------
        batch : Batch
            One of these batches.
        parts : int
            Their number; at most the number of samples.
        """
        if parts == 1 or batch.indivisible:
            return [batch]
        return self.select(batch, torch.arange(batch.samples, device="cpu").tensor_split(min(parts, batch.samples)))

    def select(self, batch: Batch, groups: Iterable[Tensor]) -> list[Batch]:
        """Groups of the samples of a batch that can be cut, without those that have no loss term.

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
        """Samples of a batch that can be cut, by their indices (k,), in any order and as often as they are named."""
        structure = batch.inputs, batch.targets
        inputs, targets = self._division(structure, batch.samples).taken(structure, indices)
        why = "" if len(indices) > 1 else ONE_SAMPLE
        return Batch(batch.index, inputs, targets, batch.share, len(indices), why)

    def terms_of(self, batch: Batch) -> float:
        """Number, or total weight, of the loss terms of a batch."""
        return self._terms(batch.inputs, batch.targets, batch.samples)

    def _terms(self, inputs: Any, targets: Any, samples: int) -> float:
        return self._counted.of(self._loss, inputs, targets, samples)

    def _division(self, structure: Any, samples: int) -> Division:
        return self._nature.division or Division.of(structure, samples)

    def _indivisible(self, inputs: Any, targets: Any, samples: int) -> str:
        """Why a batch cannot be cut into samples; "" if it can."""
        if samples == 1:
            return ONE_SAMPLE
        if self._whole:
            return self._whole
        return self._nature.indivisible if self._nature.divides(inputs, targets, samples) else NOT_OF_SAMPLES

    def _pair(self, index: int, item: Any) -> tuple[Any, Any]:
        if self._loss.closure is not None:
            return item, None
        # NumPy arrays as tensors, from here on.
        pair: tuple[Any, Any] = map_tensors(lambda tensor: tensor, as_pair(index, item, self._model))
        return pair

    def _check(self, index: int, inputs: Any, targets: Any) -> None:
        seen = self._fingerprint(inputs, targets)
        difference = self._fingerprints[index].difference(seen)
        if not difference:
            return
        if any(not other.difference(seen) for other in self._fingerprints):
            cause = f"batch {index} is now what another batch was; set shuffle=False"
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
        """Copy of a tensor on the device; one that requires a gradient stays itself where it is there already.

        What is kept of a pass must not depend on memory that is the user's: loaders may fill it with the next batch.
        A tensor that requires a gradient may be known to the loss, which differentiates by it.
        """
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        if tensor.is_complex():
            dtype = self._dtype.to_complex()
        with torch.inference_mode(mode=False):
            if not tensor.requires_grad:
                return tensor.to(device=self._device, dtype=dtype, copy=True)
            same = tensor.device == self._device and tensor.dtype == dtype
            return tensor if same else tensor.detach().to(device=self._device, dtype=dtype).requires_grad_()


def _digest(structure: Any) -> int:
    """Content of a sample in 128 bits."""
    tensors, rest = flatten(structure)
    found = hashlib.blake2b(repr(rest.key).encode(), digest_size=16)
    for tensor in tensors:
        found.update(octets(tensor))
    return int.from_bytes(found.digest())
