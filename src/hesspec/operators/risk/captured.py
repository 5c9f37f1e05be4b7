"""Outputs for the Gauss-Newton matrix if the loss is computed in the model or is linear in the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hesspec.backend.memory import is_out_of_memory
from hesspec.errors import InputError
from hesspec.operators.data.structures import describe
from hesspec.operators.risk.loss_calls import LossCalls, is_log_probabilities
from hesspec.operators.risk.losses import Loss
from hesspec.operators.risk.output_loss import Named, OutputLoss, Predict
from hesspec.operators.risk.outputs import Captured, differentiable_outputs

__all__ = ["Capture", "CapturedLoss", "find_capture", "without_curvature", "words_of_split"]

# Displacement of outputs to test whether a loss is linear in them, relative to their largest entry.
MOVED = (1.0, 8.0, 64.0)


@dataclass(frozen=True)
class Capture:
    """Arguments of loss functions, and outputs, through which a loss depends on the parameters.

    With z these tensors, L(theta) = l(z(theta)) as for the outputs of a model, and Hess = G + H with the Jacobian and
    the output curvature of z. If a model returns its own loss, the loss is linear in that output; the logits are the
    input of the cross-entropy that the model calls.

    Attributes
    ----------
    arguments : mapping of callable to tuple of str
        Loss functions, and names of the captured arguments of all their calls. The number of calls may vary: a detector
        has one for each image with an object.
    logits : frozenset of callable
        Loss functions that receive log-probabilities, which serve as logits: they are their own log-softmax.
    outputs : tuple of int
        Indices of captured differentiable tensors of the outputs.
    words : str
        Description of the captured tensors.
    """

    arguments: Mapping[Callable[..., Tensor], tuple[str, ...]]
    logits: frozenset[Callable[..., Tensor]]
    outputs: tuple[int, ...]
    words: str

    def names(self, function: Callable[..., Tensor], given: Mapping[str, Any]) -> list[str]:
        """Return the names of the captured arguments of a call."""
        return [name for name in self.arguments.get(function, ()) if isinstance(given[name], Tensor)]

    def predict(self, predict: Predict, loss: OutputLoss) -> Predict:
        """Compute z as a function of the parameters."""

        def captured(named: Named) -> Captured:
            with LossCalls() as recorder:
                outputs = predict(named)
                loss(outputs, named)
            tensors, _ = differentiable_outputs(outputs)
            found = [call.given[name] for call in recorder.calls for name in self.names(call.function, call.given)]
            constants = {name: value.detach() for name, value in named.items()}
            return Captured((*found, *(tensors[i] for i in self.outputs)), constants)

        return captured


class CapturedLoss(OutputLoss):
    """Loss of one batch as a function of the captured tensors.

    Parameters
    ----------
    capture : Capture
    predict : callable
        The model, as a function of named parameters.
    loss : callable
        Of its outputs.
    """

    def __init__(self, capture: Capture, predict: Predict, loss: OutputLoss) -> None:
        self._capture, self._predict, self._inner = capture, predict, loss
        self.reaches = loss.reaches

    def __call__(self, captured: Captured, named: Named) -> Tensor:
        """Evaluate the loss at these tensors: the model runs again, with them as arguments of its loss functions."""
        capture = self._capture
        # In the order of the calls; the outputs come last.
        given = iter(captured.tensors)
        free = captured.tensors[len(captured.tensors) - len(capture.outputs) :]

        def instead(number: int, function: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:  # noqa: ARG001
            own = {**arguments, **{name: next(given) for name in capture.names(function, arguments)}}
            return _of_logits(function, own) if function in capture.logits else function(**own)

        with LossCalls(instead):
            tensors, rebuild = differentiable_outputs(self._predict(captured.constants))
            replaced = dict(zip(capture.outputs, free, strict=True))
            return self._inner(rebuild(tuple(replaced.get(i, tensor) for i, tensor in enumerate(tensors))), named)

    def taken(self, outputs: Any) -> Any:
        """Return the tensors that the loss receives: all that are captured."""
        return outputs

    def curvature(self, outputs: Any, part: str = "full") -> None:  # noqa: ARG002 - as of OutputLoss
        """Return None: the curvature is computed by automatic differentiation.

        Raises
        ------
        ValueError
            If a part of the curvature is requested.
        """
        if part != "full":
            raise InputError(
                f"output_curvature={part!r} requires that the model returns the logits, but the model computes "
                "its loss itself; let it return the logits, and pass the loss as loss_fn."
            )


def _of_logits(function: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
    """A loss function of log-probabilities, called with logits."""
    if function is F.nll_loss:
        names = ("input", "target", "weight", "ignore_index", "reduction")
        return F.cross_entropy(**{name: given[name] for name in names})
    classes = _classes(function, given["input"])
    return function(**{**given, "input": F.log_softmax(given["input"], 1 if classes is None else classes)})


def _classes(function: Callable[..., Tensor], tensor: Tensor) -> int | None:
    """Return the dimension along which a tensor holds log-probabilities, for a loss that is linear in them."""
    places = {F.nll_loss: (1,), F.kl_div: (1, tensor.dim() - 1)}.get(function, ())
    return next((place for place in places if is_log_probabilities(tensor, place)), None)


class _Cut(LossCalls):
    """Replaces the results of loss functions by leaves of the graph.

    For calls in the loss itself (`in_loss`), only those that are linear in log-probabilities: the others are functions
    of the outputs with curvature.
    """

    def __init__(self) -> None:
        super().__init__(self._leaf)
        self.leaves: dict[int, Tensor] = {}
        self.logits: list[int] = []
        self.in_loss = False

    def _leaf(self, number: int, function: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
        result = function(**given)
        logits = _classes(function, next(iter(given.values()))) is not None
        if not result.requires_grad or (self.in_loss and not logits):
            return result
        if logits:
            self.logits.append(number)
        self.leaves[number] = result.detach().requires_grad_()
        return self.leaves[number]


def find_capture(predict: Predict, loss: OutputLoss, theta: Named) -> Capture | None:
    """Find calls of loss functions, in a model or its loss, through which the loss depends on the parameters.

    Parameters
    ----------
    predict : callable
        The model, as a function of named parameters.
    loss : callable
        Of its outputs.
    theta : dict
        Leaves that require a gradient.

    Returns
    -------
    Capture or None
        The calls; None if there is no such call, or the loss depends on the parameters in another way, too.
    """
    with torch.enable_grad():
        try:
            cut, outputs, value = _run(predict, loss, theta, ())
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            # A model that differentiates the result of a loss function fails with a leaf in its place.
            return None
        reached = _reached(value, cut.leaves)
        if not reached:
            return None
        tensors, _ = differentiable_outputs(outputs)
        # Outputs on which the loss depends other than through loss functions.
        direct = _reached(value, {i: tensor for i, tensor in enumerate(tensors) if tensor.requires_grad})
        free = tuple(
            i
            for i, tensor in enumerate(tensors)
            if i in direct and not _reached(tensor.sum(), {number: cut.leaves[number] for number in reached})
        )
        # With the captured tensors held constant, nothing may depend on the parameters.
        again, _, value = _run(predict, loss, theta, free)
        if value.requires_grad and _reached(value, dict(enumerate(theta.values()))):
            return None
    arguments: dict[Callable[..., Tensor], tuple[str, ...]] = {}
    words = []
    for call in (again.calls[number] for number in reached):
        for name, given in call.given.items():
            if isinstance(given, Tensor) and given.requires_grad:
                words.append(f"{name} of {call.name}, {describe(given)}")
                arguments[call.function] = tuple(dict.fromkeys((*arguments.get(call.function, ()), name)))
    if not arguments:
        # All that these functions are given depends on outputs that the loss depends on in other ways, too.
        return None
    logits = frozenset(again.calls[number].function for number in again.logits if number in reached)
    return Capture(arguments, logits, free, ", ".join(words))


def _run(predict: Predict, loss: OutputLoss, theta: Named, constant: Sequence[int]) -> tuple[_Cut, Any, Tensor]:
    """Compute outputs and loss with the results of loss functions as leaves, and some of the outputs as constants."""
    with _Cut() as cut:
        outputs = predict(theta)
        tensors, rebuild = differentiable_outputs(outputs)
        cut.in_loss = True
        value = loss(rebuild(tuple(t.detach() if i in constant else t for i, t in enumerate(tensors))), theta)
    return cut, outputs, value


def _reached(value: Tensor, leaves: dict[int, Tensor]) -> list[int]:
    """Return the leaves on which a value depends."""
    if not leaves or not value.requires_grad:
        return []
    slopes = torch.autograd.grad(value, tuple(leaves.values()), retain_graph=True, allow_unused=True)
    return [number for number, slope in zip(leaves, slopes, strict=True) if slope is not None]


def without_curvature(loss: Callable[[Any], Tensor], outputs: Any) -> str:
    """Return why a loss has no curvature in the outputs: "linear" or "piecewise linear"; "" if it has curvature.

    Parameters
    ----------
    loss : callable
        Loss as a function of the outputs.
    outputs
        Outputs of the model, or `Captured`.
    """
    if _has_curvature(loss, outputs) or _has_curvature_elsewhere(loss, outputs):
        return ""
    return "linear" if _is_linear(loss, outputs) else "piecewise linear"


def words_of_split(capture: Capture | None, flat: str, loss: Loss) -> str:
    """Return the warning about the Gauss-Newton matrix; "" if it is that of the model's outputs.

    Parameters
    ----------
    capture : Capture or None
    flat : str
        Result of `without_curvature`.
    loss : Loss
    """
    found = "the model returns" if capture is None else f"its loss functions are given ({capture.words})"
    if flat == "linear":
        return (
            f"The loss is linear in what {found}: its Gauss-Newton matrix is zero by definition, and the residual is "
            "the whole Hessian. For a Gauss-Newton matrix of logits or predictions, let the model return these, and "
            "pass the loss of them as loss_fn."
        )
    if flat:
        return (
            f"The loss is {flat} in what {found}, as an L1, hinge or quantile loss is: its Gauss-Newton matrix is zero "
            "by definition, and the residual is the whole Hessian."
        )
    if capture is not None:
        return (
            "The loss is computed in the model, or is linear in what it returns. The Gauss-Newton matrix is that of "
            f"what its loss functions are given: {capture.words}."
        )
    if loss.of_logits:
        return (
            f"{loss.name} is linear in the log-probabilities that the model returns. The Gauss-Newton matrix is that "
            "of the softmax cross-entropy of them as logits, which is the same loss."
        )
    return ""


def _has_curvature(loss: Callable[[Any], Tensor], outputs: Any) -> bool:
    """Whether the second derivative of a loss in the outputs is nonzero in some direction."""
    tensors, rebuild = differentiable_outputs(outputs)
    with torch.enable_grad():
        at = [tensor.detach().requires_grad_() for tensor in tensors]
        try:
            value = loss(rebuild(tuple(at)))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"The loss is not a function of what the model returns alone ({type(error).__name__}: {error}), as "
                "where it differentiates the outputs by the inputs: its Hessian has no Gauss-Newton part and residual. "
                "Let the model return the derivatives, or measure hesspec.Hessian."
            ) from error
        if not value.requires_grad:
            return False
        slopes = torch.autograd.grad(value, at, create_graph=True, allow_unused=True)
        curved = [slope for slope in slopes if slope is not None and slope.requires_grad]
        if not curved:
            return False
        along = _direction(curved)
        try:
            second = torch.autograd.grad(curved, at, along, allow_unused=True)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            # A derivative of the gradient that PyTorch does not have is not zero.
            return True
    return any(part is not None and bool((part != 0).any()) for part in second)


def _has_curvature_elsewhere(loss: Callable[[Any], Tensor], outputs: Any) -> bool:
    """Whether there is some at outputs of about 1: the probabilities of a model that fits all samples underflow."""
    tensors, rebuild = differentiable_outputs(outputs)
    try:
        return _has_curvature(loss, rebuild(tuple(_direction(tensors))))
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        # These outputs are none that the loss can take.
        return False


def _is_linear(loss: Callable[[Any], Tensor], outputs: Any) -> bool:
    """Whether a loss is a linear function of the outputs along some direction, to rounding."""
    tensors, rebuild = differentiable_outputs(outputs)
    with torch.enable_grad():
        at = [tensor.detach().requires_grad_() for tensor in tensors]
        value = loss(rebuild(tuple(at)))
        slopes = torch.autograd.grad(value, at, allow_unused=True, materialize_grads=True)
    largest = max(1.0, *(float(tensor.detach().abs().max()) for tensor in at if tensor.numel()))
    along = [way * largest for way in _direction(at)]
    slope = sum(float((one.detach() * other).sum()) for one, other in zip(slopes, along, strict=True))
    start = float(value.detach())
    with torch.no_grad():
        for step in MOVED:
            moved = loss(rebuild(tuple(tensor + step * way for tensor, way in zip(at, along, strict=True))))
            expected = start + step * slope
            size = abs(start) + step * sum(
                float((one * other).abs().sum()) for one, other in zip(slopes, along, strict=True)
            )
            if not abs(float(moved) - expected) <= 1024 * torch.finfo(value.dtype).eps * size:
                return False
    return True


def _direction(like: Sequence[Tensor]) -> list[Tensor]:
    """A direction that does not depend on the state of random number generators.

    Tensors of the same shape have other entries: a loss of the difference of two outputs, as of an embedding and a
    second one, does not change where both are moved alike.
    """
    found, start = [], 1
    for tensor in like:
        places = torch.arange(start, start + tensor.numel(), dtype=torch.float64, device=tensor.device)
        found.append(torch.sin(places * 12.9898).to(tensor.dtype).reshape(tensor.shape))
        start += tensor.numel()
    return found
