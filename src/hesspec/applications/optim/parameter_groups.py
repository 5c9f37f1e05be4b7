"""Division of a model's parameters into those that Muon trains and the rest."""

from __future__ import annotations

from typing import Any

from torch import nn

from hesspec.operators.risk.parameters import ParameterSpec, select_parameters

__all__ = ["muon_groups"]

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def muon_groups(model: nn.Module, *, auxiliary: ParameterSpec = None) -> list[dict[str, Any]]:
    """Divide a model's parameters into a group for Muon and an auxiliary group.

    Muon trains matrices of hidden layers, including kernels of convolutions. The auxiliary group has all vectors and
    scalars, embeddings, and the output layer.

    Parameters
    ----------
    model : torch.nn.Module
        Model, whose parameters that require a gradient are divided.
    auxiliary : None, str, Module, Parameter, or an iterable of them
        Matrices of the auxiliary group besides embeddings: names, glob patterns, submodules or parameters. By default
        those of the output layer, which is taken to be the module with matrices that was registered last. An empty list
        gives all of them to Muon.

    Returns
    -------
    list of dict
        Two parameter groups, with `use_muon` True and False, and `params` as a list of (name, parameter). Add settings
        of a group to it, such as `lr`. There is only the first if no parameter is left for the second.

    Raises
    ------
    ValueError
        If no parameter is left for Muon, or for the reasons of `hesspec.Hessian` if `auxiliary` does not fit the model.

    Examples
    --------
    >>> import torch, hesspec
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> muon, rest = hesspec.optim.muon_groups(model)
    >>> [name for name, _ in muon["params"]], [name for name, _ in rest["params"]]
    (['0.weight'], ['0.bias', '2.weight', '2.bias'])
    """
    named = select_parameters(model)
    excluded = {id(p) for module in model.modules() if isinstance(module, EMBEDDINGS) for p in module.parameters()}
    if auxiliary is None:
        own = [list(module.parameters(recurse=False)) for module in model.modules()]
        with_matrices = [params for params in own if any(p.ndim >= 2 for p in params)]
        excluded |= {id(p) for p in with_matrices[-1]} if with_matrices else set()
    elif not isinstance(auxiliary, str | nn.Module | nn.Parameter):
        auxiliary = list(auxiliary)
    if auxiliary:
        excluded |= {id(p) for p in select_parameters(model, auxiliary).values()}
    groups: dict[bool, list[tuple[str, nn.Parameter]]] = {True: [], False: []}
    for name, parameter in named.items():
        groups[parameter.ndim >= 2 and id(parameter) not in excluded].append((name, parameter))
    if not groups[True]:
        raise ValueError(
            "No parameter is left for Muon: the model has no matrix besides those of embeddings and of the auxiliary "
            "group, to which the output layer belongs by default. auxiliary=[] gives it to Muon."
        )
    return [{"params": params, "use_muon": use} for use, params in groups.items() if params]
