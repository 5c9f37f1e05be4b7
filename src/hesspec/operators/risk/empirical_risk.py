"""Empirical risk: model, loss and data at one point, as functions of the selected parameters, batch by batch."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from hesspec.backend.ranks import Ranks
from hesspec.backend.text import kind_of
from hesspec.backend.user_warnings import warn
from hesspec.errors import NonFiniteError
from hesspec.operators.data.items import arguments
from hesspec.operators.model.ambient import differentiable_kernels, neutral_modes, preserved_randomness
from hesspec.operators.model.kept import Holder, Results
from hesspec.operators.model.module import ModuleState, holders, private_copy, reparametrised, settings, unwrapped
from hesspec.operators.model.plain import PlainModel
from hesspec.operators.risk.batches import Batch, Batches
from hesspec.operators.risk.captured import Capture, CapturedLoss, find_capture, without_curvature, words_of_split
from hesspec.operators.risk.closure import Bound
from hesspec.operators.risk.first_pass import copied
from hesspec.operators.risk.inspection import Inspection, few_samples, inspect_model
from hesspec.operators.risk.losses import Loss, LossFunction
from hesspec.operators.risk.output_loss import Named, OutputLoss, Predict
from hesspec.operators.risk.parameters import ParameterSelection, ParameterSpec
from hesspec.operators.risk.shards import check_cut, check_share, is_distributed

__all__ = ["EmpiricalRisk", "Named", "OutputLoss", "Predict", "loss_not_finite", "refuse_active_modules"]

OF_THE_BATCH = "its loss is that with its own batch statistics"


class EmpiricalRisk:
    """Empirical risk L(theta), the mean (or sum) of loss terms over all data.

    Parameters
    ----------
    model : torch.nn.Module
        Model in evaluation mode. Products run a private copy of it, so that later changes have no effect.
    loss_fn : callable
        See `hesspec.operators.risk.losses.Loss`.
    data : iterable of (inputs, targets)
        See `hesspec.operators.risk.batches.Batches`.
    params
        See `hesspec.operators.risk.parameters.ParameterSelection`.
    terms : callable, optional
        See `hesspec.operators.risk.losses.Loss`.
    mode : str, optional
        How products are computed; see `hesspec.operators.engine.passes.Passes`.
    verify : bool, optional
        Whether products are compared with differences of first derivatives.
    batch_statistics : bool, optional
        Whether batch norm in training mode is allowed: each batch is then one function of the weights and never split.
    group : ProcessGroup, optional
        Processes, each with its own batches of the same data.

    Attributes
    ----------
    module : torch.nn.Module
        The user's module, without wrappers.
    model : torch.nn.Module
        The private copy; the user's own module if it cannot be copied.
    products : int or None
        Number of products that are expected, None if nothing is known of it.

    Raises
    ------
    ValueError
        If batch norm or dropout is active, model, loss, data or params are invalid, or the ranks of the group have
        different weights; the message says what to do.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        data: Iterable[Any],
        params: ParameterSpec = None,
        *,
        terms: Callable[[Any], float] | None = None,
        mode: str = "auto",
        verify: bool = True,
        batch_statistics: bool = False,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        _refuse_other_objects(model)
        _refuse_sharded(model)
        self.products: int | None = None
        self.module = unwrapped(model)
        refuse_active_modules(self.module, batch_statistics=batch_statistics)
        self.ranks = Ranks(group)
        self.loss_fn, self.mode, self.verify = loss_fn, mode, verify
        self.parameters = ParameterSelection(self.module, params)
        self.loss = Loss(loss_fn, terms=terms, device=self.parameters.device, dtype=self.parameters.dtype)
        device, dtype = self.parameters.device, self.parameters.dtype
        everything = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        _refuse_other_weights(self.ranks, everything)
        fixed = {name: value for name, value in everything.items() if name not in self.parameters.names}
        self.fixed = {name: value.detach().clone() for name, value in fixed.items()}
        self._fixed_tensors = list(fixed.values())
        self.model = self._own_copy(batch_statistics)
        self._called = self._closed(self.model)
        self._places = holders(self.module)
        self.settings = settings(self.module)
        self.capture: Capture | None = None
        self._state: ModuleState | None = None
        self.holders: list[Holder] = []
        self._inspection: Inspection | None = None
        check_share(data, self.ranks)
        results = Results()
        self._watched: AbstractContextManager[object] = results
        self.loss.watched = results
        self.batches = Batches(
            data,
            self.loss,
            device=device,
            dtype=dtype,
            ranks=self.ranks,
            model=self.module,
            forward=self._first_outputs,
            whole=OF_THE_BATCH if batch_statistics else "",
        )
        self.holders = Holder.of(results.alive())
        self._watched = self.loss.watched = nullcontext()
        check_cut(data, self.batches.indivisible, self.ranks)

    def _closed(self, module: nn.Module) -> nn.Module:
        """Return the module or, for a closure, the module that returns the loss."""
        return module if self.loss.closure is None else Bound(module, self.loss.closure)

    def _first_outputs(self, inputs: Any) -> Any:
        """Compute outputs at the operator's parameters to examine the loss, without changing the copy."""
        state = ModuleState(self.model)
        # Neutral modes switch gradients on: where the caller has none, parameters require none. They are copies, as the
        # forward pass may change them.
        differentiated = torch.is_grad_enabled()
        named = {name: value.detach().clone().requires_grad_(differentiated) for name, value in self.leaves().items()}
        try:
            fixed = {name: value.clone() for name, value in self.fixed.items()}
            with preserved_randomness(), neutral_modes(), self._watched:
                return self.outputs(fixed, inputs, named)
        finally:
            state.restore()

    def outputs(self, fixed: Named, inputs: Any, named: Named | None = None) -> Any:
        """Compute outputs of the private copy with these buffers and other parameters.

        Parameters
        ----------
        fixed : dict
        inputs
            Inputs of a batch.
        named : dict, optional
            Values of the selected parameters, instead of those at this point.
        """
        if named is None:
            # They require a gradient, like the model's own, as its forward pass may differentiate with respect to them.
            named = self.leaves()
        if self._inspection is not None:
            # The forward pass must not write into tensors that graphs and later passes need.
            copies = {name: named[name].clone() for name in self._inspection.overwritten}
            named = {name: copies.get(name, value) for name, value in named.items()}
        args, kwargs = self._arguments(inputs)
        natural = zip(named, self.parameters.natural(named.values()), strict=True)
        prefix = "" if self.loss.closure is None else "model."
        values = {prefix + name: value for name, value in (*fixed.items(), *natural)}
        return functional_call(self._called, values, args, kwargs)

    def _arguments(self, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return arguments(inputs) if self.loss.closure is None else ((inputs,), {})

    def _own(self, inputs: Any) -> Any:
        """Return inputs that a forward pass may modify."""
        return copied(inputs) if self.batches.changes_inputs else inputs

    def _own_copy(self, batch_statistics: bool) -> nn.Module:
        selected = zip(self.parameters.parameters, self.parameters.natural(self.parameters.values), strict=True)
        copied = private_copy(
            self.module, {**dict(selected), **dict(zip(self._fixed_tensors, self.fixed.values(), strict=True))}
        )
        if copied is None:
            return self.module
        if batch_statistics:
            for part in copied.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:  # noqa: SLF001
                    # Without updating running statistics, which are not part of the loss.
                    part.track_running_stats = False
        return copied

    @property
    def inspection(self) -> Inspection:
        """Result of the inspection of the model on a few samples."""
        if self._inspection is None:
            batch = next(iter(self.batches))
            self._inspection = inspect_model(self, few_samples(self.batches, batch)[0])
            if self._inspection.volatile or self.holders:
                self._state = ModuleState(self.model, self.holders)
        return self._inspection

    def functions(self, fixed: Named, inputs: Any, targets: Any) -> tuple[Predict, OutputLoss]:
        """Return the model as a function of named parameters and the loss as a function of outputs, for one batch."""

        def predict(named: Named) -> Any:
            try:
                # Buffers that the forward pass overwrites are copied.
                moved = {name: fixed[name].clone() for name in self.inspection.moved}
                return self.outputs({**fixed, **moved}, self._own(inputs), named)
            finally:
                if self._state is not None:
                    self._state.restore()

        reaches = self.inspection.reaches
        loss = OutputLoss(
            self.loss, targets, self._around if reaches else None, reaches=reaches, after=self._restore_holders
        )
        return self._split(predict, loss)

    def _restore_holders(self) -> None:
        for holder in self.holders:
            holder.restore()

    def in_place(self, plain: PlainModel, inputs: Any, targets: Any) -> tuple[Predict, OutputLoss]:
        """Return the same functions for the user's own module, at its current parameters within `plain`."""

        def predict(named: Named) -> Any:  # noqa: ARG001 - the parameters are in place
            args, kwargs = self._arguments(self._own(inputs))
            return plain(*args, **kwargs)

        reaches = self.inspection.reaches
        return self._split(predict, OutputLoss(self.loss, targets, reaches=reaches, after=self._restore_holders))

    def _split(self, predict: Predict, loss: OutputLoss) -> tuple[Predict, OutputLoss]:
        """Return the functions for the Gauss-Newton matrix, those of the captured tensors if there are any."""
        if self.capture is None:
            return predict, loss
        return self.capture.predict(predict, loss), CapturedLoss(self.capture, predict, loss)

    def split(self) -> None:
        """Find the outputs for the Gauss-Newton matrix and the residual, if they are not those of the model.

        Warns
        -----
        UserWarning
            If G refers to other tensors, or is zero by definition.
        """
        batch, _, _ = few_samples(self.batches, next(iter(self.batches)))

        def find() -> tuple[Capture | None, str]:
            with preserved_randomness(), differentiable_kernels():
                predict, loss = self.functions(self.fixed, batch.inputs, batch.targets)
                capture = find_capture(predict, loss, self.leaves())
                if capture is not None:
                    predict, loss = capture.predict(predict, loss), CapturedLoss(capture, predict, loss)
                theta = {name: value.detach() for name, value in self.leaves().items()}
                with torch.enable_grad():
                    outputs = predict(self.leaves())
                return capture, without_curvature(lambda outputs: loss(outputs, theta), outputs)

        self.capture, flat = self.ranks.together(find)
        words = words_of_split(self.capture, flat, self.loss)
        if words and self.ranks.rank == 0:
            warn(words)

    def _around(self, named: Named) -> AbstractContextManager[None]:
        """Return a context within which the user's own module has these parameters."""
        pairs = zip(self.parameters.parameters, self.parameters.natural(named.values()), strict=True)
        return reparametrised((self._places[id(own)], value) for own, value in pairs)

    def plain(self, *, double: bool, found: Inspection | None = None) -> PlainModel:
        """Return the user's own module and loss, to be run at any parameters by plain PyTorch.

        If the module was changed since this risk was created, its private copy is used instead.

        Raises
        ------
        ValueError
            If it was changed and there is no copy.
        """
        found = self.inspection if found is None else found
        module, selected, fixed = self.module, self.parameters.parameters, self._fixed_tensors
        change = self._change()
        if change is not None:
            if self.model is self.module:
                raise ValueError(
                    f"The model cannot be copied and has changed since the operator was created: {change}. Create a "
                    "new operator."
                )
            named = dict(self.model.named_parameters())
            module, selected = self.model, tuple(named[name] for name in self.parameters.names)
            everything = {**named, **dict(self.model.named_buffers())}
            fixed = [everything[name] for name in self.fixed]
        named_fixed = dict(zip(self.fixed, fixed, strict=True))
        return PlainModel(
            self._closed(module),
            self.loss_fn,
            selected,
            {named_fixed[name]: value for name, value in self.fixed.items()},
            double=double,
            observers=found.observers,
            moved=[named_fixed[name] for name in found.moved],
            holders=self.holders,
            detaches=found.detaches,
        )

    def _change(self) -> str | None:
        """Describe what has changed in the user's module, or why it cannot be run in place; "" if it can."""
        if any(tensor.is_inference() for tensor in [*self.parameters.parameters, *self._fixed_tensors]):
            return "it was created in inference mode"
        now = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        for name, tensor in zip(
            [*self.parameters.names, *self.fixed], [*self.parameters.parameters, *self._fixed_tensors], strict=True
        ):
            if now.get(name) is not tensor:
                return f"{name!r} is a different tensor"
        for before, line in itertools.zip_longest(self.settings, settings(self.module)):
            if line != before:
                return f"a part of it, {before or line}, is now {line}" if before and line else "it has other parts"
        return None

    def plainly(self, plain: PlainModel, batch: Batch) -> Callable[[], tuple[Any, Callable[[Any], Tensor]]]:
        """Compute outputs of a batch and the loss as their function, with the user's own module and loss in `plain`."""
        inputs, targets = plain.converted((batch.inputs, batch.targets))

        def loss(outputs: Any) -> Tensor:
            if self.loss.closure is not None:
                return cast("Tensor", outputs)
            return plain.loss_fn(self.loss.taken(outputs), copied(targets) if self.loss.changes_targets else targets)

        def evaluate() -> tuple[Any, Callable[[Any], Tensor]]:
            args, kwargs = self._arguments(self._own(inputs))
            return plain(*args, **kwargs), loss

        return evaluate

    def at(self, values: Sequence[Tensor]) -> Self:
        """Return the same risk with other values of the selected parameters."""
        other = copy.copy(self)
        other.parameters = copy.copy(self.parameters)
        other.parameters.values = tuple(values)
        return other

    def at_current_weights(self) -> Self:
        """Return the same risk at the present parameters and buffers of the user's module.

        Raises
        ------
        ValueError
            If anything else of the module has changed, or the ranks have different weights.
        """
        change = self._change()
        if change:
            raise ValueError(
                f"The model has changed in more than the values of its parameters and buffers: {change}. Create a new "
                "operator."
            )
        other = self._moved()
        _refuse_other_weights(self.ranks, dict(other.named()))
        return other

    def _moved(self) -> Self:
        other = self.at(self.parameters.current())
        other.fixed = {
            name: tensor.detach().clone() for name, tensor in zip(self.fixed, self._fixed_tensors, strict=True)
        }
        return other

    @property
    def outdated(self) -> bool:
        """Whether the user's module has other parts, modes or settings than when this risk was created."""
        return self._change() is not None

    def again(self, data: Sequence[Any]) -> Self:
        """Return the risk of other batches of the same kind, in memory, at the current weights of the module.

        What was found out about model and loss is not found out again; the module must not be `outdated`.
        """
        other = self._moved()
        other.batches = self.batches.again(data, self.ranks)
        return other

    def leaves(self) -> Named:
        """Return the selected parameters as leaves of a new autograd graph, sharing the memory of their values."""
        values = zip(self.parameters.names, self.parameters.values, strict=True)
        return {name: value.detach().requires_grad_() for name, value in values}

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters and buffers, the selected ones first."""
        yield from zip(self.parameters.names, self.parameters.values, strict=True)
        yield from self.fixed.items()

    def gradient(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the loss of one batch and its gradient, by plain reverse mode."""
        named = self.leaves()
        leaves = tuple(named.values())
        predict, loss = self.functions(self.fixed, batch.inputs, batch.targets)
        with torch.enable_grad(), preserved_randomness(), differentiable_kernels():
            value = loss(predict(named), named)
            if not value.requires_grad:
                return value, tuple(map(torch.zeros_like, leaves))
            gradient = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        return value.detach(), gradient

    def fault(self, batch: Batch) -> NonFiniteError | None:
        """Describe what is NaN or infinite in the loss of a batch and its gradient, if anything is."""
        value, gradient = self.gradient(batch)
        if not value.isfinite():
            return loss_not_finite(batch, value)
        for name, entry in zip(self.parameters.names, gradient, strict=True):
            if not entry.isfinite().all():
                return NonFiniteError(f"The gradient of {name!r} is not finite in batch {batch.index}.")
        return None


def loss_not_finite(batch: Batch, value: Tensor) -> NonFiniteError:
    """Error for a loss that is NaN or infinite."""
    return NonFiniteError(
        f"The loss of batch {batch.index} is {float(value)}; check its inputs and targets, and the weights."
    )


def _refuse_other_objects(model: object) -> None:
    """Raise if a model is no module, or is a loss."""
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ValueError(f"model is the class {model.__name__}; pass an instance.")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {kind_of(model)}; it must be a torch.nn.Module.")
    if isinstance(model, nn.modules.loss._Loss):  # noqa: SLF001 - there is no public class of all losses
        raise ValueError(f"model is {model}, a loss. The order of arguments is model, loss_fn, data.")


def _refuse_sharded(model: nn.Module) -> None:
    """Raise if this process has only a part of the parameters."""
    sharded = any(map(is_distributed, model.parameters()))
    # Slow to import, and already imported if a model is sharded.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    wrapped = fsdp is not None and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules())
    if sharded or wrapped:
        raise ValueError(
            "The model's parameters are sharded over several processes, and PyTorch has no second derivative through "
            "that. hesspec.CentralDifferenceHessian also accepts models sharded by fully_shard; a model that fits "
            "on a device is better measured unsharded, with group=... for its data."
        )


def _refuse_other_weights(ranks: Ranks, tensors: Mapping[str, Tensor]) -> None:
    if ranks.size == 1:
        return
    # Exact if weights are equal, as every rank sums them in the same order.
    sums = {}
    for name, tensor in tensors.items():
        numbers = tensor.detach().double().nan_to_num()
        sums[name] = tuple(tensor.shape), float(numbers.sum()), float(numbers.square().sum())
    first, mine = ranks.gather(sums)[0], dict(sums)
    different = [name for name in {**first, **mine} if first.get(name) != mine.get(name)]

    def compare() -> None:
        if different:
            raise ValueError(
                f"Rank {ranks.rank} has a different {different[0]!r} than rank 0: all ranks need the same model. Load "
                "the same weights on all ranks, or use the same seed."
            )

    ranks.together(compare)


def refuse_active_modules(model: nn.Module, *, batch_statistics: bool = False) -> None:
    """Raise if the loss would not be a mean over samples, or would differ from call to call."""
    batch_norm, dropout = nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd  # noqa: SLF001
    active = []
    for name, module in model.named_modules():
        if isinstance(module, batch_norm) and (module.training or not module.track_running_stats):
            if not batch_statistics:
                active.append((name, "batch statistics"))
        elif isinstance(module, dropout) and module.training and module.p > 0:
            active.append((name, f"p={module.p}"))
    if active:
        shown = ", ".join(f"{name or type(model).__name__} ({what})" for name, what in active[:8])
        rest = f" and {len(active) - 8} more" if len(active) > 8 else ""
        raise ValueError(
            f"Batch norm or dropout is active in {shown}{rest}: the loss is not a mean over samples. Call "
            "model.eval(), and give batch norm running statistics (track_running_stats=True). To measure the loss with "
            "the statistics of each batch, as in training, pass batch_statistics=True."
        )
