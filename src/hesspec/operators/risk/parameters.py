"""Selection of the parameters of a curvature matrix, and conversion to flat vectors."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors

from hesspec.backend.suggest import unknown
from hesspec.backend.text import kind_of

__all__ = ["ParameterSelection", "ParameterSpec", "select_parameters"]

MOST_NAMES = 8  # of selected parameters that a result states; others are counted
ParameterSpec = str | nn.Module | nn.Parameter | Iterable["str | nn.Module | nn.Parameter"] | None


class ParameterSelection:
    """Selected parameters of a model, in the order of `model.named_parameters()`, at their current values.

    Parameters
    ----------
    model : torch.nn.Module
    params : None, str, Module, Parameter, or an iterable of them
        Names, glob patterns ("features.*.weight"), submodules or parameters of the model. By default every parameter
        that requires a gradient. Tied parameters count once and can be selected by any of their names.

    Attributes
    ----------
    names : tuple of str
    words : str
        The names and patterns that were given, or else the first names; empty for the default.
    parameters : tuple of torch.nn.Parameter
        The model's own parameters.
    values : tuple of Tensor
        Copies of their values. Complex parameters are stored as pairs of reals, with the shape (..., 2) of
        `torch.view_as_real`.
    shapes, sizes, count
        Of these values, and the number of entries of all.
    dtype, device

    Raises
    ------
    ValueError
        If a name or pattern matches nothing, a module or parameter does not belong to the model, nothing is selected,
        or the selected parameters differ in dtype or device or are not float32 or float64.
    """

    def __init__(self, model: nn.Module, params: ParameterSpec = None) -> None:
        if params is not None:
            params = [params] if isinstance(params, str | nn.Module | nn.Parameter) else _listed(params)
        selected = select_parameters(model, params)
        self.names = tuple(selected)
        self.words = _words(params, self.names)
        self.parameters = tuple(selected.values())
        self._complex = tuple(value.is_complex() for value in self.parameters)
        self.values = self.current()
        self.shapes = tuple(value.shape for value in self.values)
        self.sizes = tuple(value.numel() for value in self.values)
        self.count = sum(self.sizes)
        self.dtype: torch.dtype = _common(
            "dtype", dict(zip(self.names, (value.dtype for value in self.values), strict=True))
        )
        self.device: torch.device = _common("device", {name: value.device for name, value in selected.items()})
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"The selected parameters are {self.dtype}; curvature is measured in float32 or float64. "
                "Convert the model with model.float() or model.double()."
            )

    def current(self) -> tuple[Tensor, ...]:
        """Copy the present values of the user's parameters; operators are at one point even if training continues."""
        return tuple(
            torch.view_as_real(value.detach().resolve_conj()).clone() if value.is_complex() else value.detach().clone()
            for value in self.parameters
        )

    def natural(self, values: Iterable[Tensor]) -> list[Tensor]:
        """Convert tensors shaped as `values` to the model's form, in which complex parameters are complex."""
        return [
            torch.view_as_complex(value) if pair else value for value, pair in zip(values, self._complex, strict=True)
        ]

    def real(self, values: Iterable[Tensor]) -> list[Tensor]:
        """Apply the inverse of `natural`."""
        return [torch.view_as_real(value) if pair else value for value, pair in zip(values, self._complex, strict=True)]

    def entries_of(self, names: Iterable[str]) -> Tensor:
        """Return the indices of parameters in flat vectors; see `CurvatureOperator.entries_of`."""
        chosen: set[str] = set()
        for pattern in names:
            found = fnmatch.filter(self.names, pattern)
            if not found:
                raise ValueError(unknown("parameter", pattern, self.names))
            chosen.update(found)
        places = zip(self.names, self.split(torch.arange(self.count, device="cpu")), strict=True)
        return torch.cat([place.reshape(-1) for name, place in places if name in chosen])

    def to_named(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a flat vector (p,) with the shapes and names of the parameters.

        Raises
        ------
        ValueError
            If the vector has a different shape.
        """
        if vector.shape != (self.count,):
            raise ValueError(f"A flat vector of these parameters has shape ({self.count},), not {tuple(vector.shape)}.")
        return dict(zip(self.names, self.split(vector), strict=True))

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Return views of a contiguous flat vector (p,) with the shapes of the parameters."""
        # In one call: with `torch.split` it took a twentieth of a product with a small network.
        return tuple(_unflatten_dense_tensors(vector, self.values))  # type: ignore[no-untyped-call]

    def to_flat(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return the flat vector (p,) of tensors with the names and shapes of the parameters.

        Raises
        ------
        ValueError
            If a name is missing or unknown, or a shape differs.
        """
        for name in named:
            if name not in self.names:
                raise ValueError(unknown("selected parameter", name, self.names))
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in named:
                raise ValueError(f"The tensor of parameter {name!r} is missing.")
            if named[name].shape != shape:
                raise ValueError(f"Parameter {name!r} has shape {tuple(shape)}, not {tuple(named[name].shape)}.")
        return torch.cat([named[name].reshape(-1) for name in self.names])


def _words(params: list[str | nn.Module | nn.Parameter] | None, names: Sequence[str]) -> str:
    """Return the names and patterns of a selection, or else the names of what is selected; empty for the default."""
    if params is None:
        return ""
    given = [item for item in params if isinstance(item, str)]
    if len(given) == len(params):
        return " ".join(given)
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return " ".join(names[:MOST_NAMES]) + more


def select_parameters(model: nn.Module, params: ParameterSpec = None) -> dict[str, nn.Parameter]:
    """Return the selected parameters of a model by name, in the order of `model.named_parameters()`.

    See `ParameterSelection` for arguments and errors.
    """
    everything = dict(model.named_parameters())
    chosen = _choose(everything, dict(model.named_parameters(remove_duplicate=False)), params)
    if not chosen:
        raise ValueError(f"No parameter is selected: {_why_none(everything, params)}")
    return {name: value for name, value in everything.items() if name in chosen}


def _listed(params: Any) -> list[Any]:
    if not isinstance(params, Iterable):
        raise ValueError(
            f"params is {params!r}; it accepts names, glob patterns, submodules and parameters, or a list of them."
        )
    return list(params)


def _why_none(everything: Mapping[str, nn.Parameter], params: ParameterSpec) -> str:
    if params is not None:
        return "params is empty. Without params, all parameters that require a gradient are selected."
    if not everything:
        return "the model has none (weights of quantised layers are not parameters)."
    return (
        "the model has none that requires a gradient. Select some with params=[...], or call requires_grad_() on them."
    )


def _choose(
    everything: Mapping[str, nn.Parameter], aliases: Mapping[str, nn.Parameter], params: ParameterSpec
) -> set[str]:
    """Resolve a selection to names in `everything`; `aliases` has all names of tied parameters."""
    if params is None:
        return {name for name, parameter in everything.items() if parameter.requires_grad}
    chosen: set[str] = set()
    for item in [params] if isinstance(params, str | nn.Module | nn.Parameter) else params:
        if isinstance(item, str):
            meant = {id(aliases[name]) for name in fnmatch.filter(aliases, item)}
            matches = {name for name, parameter in everything.items() if id(parameter) in meant}
            if not matches:
                raise ValueError(unknown("parameter or pattern", item, aliases))
        elif isinstance(item, nn.Module | nn.Parameter):
            wanted = set(map(id, item.parameters() if isinstance(item, nn.Module) else [item]))
            matches = {name for name, parameter in everything.items() if id(parameter) in wanted}
            if len(matches) != len(wanted) or not wanted:
                raise ValueError(
                    f"{kind_of(item, first=True)} in params has no parameters, or parameters that are not the model's."
                )
        else:
            raise ValueError(
                f"params contains {kind_of(item)}; it accepts names, glob patterns, submodules and parameters."
            )
        chosen |= matches
    return chosen


def _common(what: str, values: Mapping[str, Any]) -> Any:
    first, *_ = values
    for name, value in values.items():
        if value != values[first]:
            raise ValueError(
                f"The selected parameters differ in {what}: {first!r} has {values[first]}, {name!r} has {value}. "
                f"Bring the model to one {what}, or select parameters of one with params=[...]."
            )
    return values[first]
