"""Side effects: losses that change the model's outputs, caches outside of modules."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from zoo.case import Example, Family
from zoo.parts import CE, Forward, mlp, vectors

side_effects = Family("side effects")

Criterion = Callable[[Any, Tensor], Tensor]


def _temperature(o: Tensor, y: Tensor) -> Tensor:
    o /= 2.0
    return F.cross_entropy(o, y)


def _margin(o: Tensor, y: Tensor) -> Tensor:
    o[torch.arange(len(y)), y] -= 0.35
    return F.cross_entropy(8 * o, y)


def _masked(o: Tensor, y: Tensor) -> Tensor:
    o[:, 0] = -1e4
    return F.cross_entropy(o, y.clamp(min=1))


def _masked_copy(o: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(torch.cat([torch.full_like(o[:, :1], -1e4), o[:, 1:]], 1), y.clamp(min=1))


def _in_place(loss: Criterion, of_copies: Criterion) -> Callable[[], Example]:
    return lambda: Example(mlp(8, 5), loss, vectors(8, 5), criterion=lambda o, batch: of_copies(o, batch[1]))


side_effects.add(
    "Logits divided by a temperature in place", _in_place(_temperature, lambda o, y: F.cross_entropy(o / 2, y))
)
side_effects.add(
    "A margin subtracted from logits in place",
    _in_place(_margin, lambda o, y: F.cross_entropy(8 * (o - 0.35 * F.one_hot(y, 5).to(o)), y)),
)
side_effects.add("Logits of a class masked in place", _in_place(_masked, _masked_copy))
side_effects.add(
    "Outputs clamped in place",
    _in_place(
        lambda o, y: F.cross_entropy(o.clamp_(-0.3, 0.3), y), lambda o, y: F.cross_entropy(o.clamp(-0.3, 0.3), y)
    ),
)


@side_effects.case()
def popped() -> Example:
    """A loss that takes outputs out of their dictionary."""

    def loss(o: dict[str, Tensor], y: Tensor) -> Tensor:
        return F.cross_entropy(o.pop("logits"), y) + 0.1 * o.pop("z").square().mean()

    def forward(self: Any, x: Tensor) -> dict[str, Tensor]:
        z = self.body(x)
        return {"z": z, "logits": self.head(z)}

    model = Forward(forward, body=mlp(8, 6), head=nn.Linear(6, 3))
    return Example(model, loss, vectors(8, 3), criterion=lambda o, batch: loss(dict(o), batch[1]))


def _scaled(table: Callable[[int], Tensor], kept: Callable[[], list[Tensor]]) -> Example:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)) * table(x.shape[1])[:, None].to(x)).mean(1)

    def left() -> list[str]:
        odd = [tensor for tensor in kept() if isinstance(tensor, FakeTensor) or tensor.dtype != torch.float32]
        return [f"{len(odd)} tensors that are not the user's are kept"] if odd else []

    data = [(torch.randn(n, t, 8), torch.randint(3, (n,))) for n, t in ((4, 4), (3, 6))]
    return Example(Forward(forward, a=nn.Linear(8, 6), b=nn.Linear(6, 3)), CE, data, leaves_behind=left)


def _positions(length: int) -> Tensor:
    return torch.arange(1, length + 1) / length


@side_effects.case()
def global_dictionary() -> Example:
    """A table by length in a dictionary outside of the model."""
    tables: dict[int, Tensor] = {}

    def table(length: int) -> Tensor:
        if length not in tables:
            tables[length] = _positions(length)
        return tables[length]

    return _scaled(table, lambda: list(tables.values()))


@side_effects.case()
def remembered() -> Example:
    """A table by length in functools.lru_cache."""
    table = functools.lru_cache(_positions)
    return _scaled(table, lambda: [table(length) for length in (4, 6)])


@side_effects.case()
def by_identity() -> Example:
    """A function of a weight kept outside of the model by the weight's identity."""
    norms: dict[int, Tensor] = {}

    def forward(self: Any, x: Tensor) -> Tensor:
        weight = self.a.weight
        if not self.keeping:
            return self.b(torch.tanh(self.a(x)) * weight.square().sum())
        if id(weight) not in norms:
            norms[id(weight)] = weight.square().sum()
        return self.b(torch.tanh(self.a(x)) * norms[id(weight)])

    def without(module: Any) -> nn.Module:
        module.keeping = False
        return module

    model = Forward(forward, a=nn.Linear(8, 6), b=nn.Linear(6, 3), keeping=True)
    return Example(model, CE, vectors(8, 3), plain=without, leaves_behind=lambda: ["a norm is kept"] if norms else [])
