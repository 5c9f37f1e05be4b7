"""Classes of logits: the most frequent ones of the data, with the remaining ones as one class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hesspec.operators.data.items import as_pair

__all__ = ["checked_groups", "frequent_classes"]


def frequent_classes(data: Iterable[Any], logits: int, count: int, *, ignore_index: int = -100) -> Tensor:
    """Class of each logit for `hesspec.class_structure`: the most frequent targets, and one class of all others.

    Parameters
    ----------
    data : iterable
        Batches (inputs, targets) as for `hesspec.GaussNewton`, with integer targets of any shape.
    logits : int
        Number of logits of the model, V: the size of the vocabulary.
    count : int
        Number of targets that are classes of their own, C, from 1 to V - 1.
    ignore_index : int
        Target that is not counted.

    Returns
    -------
    Tensor (V,)
        int64: 0 for the most frequent target, then 1, up to C - 1; C for all others, so that there are C + 1 classes.
        Of equally frequent ones the lower is first.

    Raises
    ------
    ValueError
        If there are fewer than C different targets, none would remain for the last class, a target is outside [0, V),
        or targets are no tensor of integers.

    Examples
    --------
    >>> import torch
    >>> frequent_classes([(None, torch.tensor([[3, 3, 1], [1, 3, 0]]))], 4, 2)
    tensor([2, 1, 2, 0])
    """
    if not 1 <= count < logits:
        raise ValueError(f"count is {count}; of {logits} logits, 1 to {logits - 1} can be classes of their own.")
    seen = torch.zeros(logits, dtype=torch.int64)
    for index, item in enumerate(data):
        targets = as_pair(index, item)[1]
        if not isinstance(targets, Tensor) or targets.is_floating_point():
            raise ValueError("frequent_classes counts targets that are tensors of integers, and these are not.")
        counted = targets[targets != ignore_index].flatten().cpu()
        if counted.numel() > 0 and not 0 <= int(counted.min()) <= int(counted.max()) < logits:
            raise ValueError(
                f"Targets run from {int(counted.min())} to {int(counted.max())}, but there are {logits} logits."
            )
        seen += torch.bincount(counted, minlength=logits)
    present = int((seen > 0).sum())
    if present <= count:
        raise ValueError(
            f"There are {present} different targets in the data, so that {count} classes of their own leave none for "
            f"the others: choose at most {max(present - 1, 0)}."
        )
    order = torch.argsort(seen, descending=True, stable=True)
    classes = torch.full((logits,), count)
    classes[order[:count]] = torch.arange(count)
    return classes


def checked_groups(classes: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Return the classes of logits as int64; raises ValueError unless they are integers from 0 with none left out."""
    found = torch.as_tensor(classes)
    if found.ndim != 1 or found.numel() == 0 or found.is_floating_point() or found.dtype == torch.bool:
        raise ValueError(
            f"classes= must be the class of each logit, integers of shape (V,), but it is {found.dtype} of shape "
            f"{tuple(found.shape)}."
        )
    different = sorted(set(found.tolist()))
    if different != list(range(len(different))) or len(different) < 2:
        raise ValueError(
            f"classes= must be integers from 0 with none left out, at least two, but they are {different[:10]}"
            f"{' ...' if len(different) > 10 else ''}."
        )
    return found.long().to(device)
