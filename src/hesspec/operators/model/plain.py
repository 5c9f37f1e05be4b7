"""The user's own module and loss, run by plain PyTorch at given parameters, as the reference for verification.

No code is shared with the ways of computing products: no functional call, no trace, no substituted function. The
parameters of the module itself are set to the requested values, and loss and first derivatives are those of
`loss_fn(model(inputs), targets)`. In float64 every single-precision number in between is converted to double precision,
constants included.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from hesspec.operators.data.structures import map_tensors
from hesspec.operators.model.ambient import neutral_modes, preserved_randomness
from hesspec.operators.model.function_mode import FunctionMode
from hesspec.operators.model.kept import Holder
from hesspec.operators.model.module import ModuleState, conversions_undone, without_user_hooks

__all__ = ["PlainModel", "accumulators_may_have_hooks", "leaves_held"]

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


def leaves_held(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return those of some tensors whose gradient is accumulated by a node that something else holds.

    That is a graph which was not discarded, or what hooked the node.
    """
    mark = "hesspec"
    leaves = [tensor for tensor in tensors if tensor.requires_grad and tensor.is_leaf and not tensor.is_inference()]
    for leaf in leaves:
        # A node that nobody holds ends here, and its metadata with it.
        _node_of(leaf).metadata[mark] = True
    return [leaf for leaf in leaves if _node_of(leaf).metadata.pop(mark, False)]


def _node_of(leaf: Tensor) -> Any:
    with torch.inference_mode(mode=False):
        return get_gradient_edge(leaf).node


def accumulators_may_have_hooks(tensors: Iterable[Tensor]) -> bool:
    """Whether something may have hooked the node that accumulates the gradient of one of these tensors.

    `DistributedDataParallel` does, and exchanges gradients when such a node has run. PyTorch replaces the node of a
    tensor that is given data of another dtype, and gradients would no longer be exchanged, without an error.

    Who hooks a node holds it. Hooks in Python are told from graphs by the Python object of the node; those of
    `DistributedDataParallel` have none, but need a process group.
    """
    held = leaves_held(tensors)
    if not held:
        return False
    if dist.is_available() and dist.is_initialized():
        return True
    # How many references to its Python object a node has that a graph alone holds depends on PyTorch's version.
    with torch.inference_mode(mode=False), torch.enable_grad():
        other = torch.zeros((), device="cpu", requires_grad=True)
        graph = other.view_as(other)
    usual = sys.getrefcount(_node_of(other))
    del graph
    return any(sys.getrefcount(_node_of(leaf)) > usual for leaf in held)


class PlainModel:
    """A module and its loss at any parameters, one batch at a time.

    Parameters
    ----------
    module : torch.nn.Module
        The user's own module. Outside the contexts of `held` it is unchanged, bit for bit.
    loss_fn : callable
        The user's own.
    selected : sequence of torch.nn.Parameter
        Those that values are given for.
    fixed : mapping of Tensor to Tensor
        All other parameters and buffers of the module, and the values that they are to have.
    double : bool
        Whether to compute in float64, whatever the module's dtype, unless `accumulators_may_have_hooks`.
    observers : bool
        Whether hooks that are not PyTorch's own are removed meanwhile.
    moved : collection of Tensor
        Those of `fixed` that the forward pass writes into; they are restored before each pass, as are attributes.
    holders : sequence of Holder
        What keeps tensors of a pass elsewhere than in the module; restored before each pass, and on exit.
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
        holders: Sequence[Holder],
        detaches: bool,
    ) -> None:
        self._moved, self._holders, self.detaches = list(moved), holders, detaches
        self.module, self.loss_fn = module, loss_fn
        self._selected, self._fixed, self._observers = list(selected), dict(fixed), observers
        everything = [*self._selected, *self._fixed]
        # Tensors that are in float64 keep their accumulators.
        narrow = [tensor for tensor in everything if tensor.dtype in (*SINGLE, torch.complex64)]
        self.double = double and not accumulators_may_have_hooks(narrow)
        # Whether graphs reach all selected parameters.
        self._reached = False
        self._dtype = dtype = selected[0].real.dtype if selected[0].is_complex() else selected[0].dtype
        if isinstance(loss_fn, nn.Module):
            known = {id(tensor) for tensor in [*self._selected, *self._fixed]}
            for tensor in [*loss_fn.parameters(), *loss_fn.buffers()]:
                if id(tensor) not in known:
                    # Class weights are converted to the dtype of the model.
                    value = tensor.detach()
                    self._fixed[tensor] = value.to(dtype) if value.is_floating_point() else value

    @contextmanager
    def held(self, values: Sequence[Tensor]) -> Iterator[Self]:
        """Set the module's parameters to leaves with these values within this context, and restore everything on exit.

        Restored are the identical tensors of parameters and buffers, their gradients and `requires_grad`, attributes of
        the module and its submodules, and the state of random number generators.
        """
        everything = [*self._selected, *self._fixed]
        before = [(tensor, tensor.data, tensor.requires_grad, tensor.grad) for tensor in everything if tensor.is_leaf]
        parts = [part for part in (self.module, self.loss_fn) if isinstance(part, nn.Module)]
        self._states = [ModuleState(part, self._holders) for part in parts]
        with ExitStack() as stack:
            stack.enter_context(preserved_randomness())
            stack.enter_context(neutral_modes())
            if self._observers:
                stack.enter_context(without_user_hooks(self.module))
            try:
                for tensor in everything:
                    tensor.grad = None
                for tensor in self._fixed:
                    self._put(tensor, self._fixed[tensor])
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
                    # In this order, as `requires_grad` cannot be set on tensors created in inference mode once they are
                    # restored.
                    tensor.requires_grad_(requires_grad)
                    tensor.data = data
                    tensor.grad = gradient

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute outputs of the module at its current parameters."""
        for state in self._states:
            state.restore()
        for tensor in self._moved:
            self._put(tensor, self._fixed[tensor])
        return self.module(*args, **kwargs)

    def padding(self) -> list[tuple[int, int]]:
        """Indices of embeddings among the selected parameters, and their padding rows."""
        places = {id(parameter): i for i, parameter in enumerate(self._selected)}
        return [
            (places[id(part.weight)], part.padding_idx)
            for part in self.module.modules()
            if isinstance(part, nn.Embedding | nn.EmbeddingBag)
            and part.padding_idx is not None
            and id(part.weight) in places
        ]

    def move(self, values: Iterable[Tensor]) -> None:
        """Give the selected parameters these values, within `held`."""
        for parameter, value in zip(self._selected, values, strict=True):
            self._put(parameter, value)

    def _put(self, tensor: Tensor, value: Tensor) -> None:
        """Give a parameter or buffer a copy of a value, as the forward pass may change it."""
        with torch._C.DisableTorchFunction():  # noqa: SLF001 - assignments are not arithmetic
            converted = self.converted(value.detach())
            tensor.data = converted.clone() if converted.data_ptr() == value.data_ptr() else converted

    def converted(self, structure: Any) -> Any:
        """Convert the tensors of a structure to float64 if requested."""
        if not self.double:
            return structure
        return map_tensors(_doubled, structure)

    @property
    def leaves(self) -> Sequence[nn.Parameter]:
        """The selected parameters, which are the leaves of all graphs within `held`."""
        return self._selected

    def _others(self, heads: Sequence[Tensor]) -> list[Tensor]:
        """Leaves of a graph that are not selected, unless it reaches all that are.

        PyTorch runs a backward pass only if it leads to a tensor that is asked for, and a parameter whose gradient is
        added in one may be none.
        """
        leaves: dict[int, Tensor] = {}
        seen: set[Any] = set()
        open_nodes: list[Any] = [head.grad_fn for head in heads]
        while open_nodes:
            node = open_nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if type(node).__name__ == "AccumulateGrad":
                leaves[id(node.variable)] = node.variable
            open_nodes += [following for following, _ in node.next_functions]
        self._reached = {id(leaf) for leaf in self._selected} <= leaves.keys()
        for leaf in self._selected:
            leaves.pop(id(leaf), None)
        return [] if self._reached else list(leaves.values())

    def gradients(self, heads: Sequence[Tensor], cotangents: Sequence[Tensor] | None = None) -> list[Tensor | None]:
        """Compute the derivatives of functions of the selected parameters, within `held`.

        A Function that runs a part of the model in its backward pass, as the activation checkpointing of several
        libraries does, calls `torch.autograd.backward` there. The gradients of the parameters of that part are then
        added to `Tensor.grad`, and `torch.autograd.grad` does not return them.

        Parameters
        ----------
        heads : sequence of Tensor
            Functions of the parameters; all require a gradient.
        cotangents : sequence of Tensor, optional
            Vectors u, of the shapes of the heads, for J^T u; not needed for scalars.

        Returns
        -------
        list of Tensor or None
            One for each selected parameter; None if the heads do not depend on it.
        """
        for leaf in self._selected:
            leaf.grad = None
        others = [] if self._reached else self._others(heads)
        every = torch.autograd.grad(heads, [*self._selected, *others], cotangents, allow_unused=True)
        found: list[Tensor | None] = list(every[: len(self._selected)])
        for place, leaf in enumerate(self._selected):
            if leaf.grad is not None:
                returned = found[place]
                found[place] = leaf.grad if returned is None else returned + leaf.grad
                leaf.grad = None
        return found


class _DefaultDtype:
    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __enter__(self) -> None:
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self._before)


class _Doubling(FunctionMode):
    """Within this context, PyTorch functions convert single-precision arguments to double precision.

    Random numbers are drawn in the precision of the user's model, as the same seed gives different ones in float64.

    Parameters
    ----------
    single : torch.dtype or None
        Dtype of random numbers for which none is given; None if the model itself is in float64.
    """

    def __init__(self, single: torch.dtype | None) -> None:
        super().__init__()
        self._single = single

    def call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Convert the arguments of a function, unless it accesses an attribute of a tensor."""
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__", "__delete__", "requires_grad_", "set_default_dtype"):
            return func(*args, **kwargs)
        if self._single is not None and (func in DRAWN or func in DRAWN_IN_PLACE or func in DROPPED):
            return self._drawn(func, args, kwargs)
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            func = Tensor.double
        if func is torch._grouped_mm:  # noqa: SLF001 - what grouped_mm of torch.nn.functional calls
            func = _grouped_mm
        # In-place functions must act on the original tensor.
        first = args[:1] if name.endswith("_") and not name.endswith("__") else ()
        return func(*first, *_mapped(tuple(args[len(first) :])), **_mapped(kwargs))

    def _drawn(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Draw random numbers as in single precision."""
        if func in DROPPED:
            # Entries that are not dropped are exact.
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
            # A dtype that is given is most likely that of a tensor, which would be single precision in the user's run.
            dtype = kwargs.get("dtype")
            kwargs["dtype"] = self._single if dtype in (None, torch.float64) else NARROW.get(dtype, dtype)
        return _mapped(func(*map(self._narrow, args), **{name: self._narrow(value) for name, value in kwargs.items()}))

    def _narrow(self, value: Any) -> Any:
        return value.to(self._single) if isinstance(value, Tensor) and value.dtype == torch.float64 else value


def _grouped_mm(
    a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """`torch.nn.functional.grouped_mm` in double precision, which PyTorch lacks, one product for each expert.

    Rows, or columns, beyond the last group are zero.
    """
    ends = [] if offs is None else offs.tolist()
    groups = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    if a.dim() == 3 and b.dim() == 3:
        found = torch.bmm(a, b)
    elif a.dim() == 2 and b.dim() == 2:
        found = torch.stack([a[:, group] @ b[group] for group in groups])
    elif a.dim() == 2:
        parts = [a[group] @ b[i] for i, group in enumerate(groups)]
        found = F.pad(torch.cat(parts), (0, 0, 0, len(a) - ends[-1]))
    else:
        parts = [a[i] @ b[:, group] for i, group in enumerate(groups)]
        found = F.pad(torch.cat(parts, dim=1), (0, b.shape[1] - ends[-1]))
    found = found if bias is None else found + bias
    return found if out_dtype is None else found.to(out_dtype)


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
