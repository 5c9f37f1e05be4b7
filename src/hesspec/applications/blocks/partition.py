"""Blocks of parameters by name: parameters, modules, layers, projections and heads of attention, and mappings."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from hesspec.applications.blocks.attention import FORMS, Attention, attentions
from hesspec.backend.suggest import unknown
from hesspec.backend.text import kind_of

__all__ = ["KINDS", "REST", "Blocks", "Spec", "blocks_of", "rest_of"]

# Entries of each parameter of a block, flat indices within it in ascending order; None for all of it.
Blocks = dict[str, dict[str, Tensor | None]]
Shapes = Mapping[str, torch.Size]
Spec = str | Sequence[str] | Mapping[str, Any]

REST: Final = "rest"
EMBEDDING: Final = "embedding"


def blocks_of(spec: Spec, model: nn.Module, shapes: Shapes) -> Blocks:
    """Resolve a specification of blocks.

    Parameters
    ----------
    spec : str, sequence of str, or mapping
        See `hesspec.by_block`.
    model : torch.nn.Module
    shapes : mapping of str to torch.Size
        Shapes of the selected parameters, tied ones once, in the order of flat vectors.

    Raises
    ------
    ValueError
        If a block does not exist, is empty, or overlaps with another one.
    """
    if isinstance(spec, str):
        if spec not in KINDS:
            raise ValueError(
                f"{unknown('kind of blocks', spec, KINDS)} To choose blocks by name, pass a list of names."
            )
        found = KINDS[spec](model, shapes)
    elif isinstance(spec, Mapping):
        found = {str(name): _given(str(name), part, model, shapes) for name, part in spec.items()}
    else:
        names = list(spec)
        if bad := [name for name in names if not isinstance(name, str)]:
            raise ValueError(f"blocks contains {kind_of(bad[0])}; use names, or a mapping of names to entries.")
        known = _named(model, shapes)
        found = {name: _known(name, known) for name in names}
    if not found:
        raise ValueError("blocks is empty; name at least one block.")
    _check_disjoint(found, shapes)
    return found


def rest_of(blocks: Blocks, shapes: Shapes) -> dict[str, Tensor | None]:
    """Entries that are in none of the blocks; empty if there are none."""
    rest: dict[str, Tensor | None] = {}
    for name, shape in shapes.items():
        taken = [part[name] for part in blocks.values() if name in part]
        if not taken:
            rest[name] = None
            continue
        free = torch.ones(shape.numel(), dtype=torch.bool)
        for entries in taken:
            free[slice(None) if entries is None else entries] = False
        if free.any():
            rest[name] = free.nonzero().reshape(-1)
    return rest


def _check_disjoint(blocks: Blocks, shapes: Shapes) -> None:
    owners: dict[str, list[tuple[str, Tensor | None]]] = {}
    for block, parts in blocks.items():
        for name, entries in parts.items():
            owners.setdefault(name, []).append((block, entries))
    for name, pairs in owners.items():
        if len(pairs) == 1:
            continue
        owner = torch.full((shapes[name].numel(),), -1)
        for number, (block, entries) in enumerate(pairs):
            inside: Any = slice(None) if entries is None else entries
            taken = owner[inside]
            if (shared := taken >= 0).any():
                raise ValueError(
                    f"The blocks {pairs[int(taken[shared][0])][0]!r} and {block!r} overlap in {int(shared.sum()):,} "
                    f"entries of {name!r}; blocks must be disjoint. Measure overlapping ones in separate calls."
                )
            owner[inside] = number


# Kinds ----------------------------------------------------------------------------------------------------------------


def _by_parameter(model: nn.Module, shapes: Shapes) -> Blocks:  # noqa: ARG001 - as all kinds
    return {name: {name: None} for name in shapes}


def _by_module(model: nn.Module, shapes: Shapes) -> Blocks:  # noqa: ARG001 - as all kinds
    found: Blocks = {}
    for name in shapes:
        found.setdefault(_owner(name) or "model", {})[name] = None
    return found


def _by_layer(model: nn.Module, shapes: Shapes) -> Blocks:
    return _grouped(model, shapes, lambda layer, _: layer)


def _grouped(model: nn.Module, shapes: Shapes, of_layer: Callable[[str, str], str], *, joined: bool = True) -> Blocks:
    """Group parameters by layer, given the block of a layer and a path in it; the others by embedding and module.

    If `joined`, a module whose parameters are vectors (normalisation) belongs to that with a weight matrix before it.
    """
    layers, found = _layers(model), Blocks()
    before, paths = "", [_owner(name) for name in shapes]
    matrices = {path for path, shape in zip(paths, shapes.values(), strict=True) if len(shape) > 1}
    previous, current = "", ""
    for path, name in zip(paths, shapes, strict=True):
        if path != current:
            previous, current = before, path
        layer = next((label for prefix, label in layers if path.startswith(f"{prefix}.") or path == prefix), None)
        if layer is not None:
            prefix = next(prefix for prefix, label in layers if label == layer)
            block = of_layer(layer, path[len(prefix) + 1 :])
            before = ""
        elif _embeds(model, path, name):
            block, before = EMBEDDING, ""
        elif joined and path not in matrices and previous:
            block, before = previous, previous
        else:
            block = before = path or "model"
        found.setdefault(block, {})[name] = None
    return found


def _by_projection(model: nn.Module, shapes: Shapes) -> Blocks:
    found, taken = Blocks(), set()
    for name, attention in _named_attentions(model):
        for letter, pieces in attention.projections.items():
            inside = {piece.name: piece.entries(shapes[piece.name]) for piece in pieces if piece.name in shapes}
            taken |= set(inside)
            if inside:
                found[f"{name}, {letter}"] = inside
    others = {name: shape for name, shape in shapes.items() if name not in taken}
    modules = _grouped(model, others, lambda layer, path: f"{layer}, {path}" if path else layer, joined=False)
    return _in_order({**found, **modules}, shapes)


def _by_head(model: nn.Module, shapes: Shapes) -> Blocks:
    found = Blocks()
    for name, attention in _named_attentions(model):
        attention.check_heads()
        heads, shared = attention.heads, attention.key_value_heads
        grouped = shared != heads
        for head in range(heads):
            block = _of_head(attention, shapes, "qo" if grouped else "qkvo", head, heads)
            if block:
                found[f"{name}, head {head}"] = block
        for head in range(shared if grouped else 0):
            block = _of_head(attention, shapes, "kv", head, shared)
            if block:
                found[f"{name}, key-value head {head}"] = block
    if not found:
        raise ValueError("None of the selected parameters belongs to a head of an attention module.")
    return found


KINDS: Final[Mapping[str, Callable[[nn.Module, Shapes], Blocks]]] = {
    "parameter": _by_parameter,
    "module": _by_module,
    "layer": _by_layer,
    "projection": _by_projection,
    "head": _by_head,
}


def _of_head(attention: Attention, shapes: Shapes, letters: str, head: int, heads: int) -> dict[str, Tensor | None]:
    found: dict[str, Tensor | None] = {}
    for letter in letters:
        for piece in attention.projections[letter]:
            if piece.name not in shapes or piece.axis < 0:
                continue
            entries = piece.entries(shapes[piece.name], head, heads)
            before = found.get(piece.name)
            # Queries, keys and values of a fused projection are in one parameter.
            found[piece.name] = (
                entries if before is None or entries is None else torch.cat([before, entries]).sort().values
            )
    return found


def _named_attentions(model: nn.Module) -> list[tuple[str, Attention]]:
    """Attention modules with the names of their layers, made distinct by their path where a layer has several."""
    found = attentions(model)
    if not found:
        raise ValueError(
            f"The model, {kind_of(model)}, has no attention module of a known form ({FORMS}). Pass a mapping "
            'of names to entries of parameters, or blocks="layer".'
        )
    layers = _layers(model)
    labels = []
    for attention in found:
        prefix, label = next(
            ((prefix, label) for prefix, label in layers if attention.path.startswith(f"{prefix}.")), ("", "")
        )
        labels.append((label, attention.path[len(prefix) :].lstrip(".")))
    several = {label for label, _ in labels if [other for other, _ in labels].count(label) > 1 or not label}
    names = [f"{label}, {tail}".strip(", ") if label in several else label for label, tail in labels]
    return [(name or "attention", attention) for name, attention in zip(names, found, strict=True)]


def _layers(model: nn.Module) -> list[tuple[str, str]]:
    """Paths and names of the layers: children, of one class and with parts of their own, of a list or a sequence."""
    found: list[tuple[str, list[str]]] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        inside = any(path.startswith(f"{stack}.") or path == stack for stack, _ in found)
        children = list(module)
        alike = len(set(map(type, children))) == 1 and all(
            next(child.children(), None) is not None and next(child.parameters(), None) is not None
            for child in children
        )
        if alike and not inside:
            found.append((path, [f"{path}.{number}".lstrip(".") for number in range(len(children))]))
    if len(found) == 1:
        return [(path, f"layer {number}") for number, path in enumerate(found[0][1])]
    return [(path, path) for _, paths in found for path in paths]


def _embeds(model: nn.Module, path: str, name: str) -> bool:
    owner = model.get_submodule(path)
    words = f"{path}.{name}".lower().split(".")
    return isinstance(owner, nn.Embedding) or any(word.startswith(("embed", "pos_embed")) for word in words)


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _in_order(blocks: Blocks, shapes: Shapes) -> Blocks:
    """Blocks in the order of their first entries in flat vectors."""
    place = {name: number for number, name in enumerate(shapes)}

    def first(block: str) -> tuple[int, int]:
        name = min(blocks[block], key=place.__getitem__)
        entries = blocks[block][name]
        return place[name], 0 if entries is None else int(entries[0])

    return {block: blocks[block] for block in sorted(blocks, key=first)}


# Names and mappings ---------------------------------------------------------------------------------------------------


def _named(model: nn.Module, shapes: Shapes) -> Blocks:
    """Blocks of every kind by name."""
    found = Blocks()
    for kind, divide in reversed(list(KINDS.items())):
        if kind in ("projection", "head") and not attentions(model):
            continue
        if kind == "head" and not all(attention.heads for attention in attentions(model)):
            continue
        found |= divide(model, shapes)
    return found


def _known(name: str, known: Blocks) -> dict[str, Tensor | None]:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        say = f"did you mean {' or '.join(map(repr, near))}" if near else f"the first are {list(known)[:8]}"
        raise ValueError(f"There is no block {name!r}; {say}. Kinds of blocks are {', '.join(map(repr, KINDS))}.")
    return known[name]


def _given(block: str, part: Any, model: nn.Module, shapes: Shapes) -> dict[str, Tensor | None]:
    """One block of a mapping: names or patterns of parameters, names of standard blocks, or entries by parameter."""
    if isinstance(part, Mapping):
        found = {}
        for name, index in part.items():
            if name not in shapes:
                raise ValueError(f"In block {block!r}: {unknown('selected parameter', str(name), shapes)}")
            found[name] = _entries(block, name, index, shapes[name])
        if not found:
            raise ValueError(f"The block {block!r} is empty.")
        return {name: found[name] for name in shapes if name in found}
    texts = [part] if isinstance(part, str) else list(part) if isinstance(part, Iterable) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"The block {block!r} is given by {part!r}; use names or patterns of parameters, or a mapping of names of "
            "parameters to slices."
        )
    found, known = {}, None
    for text in texts:
        matching: dict[str, Tensor | None] = dict.fromkeys(fnmatch.filter(shapes, text))
        if not matching:
            known = known or _named(model, shapes)
            matching = _known(text, known)
        for name, entries in matching.items():
            before = found.get(name)
            if name in found and (before is None or entries is None):
                found[name] = None
            else:
                found[name] = entries if before is None else _union(before, entries)
    return {name: found[name] for name in shapes if name in found}


def _union(one: Tensor, other: Tensor | None) -> Tensor | None:
    return None if other is None else torch.from_numpy(np.union1d(one.numpy(), other.numpy()))


def _entries(block: str, name: str, index: Any, shape: torch.Size) -> Tensor | None:
    places = np.arange(shape.numel()).reshape(shape)
    if index is None or index is Ellipsis:
        return None
    try:
        chosen = np.asarray(places[index.cpu().numpy() if isinstance(index, Tensor) else index]).reshape(-1)
    except IndexError as error:
        raise ValueError(
            f"In block {block!r}: {name!r} has shape {tuple(shape)}, and {index!r} is outside ({error})."
        ) from None
    if not chosen.size:
        raise ValueError(f"The block {block!r} selects no entries of {name!r}, whose shape is {tuple(shape)}.")
    distinct = np.unique(chosen)
    if distinct.size < chosen.size:
        raise ValueError(f"The block {block!r} selects an entry of {name!r} more than once.")
    return None if distinct.size == shape.numel() else torch.from_numpy(distinct)
