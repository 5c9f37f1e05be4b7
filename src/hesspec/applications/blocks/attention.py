"""Attention modules of a model: which entries of their parameters are queries, keys, values and outputs, by head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

__all__ = ["FORMS", "Attention", "Piece", "attentions"]

FORMS: Final = (
    "nn.MultiheadAttention; a fused projection c_attn or qkv with c_proj or proj (GPT-2, timm); q_proj, k_proj, v_proj "
    "with o_proj or out_proj (Llama, ViT); query, key, value with output.dense (BERT); q_lin, k_lin, v_lin with out_lin"
)
# Names of fused projections of queries, keys and values, and of the output that belongs to each.
FUSED: Final = (("c_attn", "c_proj"), ("qkv", "proj"))
# Names of separate projections, and possible names of the output, of which the last may be a path next to the module.
SEPARATE: Final = (
    (("q_proj", "k_proj", "v_proj"), ("o_proj", "out_proj")),
    (("query", "key", "value"), ("../output.dense", "dense", "out")),
    (("q_lin", "k_lin", "v_lin"), ("out_lin",)),
)
# Attributes, of a module or of its configuration, that hold the numbers of heads.
HEADS: Final = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead")
KEY_VALUE_HEADS: Final = ("num_key_value_heads", "num_kv_heads")


@dataclass(frozen=True)
class Piece:
    """Consecutive entries of a parameter along one axis that belong to a projection, and are divided among heads.

    Parameters
    ----------
    name : str
        Name of the parameter.
    axis : int
        Axis of heads; negative if the parameter belongs to no head in particular, as the bias of an output.
    begin, end : int
        Range along this axis.
    """

    name: str
    axis: int
    begin: int
    end: int

    def entries(self, shape: torch.Size, head: int | None = None, heads: int = 1) -> Tensor | None:
        """Flat indices within the parameter, of all heads or of one of them; None if it is the whole parameter."""
        begin, end = self.begin, self.end
        if head is not None:
            size = (end - begin) // heads
            begin, end = begin + head * size, begin + (head + 1) * size
        if self.axis < 0 or (begin, end) == (0, shape[self.axis]):
            return None
        return torch.arange(shape.numel()).view(shape).narrow(self.axis, begin, end - begin).reshape(-1)


@dataclass(frozen=True)
class Attention:
    """Projections of an attention module.

    Parameters
    ----------
    path : str
        Name of the module in its model.
    heads, key_value_heads : int
        Numbers of heads of queries and outputs, and of keys and values; 0 if they are not known.
    projections : mapping of str to tuple of Piece
        Pieces of "q", "k", "v" and "o".
    """

    path: str
    heads: int
    key_value_heads: int
    projections: Mapping[str, tuple[Piece, ...]]

    def check_heads(self) -> None:
        """Raise ValueError unless the number of heads is known and divides the projections."""
        if not self.heads:
            raise ValueError(
                f"The number of heads of the attention {self.path!r} is unknown: neither it nor its configuration has "
                f"one of {', '.join(HEADS)}. Set one of them on the module, such as model.{self.path}.num_heads = 8, "
                'or use blocks="projection".'
            )
        for letter, pieces in self.projections.items():
            heads = self.heads if letter in "qo" else self.key_value_heads
            for piece in pieces:
                if piece.axis >= 0 and (piece.end - piece.begin) % heads:
                    raise ValueError(
                        f"The {piece.end - piece.begin} entries of {piece.name!r} along axis {piece.axis} are not a "
                        f"multiple of the {heads} heads that {self.path!r} states."
                    )


def attentions(model: nn.Module) -> list[Attention]:
    """Return the attention modules of a model in one of the known `FORMS`, in order."""
    found = []
    for path, module in model.named_modules():
        projections = _projections(model, path, module)
        if projections is not None:
            heads = _number(module, HEADS)
            found.append(Attention(path, heads, _key_value_heads(module, heads, projections), projections))
    return found


def _projections(model: nn.Module, path: str, module: nn.Module) -> dict[str, tuple[Piece, ...]] | None:
    if isinstance(module, nn.MultiheadAttention):
        return _multihead(path, module)
    children = dict(module.named_children())
    for name, output in FUSED:
        if name in children and output in children and getattr(children[name], "weight", None) is not None:
            return _fused(f"{path}.{name}" if path else name, children, name, output, path)
    for names, outputs in SEPARATE:
        if all(isinstance(getattr(children.get(name), "weight", None), Tensor) for name in names):
            pieces = {
                letter: _outputs(f"{path}.{name}".lstrip("."), children[name])
                for letter, name in zip("qkv", names, strict=True)
            }
            return {**pieces, "o": _output(model, path, outputs)}
    return None


def _multihead(path: str, module: nn.MultiheadAttention) -> dict[str, tuple[Piece, ...]]:
    prefix, width = f"{path}." if path else "", module.embed_dim
    found: dict[str, list[Piece]] = {"q": [], "k": [], "v": []}
    for place, letter in enumerate("qkv"):
        # None where queries, keys and values differ in width.
        if getattr(module, "in_proj_weight", None) is not None:
            found[letter].append(Piece(f"{prefix}in_proj_weight", 0, place * width, (place + 1) * width))
        else:
            found[letter].append(Piece(f"{prefix}{letter}_proj_weight", 0, 0, width))
        if getattr(module, "in_proj_bias", None) is not None:
            found[letter].append(Piece(f"{prefix}in_proj_bias", 0, place * width, (place + 1) * width))
        extra = f"bias_{letter}"
        if getattr(module, extra, None) is not None:
            found[letter].append(Piece(f"{prefix}{extra}", 2, 0, width))
    output = _inputs(f"{prefix}out_proj", module.out_proj)
    return {**{letter: tuple(pieces) for letter, pieces in found.items()}, "o": output}


def _fused(
    name: str, children: Mapping[str, nn.Module], fused: str, output: str, path: str
) -> dict[str, tuple[Piece, ...]]:
    """Projections of a matrix whose outputs are queries, keys and values; with q_attn next to it, keys and values."""
    (whole, *_), letters, found = _outputs(name, children[fused]), "qkv", {}
    if "q_attn" in children:
        letters, found = "kv", {"q": _outputs(f"{path}.q_attn".lstrip("."), children["q_attn"])}
    width = whole.end // len(letters)
    for place, letter in enumerate(letters):
        found[letter] = tuple(
            Piece(piece.name, piece.axis, place * width, (place + 1) * width)
            for piece in _outputs(name, children[fused])
        )
    return {**found, "o": _inputs(f"{path}.{output}".lstrip("."), children[output])}


def _transposed(module: nn.Module) -> bool:
    """Whether the rows of the weight are inputs, as in the Conv1D of transformers."""
    return type(module).__name__ == "Conv1D"


def _outputs(name: str, module: nn.Module) -> tuple[Piece, ...]:
    """Weight and bias of a projection to heads."""
    weight: Any = module.weight
    axis = 1 if _transposed(module) else 0
    size = int(weight.shape[axis])
    bias = () if getattr(module, "bias", None) is None else (Piece(f"{name}.bias", 0, 0, size),)
    return (Piece(f"{name}.weight", axis, 0, size), *bias)


def _inputs(name: str, module: nn.Module) -> tuple[Piece, ...]:
    """Weight of a projection from heads, and its bias, which belongs to all of them."""
    weight: Any = module.weight
    axis = 0 if _transposed(module) else 1
    bias = () if getattr(module, "bias", None) is None else (Piece(f"{name}.bias", -1, 0, 0),)
    return (Piece(f"{name}.weight", axis, 0, int(weight.shape[axis])), *bias)


def _output(model: nn.Module, path: str, outputs: tuple[str, ...]) -> tuple[Piece, ...]:
    for output in outputs:
        beside = output.startswith("../")
        at = path.rpartition(".")[0] if beside else path
        name = f"{at}.{output.removeprefix('../')}".lstrip(".")
        try:
            module = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(getattr(module, "weight", None), Tensor):
            return _inputs(name, module)
    return ()


def _number(module: nn.Module, names: tuple[str, ...]) -> int:
    for owner in (module, getattr(module, "config", None)):
        for name in names:
            value = getattr(owner, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return 0


def _key_value_heads(module: nn.Module, heads: int, projections: Mapping[str, tuple[Piece, ...]]) -> int:
    """Number of heads of keys and values, which several heads of queries may share."""
    stated = _number(module, KEY_VALUE_HEADS)
    queries, keys = projections["q"][0], projections["k"][0]
    if heads and stated and (queries.end - queries.begin) // heads * stated == keys.end - keys.begin:
        return stated
    if heads and (keys.end - keys.begin) != (queries.end - queries.begin):
        return heads * (keys.end - keys.begin) // (queries.end - queries.begin)
    return heads
