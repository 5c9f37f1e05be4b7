"""The user's module: unwrapping it, copying it, and leaving its state unchanged."""

from __future__ import annotations

import copy
import logging
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from hesspec.operators.model.kept import Holder

__all__ = [
    "ModuleState",
    "conversions_refused",
    "conversions_undone",
    "drop_user_hooks",
    "evaluation_mode",
    "holders",
    "private_copy",
    "reparametrised",
    "settings",
    "unwrapped",
    "user_hooks",
    "without_user_hooks",
]

logger = logging.getLogger(__name__)

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Modules that define hooks which are part of the computation (weight norm, spectral norm, pruning).
OF_TORCH = "torch.nn."
# Attributes that are not part of a module's state, or are recorded separately.
SEEN_ELSEWHERE = (nn.Module, Tensor, type, types.FunctionType, types.MethodType, types.ModuleType)
# Maximum depth of nested containers that are remembered; containers may hold themselves.
DEPTH = 3
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside wrappers that only change how it is run.

    These are `torch.compile`, `DataParallel`, `DistributedDataParallel`, and the engines of other libraries that keep
    the model as their only child, `module`.

    Raises
    ------
    ValueError
        If the module was compiled by TorchScript or has uninitialised parameters.
    """
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            # Attribute name that torch.compile uses.
            model = inner
        elif isinstance(model, DistributedDataParallel | nn.DataParallel) or (
            [name for name, _ in model.named_children()] == ["module"] and hasattr(type(model), "no_sync")
        ):
            model = cast("nn.Module", model.module)
        else:
            break
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"{name or 'The model'} is a TorchScript module, which cannot be evaluated at other parameters; pass "
                "the Python module that it was compiled from."
            )
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(value, UninitializedTensorMixin):
            raise ValueError(f"{name!r} is not initialised yet (a lazy module); call the model on one batch first.")
        if value.is_meta:
            raise ValueError(f"{name!r} is on the meta device and has no values; load the weights first.")
    return model


def holders(module: nn.Module) -> dict[int, list[tuple[dict[str, Any], str]]]:
    """Map the id of each parameter and buffer to the dictionaries and keys that hold it."""
    places: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for part in module.modules():
        for entries in (part._parameters, part._buffers):  # noqa: SLF001 - where modules keep them
            for name, value in entries.items():
                if value is not None:
                    places.setdefault(id(value), []).append((entries, name))
    return places


def private_copy(module: nn.Module, replaced: Mapping[Tensor, Tensor]) -> nn.Module | None:
    """Copy a module, so that later changes to it have no effect on the copy.

    Parameters
    ----------
    module : torch.nn.Module
    replaced : mapping of Tensor to Tensor
        Parameters and buffers of the module, with their replacements in the copy.

    Returns
    -------
    torch.nn.Module or None
        The copy; None if the module cannot be copied.
    """
    memo: dict[int, Any] = {}
    for old, new in replaced.items():
        memo[id(old)] = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
    # Attributes such as the weight of an old-style weight norm have a graph, and tensors with a graph cannot be copied.
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        copied = copy.deepcopy(module, memo)
    except Exception as error:  # noqa: BLE001 - a module's own copying may raise anything
        logger.info("the model cannot be copied and is used in place: %s: %s", type(error).__name__, error)
        return None
    # Models that cache functions of their weights in evaluation mode drop the cache when they enter training mode.
    modes = [part.training for part in copied.modules()]
    copied.train()
    for part, training in zip(copied.modules(), modes, strict=True):
        part.training = training
    return copied


@contextmanager
def reparametrised(places: Iterable[tuple[list[tuple[dict[str, Any], str]], Any]]) -> Iterator[None]:
    """Replace parameters or buffers of a module (see `holders`) by tensors within this context.

    `torch.func.functional_call` does this for a single call.
    """
    places = list(places)
    before = [[entries[name] for entries, name in where] for where, _ in places]
    try:
        for where, value in places:
            for entries, name in where:
                entries[name] = value
        yield
    finally:
        for (where, _), values in zip(places, before, strict=True):
            for (entries, name), value in zip(where, values, strict=True):
                entries[name] = value


@contextmanager
def conversions_undone() -> Iterator[None]:
    """Undo, on exit, conversions of any module by `to()`, `double()` and the like within this context.

    A loss may move its teacher to the device and dtype of the data, which may differ from the user's here.
    """
    before: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    values: dict[int, tuple[Tensor, Tensor]] = {}
    convert: Callable[..., nn.Module] = nn.Module._apply  # noqa: SLF001 - all of them call it

    def converted(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        for part in self.modules():
            for entries in (part._parameters, part._buffers):  # noqa: SLF001 - where modules keep them
                before.setdefault(id(entries), (entries, dict(entries)))
                for value in entries.values():
                    if value is not None:
                        values.setdefault(id(value), (value, value.data))
        return convert(self, *args, **kwargs)

    try:
        with mock.patch.object(nn.Module, "_apply", converted):
            yield
    finally:
        with torch._C.DisableTorchFunction():  # noqa: SLF001 - assignments are not arithmetic
            for entries, saved in before.values():
                entries.update(saved)
            for value, data in values.values():
                value.data = data


@contextmanager
def conversions_refused() -> Iterator[None]:
    """Make `to()`, `double()` and the like raise RuntimeError within this context, where tensors have no data.

    The module would be left with such tensors otherwise.
    """

    def refused(self: nn.Module, *_: Any, **__: Any) -> nn.Module:
        raise RuntimeError(f"{type(self).__name__} is moved or converted in the forward pass or the loss")

    with mock.patch.object(nn.Module, "_apply", refused):
        yield


class ModuleState:
    """Snapshot of the attributes of all submodules, which can be restored.

    Containers and other objects are remembered with their content: caches are attributes, or entries of a dictionary or
    list that is one, and models may write into their configuration. Containers are remembered with the containers in
    them, down to `DEPTH`; tensors by identity, parameters and buffers as well.

    Parameters
    ----------
    module : torch.nn.Module
    holders : sequence of Holder, optional
        What else keeps tensors of a pass, and is restored.
    """

    def __init__(self, module: nn.Module, holders: Sequence[Holder] = ()) -> None:
        self._holders = holders
        self._saved = [(part, {name: _Kept(value) for name, value in vars(part).items()}) for part in module.modules()]

    def changed(self) -> list[tuple[nn.Module, str]]:
        """Return submodules and the names of their attributes that have changed."""
        found = []
        for part, saved in self._saved:
            now = vars(part)
            names = [name for name, kept in saved.items() if name not in now or not kept.is_still(now[name])]
            found += [(part, name) for name in [*names, *(name for name in now if name not in saved)]]
        return found

    def restore(self) -> None:
        """Restore all attributes, and what else keeps tensors."""
        for holder in self._holders:
            holder.restore()
        for part, name in self.changed():
            saved = next(saved for other, saved in self._saved if other is part)
            if name not in saved:
                del vars(part)[name]
                continue
            vars(part)[name] = saved[name].restored()


class _Kept:
    """A value and, for a container or another object that can change, its content."""

    def __init__(self, value: Any, depth: int = DEPTH) -> None:
        self._value = value
        self._content: Any = None
        self._within: list[_Kept] = []
        if isinstance(value, dict | list | set):
            # Not `copy.copy`, which takes twenty times as long for an ordered dictionary, of which a module has ten.
            kind = next(kind for kind in (dict, list, set) if isinstance(value, kind))
            self._content = kind(value)
            entries: Iterable[Any] = value.values() if isinstance(value, dict) else value
        elif hasattr(value, "__dict__") and not isinstance(value, SEEN_ELSEWHERE):
            self._content = dict(vars(value))
            entries = self._content.values()
        else:
            return
        if depth:
            self._within = [_Kept(entry, depth - 1) for entry in entries if isinstance(entry, dict | list | set)]

    def is_still(self, now: Any) -> bool:
        """Whether a value is this one, unchanged."""
        value, content = self._value, self._content
        if now is not value:
            return type(now) is type(value) and isinstance(value, PLAIN) and now == value
        if content is None:
            return True
        held = value if isinstance(value, dict | list | set) else vars(value)
        if len(held) != len(content):
            return False
        if not content:
            return True
        if isinstance(held, dict):
            equal = all(key in content and entry is content[key] for key, entry in held.items())
        elif isinstance(held, list):
            equal = all(entry is other for entry, other in zip(held, content, strict=True))
        else:
            equal = bool(held == content)
        return equal and all(kept.is_still(kept._value) for kept in self._within)  # noqa: SLF001 - of this class

    def restored(self) -> Any:
        """Return the value with its remembered content restored."""
        value, content = self._value, self._content
        if isinstance(value, list):
            value[:] = content
        elif content is not None:
            held = value if isinstance(value, dict | set) else vars(value)
            held.clear()
            held.update(content)
        for kept in self._within:
            kept.restored()
        return value


def user_hooks(module: nn.Module) -> list[tuple[Any, int]]:
    """Return hooks of a module and its submodules that are not PyTorch's own, as pairs of dictionary and key."""
    return [(hooks, key) for part in module.modules() for hooks, key, hook in _hooks(part) if _of_user(hook)]


@contextmanager
def without_user_hooks(module: nn.Module) -> Iterator[None]:
    """Remove hooks that are not PyTorch's own within this context."""
    removed = [(hooks, OrderedDict(hooks)) for hooks, _ in user_hooks(module)]
    drop_user_hooks(module)
    try:
        yield
    finally:
        for hooks, before in removed:
            hooks.clear()
            hooks.update(before)


def drop_user_hooks(module: nn.Module) -> None:
    """Remove hooks that are not PyTorch's own from a module and its submodules."""
    for hooks, key in user_hooks(module):
        del hooks[key]


def _hooks(part: nn.Module) -> Iterator[tuple[Any, int, Callable[..., Any]]]:
    for kind in HOOKS:
        hooks = vars(part).get(kind) or {}
        for key, hook in hooks.items():
            yield hooks, key, hook


def _of_user(hook: Callable[..., Any]) -> bool:
    owner = getattr(hook, "__self__", hook)
    return not (
        str(getattr(hook, "__module__", "")).startswith(OF_TORCH) or type(owner).__module__.startswith(OF_TORCH)
    )


def settings(module: nn.Module) -> list[str]:
    """Describe a module apart from its weights: classes, modes, attributes and hooks, one line per submodule."""
    lines = []
    for name, part in module.named_modules():
        kept = {
            key: value if isinstance(value, PLAIN) else getattr(value, "__qualname__", None)
            for key, value in vars(part).items()
            if isinstance(value, PLAIN) or hasattr(value, "__qualname__")
        }
        hooks = [getattr(hook, "__qualname__", type(hook).__qualname__) for _, _, hook in _hooks(part)]
        lines.append(f"{name} {type(part).__module__}.{type(part).__qualname__} {sorted(kept.items())!r} {hooks!r}")
    return lines


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch all modules to evaluation mode, and back to their modes on exit."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
