"""Candidates for the terms of a mean loss: samples, tokens that are not ignored, masks, weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hesspec.operators.data.structures import named_tensors, parts_of, rows_of
from hesspec.operators.risk.loss_calls import LossCall
from hesspec.operators.risk.losses import Loss

__all__ = ["SAMPLES", "SUM", "Terms", "candidates"]

# Values that mark ignored targets: PyTorch's default, and other usual padding values.
IGNORED = (-100, -1, 0)

# In paths: of each member of a list of samples.
EACH = "[*]"


@dataclass(frozen=True)
class Terms:
    """Rule for the number of terms, or total weight, of a batch in the mean of its loss.

    Attributes
    ----------
    kind : str
        "samples"; "sum": the loss is not a mean, and each part counts once; "given": the user's `terms=`; "module": as
        counted by a loss module of PyTorch; and for a tensor of the data: "entries", "counted" (those that are not
        `ignored`), "present" (those that are not NaN), "total" (of a mask or weights), "weights" (of the classes that
        it contains).
    path : str
        Path of the tensor, with `[*]` for each member of a list of samples.
    shifted : str
        "" for the whole tensor, "next" without its first entry in the last dimension, "last" without its last one.
    ignored : int
        Value of ignored targets.
    weights : tuple of float
        Weight of each class.
    """

    kind: str
    path: str = ""
    shifted: str = ""
    ignored: int = 0
    weights: tuple[float, ...] = ()

    def __str__(self) -> str:
        """Describe the terms."""
        if not self.path:
            return {"given": "the terms of terms=", "module": "the terms of the loss module"}.get(self.kind, self.kind)
        name = self.path + {"": "", "next": "[..., 1:]", "last": "[..., :-1]"}[self.shifted]
        return {
            "entries": f"entries of {name}",
            "counted": f"entries of {name} that are not {self.ignored}",
            "present": f"entries of {name} that are not NaN",
            "total": f"the total of {name}",
            "weights": f"the class weights of {name}",
        }[self.kind]

    def of(self, loss: Loss, inputs: Any, targets: Any, samples: int) -> float:
        """Return the number in a batch, or a part of it.

        Parameters
        ----------
        loss : Loss
        inputs, targets
        samples : int
        """
        if self.kind == "given" and loss.given_terms is not None:
            return float(loss.given_terms(targets if loss.closure is None else inputs))
        if self.kind == "module":
            return loss.known_terms(targets) or 0.0
        if not self.path:
            return 1.0 if self.kind == "sum" else float(samples)
        tensors = self._tensors(inputs, targets, samples, loss)
        return sum(float(self._each(tensor).sum()) for tensor in tensors)

    def of_each(self, loss: Loss, inputs: Any, targets: Any, samples: int) -> Tensor | None:
        """Return the number in each sample (samples,), float64; None if it cannot be determined."""
        if self.kind in ("samples", "sum"):
            return torch.ones(samples, dtype=torch.float64, device="cpu")
        tensors = self._tensors(inputs, targets, samples, loss) if self.path else []
        if EACH in self.path and tensors:
            return torch.stack([self._each(tensor).sum().cpu() for tensor in tensors])
        if not tensors or rows_of(tensors[0]) != samples:
            return None
        return self._each(tensors[0]).reshape(samples, -1).sum(1).cpu()

    def _tensors(self, inputs: Any, targets: Any, samples: int, loss: Loss) -> list[Tensor]:
        """Return the tensor at the path, or those of all samples."""
        # Inputs may require a gradient.
        found = [tensor.detach() for tensor in _tensors(inputs, targets, samples, loss).get(self.path, [])]
        if not self.shifted:
            return found
        return [tensor[..., 1:] if self.shifted == "next" else tensor[..., :-1] for tensor in found]

    def _each(self, tensor: Tensor) -> Tensor:
        """Return the weight of each entry, float64."""
        if self.kind == "entries":
            return torch.ones_like(tensor, dtype=torch.float64)
        if self.kind == "present":
            return (~tensor.isnan()).to(torch.float64)
        if self.kind == "total":
            return tensor.to(torch.float64)
        counted = tensor != self.ignored
        if self.kind == "counted":
            return counted.to(torch.float64)
        weights = torch.tensor(self.weights, dtype=torch.float64, device=tensor.device)
        return weights[torch.where(counted, tensor, 0).long().clamp(0, len(weights) - 1)] * counted


SAMPLES, SUM = Terms("samples"), Terms("sum")


def _tensors(inputs: Any, targets: Any, samples: int, loss: Loss) -> dict[str, list[Tensor]]:
    """Return each tensor by its path, and the tensors of all samples at the same place in lists of samples."""
    name = "inputs" if loss.closure is None else "batch"
    found = {**named_tensors(targets, "targets"), **named_tensors(inputs, name)}
    lists = [
        *_of_samples(targets, "targets", samples),
        *([] if loss.closure is None else _of_samples(inputs, name, samples)),
    ]
    return {**dict(lists), **{path: [tensor] for path, tensor in found.items()}}


def _of_samples(structure: Any, name: str, samples: int) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield the tensors that all members of a list of samples have, by their path."""
    parts = parts_of(structure)
    if parts is None:
        return
    if type(structure) in (list, tuple) and len(structure) == samples:
        first, *others = (named_tensors(member, "") for member in structure)
        for place, tensor in first.items():
            if all(place in other for other in others):
                yield name + EACH + place, [tensor, *(other[place] for other in others)]
    for place, member in zip(parts.places, parts.members, strict=True):
        yield from _of_samples(member, name + place, samples)


def candidates(loss: Loss, inputs: Any, targets: Any, samples: int, calls: Iterable[LossCall]) -> list[Terms]:
    """Return all candidates for the terms of a mean loss, most likely first.

    Parameters
    ----------
    loss : Loss
    inputs, targets
        Inputs and targets of a batch.
    samples : int
        Its number of samples.
    calls : iterable of LossCall
        Calls of loss functions in its forward pass and loss.
    """
    found = [SUM, SAMPLES] if loss.reduction == "sum" else [SAMPLES, SUM]
    if loss.known_terms(targets) is not None:
        found.insert(1 if loss.reduction == "sum" else 0, Terms("module"))
    if loss.given_terms is not None:
        found.insert(0, Terms("given"))
    ignored, weights = list(IGNORED), []
    for call in calls:
        if call.function in (F.cross_entropy, F.nll_loss):
            ignored.insert(0, int(call.given["ignore_index"]))
            if call.given["weight"] is not None:
                weights.append((int(call.given["ignore_index"]), tuple(call.given["weight"].double().tolist())))
    for path, (tensor, *_) in _tensors(inputs, targets, samples, loss).items():
        if (rows_of(tensor) is None and EACH not in path) or tensor.is_complex():
            continue
        shifts = ["", "next", "last"] if _has_positions(path, tensor) else [""]
        for shifted in shifts:
            found += _of_tensor(path, tensor, shifted, ignored, weights)
    return list(dict.fromkeys(found))


def _of_tensor(
    path: str, tensor: Tensor, shifted: str, ignored: Iterable[int], weights: Iterable[tuple[int, tuple[float, ...]]]
) -> list[Terms]:
    found = []
    classes = not tensor.is_floating_point() and tensor.dtype != torch.bool
    if classes:
        found += [Terms("weights", path, shifted, skip, of_class) for skip, of_class in weights]
        found += [Terms("counted", path, shifted, skip) for skip in ignored]
    # Images and features are not weights; masks and weights have one number for each sample or position.
    if (not tensor.is_floating_point() or tensor.dim() <= 2) and bool((tensor >= 0).all()):
        found.append(Terms("total", path, shifted))
    if tensor.is_floating_point() and not path.startswith("inputs"):
        # Missing targets, in later batches if not in this one.
        found.append(Terms("present", path, shifted))
    if _has_positions(path, tensor):
        found.append(Terms("entries", path, shifted))
    return found


def _has_positions(path: str, tensor: Tensor) -> bool:
    """Whether a sample has several entries of a tensor."""
    return tensor.dim() > (0 if EACH in path else 1)
