"""The empirical risk: model, loss and data at one point, as functions of the selected parameters, batch by batch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from hesspec._ranks import Ranks
from hesspec.operators.batches import Batch, Batches
from hesspec.operators.losses import Loss, LossFunction
from hesspec.operators.output_curvature import output_curvature
from hesspec.operators.outputs import differentiable_outputs
from hesspec.operators.parameters import ParameterSelection, ParameterSpec
from hesspec.operators.shards import check_share
from hesspec.operators.substitutes import Substitutes
from hesspec.operators.traces import Traces

__all__ = ["EmpiricalRisk", "Named", "OutputLoss", "Predict", "differentiable_kernels", "refuse_active_modules"]

Named = dict[str, Tensor]
Predict = Callable[[Named], Any]


class OutputLoss:
    """The loss of one batch as a function of the model's outputs."""

    def __init__(self, loss: Loss, targets: Any) -> None:
        self._loss, self._targets = loss, targets

    def __call__(self, outputs: Any) -> Tensor:
        """Loss at these outputs, a scalar."""
        return self._loss(outputs, self._targets)

    def taken(self, outputs: Any) -> Any:
        """What of the model's outputs the loss function is given."""
        return self._loss.taken(outputs)

    def curvature(self, outputs: Any, part: str = "full") -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]] | None:
        """Products with d^2 l / d f^2 in closed form, where there is one.

        Parameters
        ----------
        outputs
            What the model returned, any structure. It enters as a constant.
        part : {"full", "true-vs-rest", "within-competitor"}, optional
            See `hesspec.operators.output_curvature.output_curvature`.

        Returns
        -------
        callable or None
            From tangents of the differentiable tensors of `outputs` (see `differentiable_outputs`) to the products, one
            for each; None where the curvature of this loss has to be had by automatic differentiation.

        Raises
        ------
        ValueError
            If the loss does not have this part, or a part is asked for and the logits are not among the outputs.
        """
        taken = self._loss.taken(outputs)
        places = [i for i, tensor in enumerate(differentiable_outputs(outputs)[0]) if tensor is taken]
        curve = output_curvature(self._loss.function, taken, self._targets, part) if places else None
        if curve is None:
            if part != "full":
                raise ValueError(
                    f"output_curvature={part!r} needs the logits that the loss is given among the tensors that the "
                    f"model returns, and this {type(outputs).__name__} does not hold them; let the model return them."
                )
            return None
        return lambda tangents: tuple(
            curve(tangent) if i == places[0] else torch.zeros_like(tangent) for i, tangent in enumerate(tangents)
        )


class EmpiricalRisk:
    """L(theta) = sum of loss terms over all data (or their mean), and products of its curvature matrices with vectors.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    loss_fn : callable
        See `hesspec.operators.losses.Loss`.
    data : iterable of (inputs, targets)
        See `hesspec.operators.batches.Batches`.
    params
        See `hesspec.operators.parameters.ParameterSelection`.
    terms : callable, optional
        See `hesspec.operators.losses.Loss`.
    traces : Traces, optional
        Where its traces are kept; by default they are its own.
    group : ProcessGroup, optional
        Processes each of which has batches of its own, of the same data.

    Raises
    ------
    ValueError
        If batch norm or dropout is active, or model, loss, data or params are not usable, or the ranks of the group
        have different weights; the message says what to do.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Iterable[Any],
        params: ParameterSpec = None,
        *,
        terms: Callable[[Any], float] | None = None,
        traces: Traces | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model is a {type(model).__name__}; it has to be a torch.nn.Module.")
        if isinstance(model, DistributedDataParallel):
            # What it does in a backward pass, averaging gradients over its own group, is not for products.
            model = model.module
        _refuse_sharded(model)
        refuse_active_modules(model)
        self.ranks = Ranks(group)
        self.model, self.loss_fn = model, loss_fn
        self.traces = Traces() if traces is None else traces
        self.parameters = ParameterSelection(model, params)
        self.loss = Loss(loss_fn, terms=terms, device=self.parameters.device, dtype=self.parameters.dtype)
        device, dtype = self.parameters.device, self.parameters.dtype
        check_share(data, self.ranks)
        self.batches = Batches(data, self.loss, device=device, dtype=dtype, ranks=self.ranks)
        everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        _refuse_other_weights(self.ranks, everything)
        self.fixed = {
            name: value.detach().clone() for name, value in everything.items() if name not in self.parameters.names
        }

    def functions(self, fixed: Named, inputs: Any, targets: Any) -> tuple[Predict, OutputLoss]:
        """The model as a function of named parameters, and the loss as a function of its outputs, on one batch."""

        def predict(named: Named) -> Any:
            args, kwargs = _arguments(inputs)
            return functional_call(self.model, {**fixed, **named}, args, kwargs)

        return predict, OutputLoss(self.loss, targets)

    def leaves(self) -> Named:
        """The selected parameters as leaves of a new autograd graph, which share the memory of their values."""
        values = zip(self.parameters.names, self.parameters.values, strict=True)
        return {name: value.detach().requires_grad_() for name, value in values}

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters and buffers, the selected ones first."""
        yield from zip(self.parameters.names, self.parameters.values, strict=True)
        yield from self.fixed.items()

    def gradient(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss of one batch and its gradient, by plain reverse mode."""
        named = self.leaves()
        leaves = tuple(named.values())
        predict, loss = self.functions(self.fixed, batch.inputs, batch.targets)
        with torch.enable_grad(), differentiable_kernels():
            value = loss(predict(named))
            if not value.requires_grad:
                return value, tuple(map(torch.zeros_like, leaves))
            gradient = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        return value.detach(), gradient


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Arithmetic that is fit for second derivatives.

    Attention and the hard sigmoid keep to forms that can be differentiated twice (fused ones cannot), and cross-entropy
    to the one whose derivatives do not cancel.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), Substitutes():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def _refuse_sharded(model: nn.Module) -> None:
    """Raise where this process has a part of the parameters only."""
    # Slow to import, and imported already where a model is sharded.
    tensor, fsdp = (sys.modules.get(f"torch.distributed.{name}") for name in ("tensor", "fsdp"))
    sharded = tensor is not None and any(isinstance(parameter, tensor.DTensor) for parameter in model.parameters())
    wrapped = fsdp is not None and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules())
    if sharded or wrapped:
        raise ValueError(
            "The model's parameters are sharded over several processes, and PyTorch has no second derivative through "
            "that. hesspec.CentralDifferenceHessian is for models that fully_shard has sharded; a model that fits on a "
            "device is better measured unsharded, with group=... for its data."
        )


def _refuse_other_weights(ranks: Ranks, tensors: Mapping[str, Tensor]) -> None:
    if ranks.size == 1:
        return
    # Exact where weights are the same, as every rank sums them in the same order.
    sums = {}
    for name, tensor in tensors.items():
        numbers = tensor.detach().double().nan_to_num()
        sums[name] = tuple(tensor.shape), float(numbers.sum()), float(numbers.square().sum())
    first, mine = ranks.gather(sums)[0], dict(sums)
    different = [name for name in {**first, **mine} if first.get(name) != mine.get(name)]

    def compare() -> None:
        if different:
            raise ValueError(
                f"Rank {ranks.rank} has another {different[0]!r} than rank 0: all ranks need the same model. Load the "
                "same weights on all of them, or seed them alike."
            )

    ranks.together(compare)


def refuse_active_modules(model: nn.Module) -> None:
    """Raise where the loss would not be a mean over samples, or would be another one at each call."""
    batch_norm, dropout = nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd  # noqa: SLF001
    active = []
    for name, module in model.named_modules():
        if isinstance(module, batch_norm) and (module.training or not module.track_running_stats):
            active.append((name, "batch statistics"))
        elif isinstance(module, dropout) and module.training and module.p > 0:
            active.append((name, f"p={module.p}"))
    if active:
        shown = ", ".join(f"{name or type(model).__name__} ({what})" for name, what in active[:8])
        rest = f" and {len(active) - 8} more" if len(active) > 8 else ""
        raise ValueError(
            f"Batch norm or dropout is active in {shown}{rest}: the loss is then no mean over samples. Call "
            "model.eval(), and give batch norm running statistics (track_running_stats=True)."
        )
