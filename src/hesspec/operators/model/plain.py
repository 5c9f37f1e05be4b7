"""The user's own module and loss, run by plain PyTorch at given parameters: the truth that products are compared with.

Nothing here is shared with the ways in which products are computed: no functional call, no trace, no substituted
function. The parameters of the module itself hold the values that are asked for, and loss and first derivatives are
those of `loss_fn(model(inputs), targets)`. In float64 every number of single precision on the way becomes one of double
precision, constants included.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hesspec.operators.data.structures import map_tensors
from hesspec.operators.model.ambient import neutral_modes, preserved_randomness
from hesspec.operators.model.module import ModuleState, conversions_undone, without_user_hooks

__all__ = ["PlainModel"]

SINGLE = (torch.float32, torch.float16, torch.bfloat16)

# Functions that draw random numbers: those that take a dtype for them, all that give tensors, those that fill one, and
# those that drop entries of their first argument.
TAKING_DTYPE = frozenset({torch.randn, torch.rand, torch.randn_like, torch.rand_like})
OF_DISTRIBUTIONS = frozenset({torch._standard_gamma, torch._sample_dirichlet})  # noqa: SLF001 - what they draw by
DRAWN = TAKING_DTYPE | OF_DISTRIBUTIONS | {torch.normal, torch.bernoulli, torch.multinomial, torch.poisson}
DRAWN |= {Tensor.bernoulli, Tensor.multinomial}
DRAWN_IN_PLACE = frozenset(
    {
        Tensor.normal_,
        Tensor.uniform_,
        Tensor.bernoulli_,
        Tensor.exponential_,
        Tensor.geometric_,
        Tensor.log_normal_,
        Tensor.cauchy_,
        Tensor.random_,
    }
)
NARROW = {torch.complex128: torch.complex64}
DROPPED = frozenset({F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout, torch.feature_dropout})


class PlainModel:
    """A module and its loss at any parameters, one batch at a time.

    Parameters
    ----------
    module : torch.nn.Module
        The user's own. Between the contexts that `held` gives it is what it was, bit for bit.
    loss_fn : callable
        The user's own.
    selected : sequence of torch.nn.Parameter
        Those that values are given for.
    fixed : mapping of Tensor to Tensor
        All other parameters and buffers of the module, and the values that they are to have.
    double : bool
        Whether to compute in float64, whatever the module's dtype.
    observers : bool
        Whether hooks that are not PyTorch's own are taken off meanwhile.
    moved : collection of Tensor
        Those of `fixed` that the forward pass writes to. Before each pass they are put back, as are attributes.
    detaches : bool
        Whether the forward pass or the loss detaches something, which `Differences` then holds constant.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        selected: Sequence[nn.Parameter],
        fixed: Mapping[Tensor, Tensor],
        *,
        double: bool,
        observers: bool,
        moved: Collection[Tensor],
        detaches: bool,
    ) -> None:
        self._moved, self.detaches = moved, detaches
        self.module, self.loss_fn, self.double = module, loss_fn, double
        self._selected, self._fixed, self._observers = list(selected), dict(fixed), observers
        self._dtype = dtype = selected[0].real.dtype if selected[0].is_complex() else selected[0].dtype
        if isinstance(loss_fn, nn.Module):
            known = {id(tensor) for tensor in [*self._selected, *self._fixed]}
            for tensor in [*loss_fn.parameters(), *loss_fn.buffers()]:
                if id(tensor) not in known:
                    # Class weights follow the model to its dtype.
                    value = tensor.detach()
                    self._fixed[tensor] = value.to(dtype) if value.is_floating_point() else value

    @contextmanager
    def held(self, values: Sequence[Tensor]) -> Iterator[Self]:
        """Let the module's parameters be leaves with these values, and put everything back at the end.

        What is put back: the very tensors that parameters and buffers held, their gradients and `requires_grad`,
        attributes of the module and of its parts, the state of random number generators.
        """
        everything = [*self._selected, *self._fixed]
        before = [(tensor, tensor.data, tensor.requires_grad, tensor.grad) for tensor in everything if tensor.is_leaf]
        self._states = [ModuleState(part) for part in (self.module, self.loss_fn) if isinstance(part, nn.Module)]
        with ExitStack() as stack:
            stack.enter_context(preserved_randomness())
            stack.enter_context(neutral_modes())
            if self._observers:
                stack.enter_context(without_user_hooks(self.module))
            try:
                for tensor in everything:
                    tensor.grad = None
                for tensor, value in self._fixed.items():
                    # A copy, as the forward pass may change it.
                    tensor.data = self.converted(value.detach().clone())
                    if isinstance(tensor, nn.Parameter):
                        tensor.requires_grad_(False)
                self.move(values)
                for parameter in self._selected:
                    parameter.requires_grad_(True)
                if self.double:
                    single = torch.get_default_dtype()
                    stack.enter_context(_DefaultDtype(torch.float64))
                    stack.enter_context(_Doubling(None if self._dtype == torch.float64 else single))
                with conversions_undone():
                    yield self
            finally:
                for state in self._states:
                    state.restore()
                for tensor, data, requires_grad, gradient in before:
                    # In this order: tensors made in inference mode take no requirement once they are back.
                    tensor.requires_grad_(requires_grad)
                    tensor.data = data
                    tensor.grad = gradient

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs of the module at the parameters that it holds now."""
        for state in self._states:
            state.restore()
        for tensor in self._moved:
            tensor.data = self.converted(self._fixed[tensor].detach().clone())
        return self.module(*args, **kwargs)

    def padding(self) -> list[tuple[int, int]]:
        """Places of embeddings among the selected parameters, and their padding rows."""
        places = {id(parameter): i for i, parameter in enumerate(self._selected)}
        return [
            (places[id(part.weight)], part.padding_idx)
            for part in self.module.modules()
            if isinstance(part, nn.Embedding | nn.EmbeddingBag)
            and part.padding_idx is not None
            and id(part.weight) in places
        ]

    def move(self, values: Sequence[Tensor]) -> None:
        """Give the selected parameters these values, within `held`."""
        with torch._C.DisableTorchFunction():  # noqa: SLF001 - assignments are not arithmetic
            for parameter, value in zip(self._selected, values, strict=True):
                parameter.data = self.converted(value)

    def converted(self, structure: Any) -> Any:
        """Tensors of a structure in float64, where that is asked for."""
        if not self.double:
            return structure
        return map_tensors(_doubled, structure)

    @property
    def leaves(self) -> Sequence[nn.Parameter]:
        """The selected parameters, which are leaves of the graphs of what is computed within `held`."""
        return self._selected


class _DefaultDtype:
    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __enter__(self) -> None:
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self._before)


class _Doubling(TorchFunctionMode):
    """Within this context functions of PyTorch that are given single precision take and give double precision.

    Random numbers are drawn in the precision that the user's model draws them in, as the same seed gives others in
    float64.

    Parameters
    ----------
    single : torch.dtype or None
        Of random numbers that no dtype is given for; None where the model is in float64 itself.
    """

    def __init__(self, single: torch.dtype | None) -> None:
        super().__init__()
        self._single = single

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Convert what a function is given, unless it is an attribute of a tensor."""
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name in ("__get__", "__set__", "__delete__", "requires_grad_", "set_default_dtype"):
            return func(*args, **kwargs)
        if self._single is not None and (func in DRAWN or func in DRAWN_IN_PLACE or func in DROPPED):
            return self._drawn(func, args, kwargs)
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            func = Tensor.double
        # What works in place works on the tensor that it is given.
        first = args[:1] if name.endswith("_") and not name.endswith("__") else ()
        return func(*first, *_mapped(tuple(args[len(first) :])), **_mapped(kwargs))

    def _drawn(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Random numbers as in single precision."""
        if func in DROPPED:
            # What is not dropped is exact.
            given = args[0] if args else kwargs.pop("input")
            ones = torch.ones_like(given, dtype=self._single)
            return given * _mapped(func(ones, *args[1:], **kwargs))
        if func in DRAWN_IN_PLACE:
            tensor = args[0]
            if tensor.dtype != torch.float64:
                return func(*args, **kwargs)
            with torch.no_grad():
                drawn = func(tensor.detach().to(self._single), *map(self._narrow, args[1:]), **kwargs)
            return tensor.copy_(drawn)
        if func in TAKING_DTYPE or (func is torch.normal and not any(isinstance(a, Tensor) for a in args)):
            # One that is given is that of a tensor, most likely, which in single precision would be the other.
            dtype = kwargs.get("dtype")
            kwargs["dtype"] = self._single if dtype in (None, torch.float64) else NARROW.get(dtype, dtype)
        return _mapped(func(*map(self._narrow, args), **{name: self._narrow(value) for name, value in kwargs.items()}))

    def _narrow(self, value: Any) -> Any:
        return value.to(self._single) if isinstance(value, Tensor) and value.dtype == torch.float64 else value


def _mapped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _doubled(value)
    if isinstance(value, torch.dtype):
        return torch.float64 if value in SINGLE else torch.complex128 if value == torch.complex64 else value
    if type(value) in (tuple, list):
        return type(value)(map(_mapped, value))
    if type(value) is dict:
        return {key: _mapped(entry) for key, entry in value.items()}
    return value


def _doubled(tensor: Tensor) -> Tensor:
    if tensor.dtype in SINGLE:
        return tensor.double()
    return tensor.to(torch.complex128) if tensor.dtype == torch.complex64 else tensor
