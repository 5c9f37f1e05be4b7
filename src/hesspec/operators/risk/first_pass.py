"""Forward pass and loss of a few samples, to explain failures and reject common mistakes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hesspec.backend.memory import is_out_of_memory
from hesspec.backend.text import with_article
from hesspec.operators.data.structures import describe, flatten, map_tensors, named_tensors, rows_of, tensors_of
from hesspec.operators.model.ambient import preserved_randomness
from hesspec.operators.risk.loss_calls import ELEMENTWISE as ELEMENTWISE_FUNCTIONS
from hesspec.operators.risk.loss_calls import OF_CLASSES, LossCall, LossCalls
from hesspec.operators.risk.losses import ELEMENTWISE, Loss

__all__ = ["ClassRange", "Evaluation", "Forward", "copied", "evaluate"]

Forward = Callable[[Any], Any]
"""Function from inputs to outputs, at the real parameters."""


@dataclass(frozen=True)
class Evaluation:
    """Result of a forward pass and the loss.

    Attributes
    ----------
    value : float
    outputs
        Outputs of the model, as the loss received them.
    calls : list of LossCall
        Calls of loss functions, in the model and in the loss.
    ranges : list of ClassRange
        Valid classes, inferred from these calls.
    changes_inputs, changes_targets, changes_outputs : bool
        Whether the model works in place on its inputs, and the loss on its targets and on the model's outputs.
    """

    value: float
    outputs: Any
    calls: list[LossCall]
    ranges: list[ClassRange]
    changes_inputs: bool
    changes_targets: bool
    changes_outputs: bool


@dataclass(frozen=True)
class ClassRange:
    """Range of the classes that a tensor of the data may contain.

    Attributes
    ----------
    path : str
        Path of the tensor: "targets", "inputs['labels']".
    classes : int
    ignored : int
    """

    path: str
    classes: int
    ignored: int

    def check(self, index: int, named: Mapping[str, Tensor]) -> None:
        """Raise ValueError if a batch contains a class outside the range.

        Parameters
        ----------
        index : int
            Of the batch.
        named : mapping of str to Tensor
            Its tensors by their places.
        """
        classes = named.get(self.path)
        if classes is None or classes.is_floating_point() or classes.is_complex():
            return
        wrong = (classes != self.ignored) & ((classes < 0) | (classes >= self.classes))
        if wrong.any():
            sample = wrong.nonzero()[0]
            place = ", ".join(map(str, sample.tolist()))
            raise ValueError(
                f"Batch {index}: {self.path}[{place}] is class {int(classes[tuple(sample)])}, but the model has "
                f"{_few_logits(self.classes, self.ignored)}"
            )


def _few_logits(classes: int, ignored: int) -> str:
    return (
        f"{classes} logits, for classes 0 to {classes - 1}. Give the model as many logits as there are classes, number "
        f"classes from 0, or mark targets to ignore with the loss's ignore_index ({ignored})."
    )


def copied(structure: Any) -> Any:
    """Copy a structure for a model that may modify it in place; tensors that require a gradient are not copied."""
    return map_tensors(lambda tensor: tensor if tensor.requires_grad else tensor.clone(), structure)


def evaluate(index: int, inputs: Any, targets: Any, forward: Forward, loss: Loss) -> Evaluation:
    """Run the forward pass and the loss on a batch or some of its samples, which are left unchanged.

    Parameters
    ----------
    index : int
        Of the batch, for messages.
    inputs, targets
    forward : callable
    loss : Loss

    Raises
    ------
    ValueError
        If the model or the loss fails, with the original error as the cause, or for common mistakes: outputs and
        targets that are broadcast, classes that the model does not have, and the like.
    """
    try:
        with torch.no_grad():
            return _evaluate(index, copied((inputs, targets)), forward, loss)
    except ValueError as error:
        if not isinstance(error.__cause__, RuntimeError):
            raise
        # Models and losses that differentiate with respect to their inputs need the graph.
        with torch.enable_grad():
            return _evaluate(index, copied((inputs, targets)), forward, loss)


def _evaluate(index: int, batch: tuple[Any, Any], forward: Forward, loss: Loss) -> Evaluation:
    inputs, targets = batch
    before = _versions(inputs)
    with LossCalls() as recorder:
        try:
            outputs = forward(inputs)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(_model_failed(index, inputs, error)) from error
        changes_inputs = _versions(inputs) != before
        loss.look_at(outputs)
        named = {**named_tensors(inputs, "inputs"), **named_tensors(targets, "targets")}
        ranges = _check_module(index, loss, outputs, targets)
        for allowed in ranges:
            allowed.check(index, named)
        before, given = _versions(targets), _Given(outputs, targets)
        seen = f"The model returned {describe(outputs)}, and the targets are {describe(targets)}."
        try:
            with warnings.catch_warnings():
                # Warnings about broadcasting, which is rejected below.
                warnings.filterwarnings("ignore", message="Using a target size")
                with preserved_randomness():
                    value = loss(outputs, targets)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            words = str(error) if isinstance(error, ValueError) else f"the loss raised {_words(error)}"
            advice = _advice(loss, outputs, targets) or _advice_on_classes(recorder.failed) or _advice_on_calls(error)
            raise ValueError(f"Batch {index}: {words} {seen}{advice}") from error
    for call in recorder.calls:
        _check_broadcast(index, call)
    changes_outputs = given.changed
    if changes_outputs:
        outputs = given.outputs()
        with preserved_randomness():
            again = loss(given.outputs(), given.targets)
        if not torch.allclose(again, value, equal_nan=True):
            raise ValueError(
                f"Batch {index}: the loss changes outputs of the model in place that share memory with other outputs, "
                f"so that it is {float(value):.6g}, and {float(again):.6g} for copies of them. Let it change a copy: "
                "outputs = outputs.clone()."
            )
    return Evaluation(
        float(value.detach().double()),
        outputs,
        recorder.calls,
        [*ranges, *_ranges_of(recorder.calls, named)],
        changes_inputs,
        _versions(targets) != before,
        changes_outputs,
    )


def _versions(structure: Any) -> list[int]:
    # Tensors that were made in inference mode have none.
    found = [tensor for tensor in tensors_of(structure) if not tensor.is_inference()]
    return [tensor._version for tensor in found]  # noqa: SLF001 - the only trace of in-place work


class _Given:
    """What a loss is called with, to see whether it changes outputs in place."""

    def __init__(self, outputs: Any, targets: Any) -> None:
        self._outputs, self.targets = outputs, copied(targets)
        self._tensors, self._rest = flatten(outputs)
        self._versions = _versions(self._tensors)
        self._kept = [tensor.clone() for tensor in self._tensors]

    @property
    def changed(self) -> bool:
        """Whether outputs are missing, or have other values; `Tensor.data` changes values without a trace."""
        # Objects may hold more of them, such as what a distribution computes and keeps.
        there = set(map(id, tensors_of(self._outputs)))
        if _versions(self._tensors) != self._versions or any(id(tensor) not in there for tensor in self._tensors):
            return True
        return not all(map(_equal, self._tensors, self._kept))

    def outputs(self) -> Any:
        """Return copies of the outputs as they were."""
        return self._rest.fill([tensor.clone() for tensor in self._kept])


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.layout != torch.strided or one.is_nested:
        return True
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _words(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" + ("" if text.endswith((".", "!", "?")) else ".")


def _model_failed(index: int, inputs: Any, error: Exception) -> str:
    words = f"Batch {index}: the model raised {_words(error)} Its inputs were {describe(inputs)}."
    if type(inputs) in (list, tuple):
        kind = type(inputs).__name__
        words += (
            f" A {kind} is passed as positional arguments, {len(inputs)} here; for a model that takes one {kind}, "
            f"pass a tuple (inputs,)."
        )
    elif isinstance(inputs, Tensor) and "same dtype" in str(error) and not inputs.is_floating_point():
        words += " Inputs that are integers are not converted: x.float()."
    elif isinstance(inputs, Mapping):
        words += " A mapping is passed as keyword arguments; for a model that takes a mapping, pass a tuple (inputs,)."
    return words


def _check_module(index: int, loss: Loss, outputs: Any, targets: Any) -> list[ClassRange]:
    """Reject outputs and targets that do not suit a loss module of PyTorch, and return the range of classes."""
    if not loss.is_of_torch:
        return []
    logits, name = loss.taken(outputs), loss.name
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"Batch {index}: the model returned {with_article(describe(outputs))}, but {name} takes a tensor. Select "
            "it: loss_fn=lambda outputs, targets: loss(outputs[0], targets), for example; where it is an object that "
            "computes with the outputs, such as a distribution, let the model return tensors and build it in loss_fn."
        )
    if not isinstance(loss.function, (nn.CrossEntropyLoss, nn.NLLLoss, *ELEMENTWISE)):
        return []
    if not isinstance(targets, Tensor):
        raise ValueError(
            f"Batch {index}: the targets are {describe(targets)}, but {name} takes a tensor: torch.as_tensor(targets)."
        )
    seen = f"Batch {index}: the model returned {describe(logits)}, and the targets are {describe(targets)}"
    if isinstance(loss.function, ELEMENTWISE):
        if _is_broadcast(logits, targets):
            raise ValueError(
                f"{seen}. {name} would compare all outputs with all targets: give both the same shape, with "
                ".squeeze(1) or .unsqueeze(1) for example."
            )
        return []
    return _check_classes(seen, loss, logits, targets)


def _check_classes(seen: str, loss: Loss, logits: Tensor, targets: Tensor) -> list[ClassRange]:
    function: Any = loss.function
    place = 1 if logits.dim() > 1 else 0
    expected = logits.shape[:place] + logits.shape[place + 1 :]
    classes = logits.shape[place] if logits.dim() else 0
    of_probabilities = isinstance(function, nn.CrossEntropyLoss) and targets.is_floating_point()
    if targets.shape != (logits.shape if of_probabilities else expected):
        raise ValueError(f"{seen}.{_advice(loss, logits, targets) or _expected(loss.name, logits, expected)}")
    if not of_probabilities and targets.dtype not in (torch.int64, torch.uint8):
        raise ValueError(f"{seen}. {loss.name} takes classes as torch.int64: targets.long().")
    if function.weight is not None and function.weight.numel() != classes:
        raise ValueError(
            f"{seen}. {loss.name} has weights of {function.weight.numel()} classes, but there are {classes}."
        )
    return [] if of_probabilities else [ClassRange("targets", classes, function.ignore_index)]


def _expected(name: str, logits: Tensor, expected: torch.Size) -> str:
    if not logits.dim():
        return f" {name} takes logits of shape (samples, classes)."
    return f" With these logits {name} takes classes of shape {tuple(expected)}, or probabilities of the logits' shape."


def _advice(loss: Loss, outputs: Any, targets: Any) -> str:
    """Return advice for commonly confused shapes of outputs and targets, beginning with a space; may be empty."""
    logits = loss.taken(outputs)
    logits = logits["logits"] if isinstance(logits, Mapping) and "logits" in logits else logits
    if not isinstance(logits, Tensor) or not isinstance(targets, Tensor) or not logits.dim():
        return ""
    classes, shape = not targets.is_floating_point(), logits.shape
    positions = (
        "Cross-entropy takes the classes in dimension 1: for one class at each position use lambda out, y: "
        "cross_entropy(out.transpose(1, 2), y), or flatten both, out.flatten(0, 1) and y.flatten(); for the next token "
        "shift them too, out[:, :-1] and y[:, 1:]."
    )
    probabilities = "Targets of the logits' shape are probabilities: targets.float(), or targets.argmax(1) for classes."
    integers = "Class targets must be integers: targets.long()."
    if not isinstance(loss.function, nn.CrossEntropyLoss | nn.NLLLoss):
        integers = "If the targets are classes, they must be integers: targets.long()."
    alike = f"{loss.name} takes targets of the outputs' shape."
    counts = f"There are outputs for {shape[0]} samples, but targets for {targets.shape[:1].numel()}."
    if isinstance(loss.function, ELEMENTWISE):
        if targets.shape == shape:
            return ""
        return f" {counts if targets.dim() and targets.shape[:1] != shape[:1] else alike}"
    for applies, advice in (
        (classes and logits.dim() == 3 and targets.shape == shape[:2], positions),
        (classes and targets.shape == shape and logits.dim() > 1, probabilities),
        (classes and targets.shape == (shape[0], 1), "Class targets must be one-dimensional: targets.squeeze(1)."),
        (not classes and targets.shape == shape[:1] + shape[2:] and logits.dim() > 1, integers),
        (targets.shape[:1] != shape[:1] and targets.dim() > 0, counts),
    ):
        if applies:
            return f" {advice}"
    return ""


def _advice_on_classes(given: Mapping[str, Any] | None) -> str:
    """Return advice for a loss of classes that raised an exception, beginning with a space; may be empty."""
    if given is None:
        return ""
    logits, targets = given["input"], given["target"]
    if not isinstance(targets, Tensor):
        return " Targets must be a tensor: torch.as_tensor(targets)."
    if targets.is_floating_point() or targets.is_complex() or not isinstance(logits, Tensor) or not logits.dim():
        return ""
    if targets.dtype not in (torch.int64, torch.uint8):
        return " Class targets must be torch.int64: targets.long()."
    classes, ignored = logits.shape[1 if logits.dim() > 1 else 0], given["ignore_index"]
    wrong = targets[(targets != ignored) & ((targets < 0) | (targets >= classes))]
    if not len(wrong):
        return ""
    return f" There is a target of class {int(wrong[0])}, but there are {_few_logits(classes, ignored)}"


def _advice_on_calls(error: Exception) -> str:
    """Return advice for a loss that calls what it is given, beginning with a space; may be empty."""
    if isinstance(error, TypeError) and str(error).endswith("object is not callable"):
        return " A loss that calls the model itself is function(model, batch), passed as hesspec.closure(function)."
    return ""


def _is_broadcast(outputs: Tensor, targets: Tensor) -> bool:
    """Whether outputs and targets of equal numbers of samples are broadcast against each other."""
    if outputs.shape == targets.shape:
        return False
    try:
        common = np.broadcast_shapes(tuple(outputs.shape), tuple(targets.shape))
    except ValueError:
        return False  # PyTorch raises its own error for this
    both = math.prod(common) > max(outputs.numel(), targets.numel())
    return both or (outputs.shape[:1] == targets.shape[:1] and outputs.dim() != targets.dim())


def _check_broadcast(index: int, call: LossCall) -> None:
    if call.function not in ELEMENTWISE_FUNCTIONS:
        return
    target = call.given["target"]
    if isinstance(target, Tensor) and _is_broadcast(call.input, target):
        raise ValueError(
            f"Batch {index}: {call.name} is called with {describe(call.input)} and {describe(target)}, and compares "
            "all entries of the one with all of the other: give both the same shape, with .squeeze(1) or "
            ".unsqueeze(1) for example."
        )


def _ranges_of(calls: list[LossCall], named: Mapping[str, Tensor]) -> list[ClassRange]:
    """Infer ranges of classes from calls whose targets are views of a whole tensor of the data."""
    found = []
    for call in calls:
        if call.function not in OF_CLASSES:
            continue
        target, logits = call.given["target"], call.input
        memory = target.untyped_storage().data_ptr()
        paths = [
            path
            for path, tensor in named.items()
            if rows_of(tensor) and tensor.numel() == target.numel() and tensor.untyped_storage().data_ptr() == memory
        ]
        if paths and not target.is_floating_point():
            found.append(ClassRange(paths[-1], logits.shape[1 if logits.dim() > 1 else 0], call.given["ignore_index"]))
    return found
