"""The parameters that a curvature matrix is taken with respect to, and the flat vectors that belong to them."""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hesspec.backend.suggest import unknown

__all__ = ["ParameterSelection", "ParameterSpec", "select_parameters"]

ParameterSpec = str | nn.Module | nn.Parameter | Iterable["str | nn.Module | nn.Parameter"] | None


class ParameterSelection:
    """Selected parameters of a model, in the order of `model.named_parameters()`, at the values that they have now.

    Parameters
    ----------
    model : torch.nn.Module
    params : None, str, Module, Parameter, or an iterable of them
        Names, glob patterns ("features.*.weight"), submodules or parameters of the model. By default every parameter
        that requires a gradient. Tied parameters are one, by whichever of their names they are selected.

    Attributes
    ----------
    names : tuple of str
    parameters : tuple of torch.nn.Parameter
        The model's own.
    values : tuple of Tensor
        Copies of their values. A complex parameter is a pair of reals: its value here has the shape (..., 2) of
        `torch.view_as_real`.
    shapes, sizes, count
        Of these values, and the number of entries of all.
    dtype, device

    Raises
    ------
    ValueError
        If a name or pattern matches nothing, a module or parameter is none of the model's, nothing is selected, or the
        selected parameters differ in dtype or device or are not float32 or float64.
    """

    def __init__(self, model: nn.Module, params: ParameterSpec = None) -> None:
        selected = select_parameters(model, params)
        self.names = tuple(selected)
        # A copy: the operator is the curvature at this point, whatever a training loop does to the model afterwards.
        self.parameters = tuple(selected.values())
        self._complex = tuple(value.is_complex() for value in self.parameters)
        self.values = tuple(
            torch.view_as_real(value.detach().resolve_conj()).clone() if value.is_complex() else value.detach().clone()
            for value in self.parameters
        )
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

    def natural(self, values: Iterable[Tensor]) -> list[Tensor]:
        """Tensors shaped as `values` in the form that the model has: those of complex parameters are complex."""
        return [
            torch.view_as_complex(value) if pair else value for value, pair in zip(values, self._complex, strict=True)
        ]

    def real(self, values: Iterable[Tensor]) -> list[Tensor]:
        """Return the inverse of `natural`."""
        return [torch.view_as_real(value) if pair else value for value, pair in zip(values, self._complex, strict=True)]

    def entries_of(self, names: Iterable[str]) -> Tensor:
        """Entries of flat vectors of parameters by their names or patterns; see `CurvatureOperator.entries_of`."""
        chosen: set[str] = set()
        for pattern in names:
            found = fnmatch.filter(self.names, pattern)
            if not found:
                raise ValueError(unknown("parameter", pattern, self.names))
            chosen.update(found)
        places = zip(self.names, self.split(torch.arange(self.count)), strict=True)
        return torch.cat([place.reshape(-1) for name, place in places if name in chosen])

    def to_named(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a flat vector (p,), shaped and named as the parameters are.

        Raises
        ------
        ValueError
            If the vector has another shape.
        """
        if vector.shape != (self.count,):
            raise ValueError(f"A flat vector of these parameters has shape ({self.count},), not {tuple(vector.shape)}.")
        return dict(zip(self.names, self.split(vector), strict=True))

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Views of a flat vector (p,), shaped as the parameters are."""
        return tuple(
            part.view(shape) for part, shape in zip(torch.split(vector, list(self.sizes)), self.shapes, strict=True)
        )

    def to_flat(self, named: Mapping[str, Tensor]) -> Tensor:
        """Flat vector (p,) of tensors that are named and shaped as the parameters are.

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


def select_parameters(model: nn.Module, params: ParameterSpec = None) -> dict[str, nn.Parameter]:
    """Selected parameters of a model by their names, in the order of `model.named_parameters()`.

    Arguments and errors are those of `ParameterSelection`.
    """
    everything = dict(model.named_parameters())
    chosen = _choose(everything, dict(model.named_parameters(remove_duplicate=False)), params)
    if not chosen:
        raise ValueError(
            "No parameter is selected: the model has none that requires a gradient. Name them with params=[...], "
            "or call requires_grad_() on those that are meant."
        )
    return {name: value for name, value in everything.items() if name in chosen}


def _choose(
    everything: Mapping[str, nn.Parameter], aliases: Mapping[str, nn.Parameter], params: ParameterSpec
) -> set[str]:
    """Names among `everything` that a selection means; `aliases` has all names of tied parameters."""
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
                    f"A {type(item).__name__} in params has parameters that the model does not have, or none."
                )
        else:
            raise ValueError(
                f"params holds a {type(item).__name__}; it takes names, glob patterns, submodules and parameters."
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
