"""Models with state, and the state of the process around them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hesspec
from zoo.case import Example, Family
from zoo.parts import CE, Forward, classes, mlp, vectors

state = Family("state")


@state.case()
def cached_table() -> Example:
    """A table cached on the module by its first forward pass."""

    def forward(self: Any, words: Tensor) -> Tensor:
        x = self.embed(words)
        if self.table is None or len(self.table) < words.shape[1]:
            position = torch.arange(words.shape[1], dtype=x.dtype)[:, None]
            self.table = torch.sin(position * torch.arange(1, 9, dtype=x.dtype) / 8)
        return self.head(torch.tanh(x + self.table[: words.shape[1]]).mean(1))

    model = Forward(forward, embed=nn.Embedding(20, 8), head=nn.Linear(8, 3), table=None)
    return Example(model, CE, [(classes(20, n, t), classes(3, n)) for n, t in ((4, 4), (3, 6))])


@state.case()
def cached_parameter_product() -> Example:
    """A product of parameters cached in evaluation mode by the first forward pass."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if self.training or self.kept is None:
            self.kept = self.table[:, self.index]
        return self.head(torch.tanh(self.f(x) + self.kept.sum(1)))

    model = Forward(forward, f=nn.Linear(8, 4), head=nn.Linear(4, 3), kept=None)
    model.table = nn.Parameter(torch.randn(4, 5))
    model.index = torch.tensor([0, 2, 2, 4])
    return Example(model, CE, vectors(8, 3), plain=lambda module: module.train())


@state.case()
def table_in_dictionary() -> Example:
    """Masks cached in a dictionary by length."""

    def forward(self: Any, x: Tensor) -> Tensor:
        length = x.shape[1]
        if length not in self.masks:
            self.masks[length] = torch.full((length, length), float("-inf")).triu(1)
        q, k, v = self.f(x).chunk(3, -1)
        return self.head(((q @ k.transpose(1, 2) + self.masks[length].to(x)).softmax(-1) @ v).mean(1))

    model = Forward(forward, f=nn.Linear(6, 18), head=nn.Linear(6, 3), masks={})
    return Example(model, CE, [(torch.randn(n, t, 6), classes(3, n)) for n, t in ((4, 4), (3, 6))])


@state.case()
def in_place_inputs() -> Example:
    """A forward pass that normalises a copy of its inputs in place."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = x.clone()
        x.sub_(x.mean(1, keepdim=True)).div_(x.std(1, keepdim=True))
        y = self.a(x)
        y.mul_(2).add_(1)
        return self.b(F.relu_(y))

    return Example(Forward(forward, a=nn.Linear(8, 12), b=nn.Linear(12, 3)), CE, vectors(8, 3))


@state.case()
def in_place_data() -> Example:
    """A forward pass that changes its inputs themselves."""
    model = Forward(lambda self, x: self.f(x.mul_(0.9)), f=mlp(8, 3))
    # The loss is that of the data as it was given.
    return Example(model, CE, vectors(8, 3), outputs=lambda m, b: m(b[0].clone()))


@state.case()
def static_buffer() -> Example:
    """A result written into a buffer in place, slice by slice."""

    def forward(self: Any, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), 3, 6)
        for i in range(3):
            out[:, i] = torch.tanh(self.f(x) * (i + 1))
        return self.h(out.flatten(1))

    return Example(Forward(forward, f=nn.Linear(8, 6), h=nn.Linear(18, 3)), CE, vectors(8, 3))


@state.case(sentence="the forward pass changes what it computes, so there is no one loss")
def counting() -> Example:
    """A forward pass that counts its calls and scales by the parity."""

    def forward(self: Any, x: Tensor) -> Tensor:
        self.calls += 1
        return self.f(x) * (1 + 0.5 * (self.calls % 2))

    return Example(Forward(forward, f=mlp(8, 3), calls=0), CE, vectors(8, 3))


@state.case()
def batch_statistics() -> Example:
    """Batch norm in training mode, one full batch."""
    model = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 3))
    return Example(model, CE, vectors(8, 3, 16), {"batch_statistics": True}, train=True)


@state.case()
def norm_without_running_statistics() -> Example:
    """Batch norm without running statistics, in evaluation mode, one full batch."""
    model = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12, track_running_stats=False), nn.Tanh(), nn.Linear(12, 3))
    return Example(model, CE, vectors(8, 3, 16), {"batch_statistics": True})


@state.case(sentence="dropout is active")
def active_dropout() -> Example:
    """Dropout in training mode."""
    return Example(nn.Sequential(mlp(8, 8), nn.Dropout(0.5), nn.Linear(8, 3)), CE, vectors(8, 3), train=True)


@state.case(sentence="the forward pass draws new random numbers each time")
def noise() -> Example:
    """Noise drawn in forward from the global generator."""
    return Example(Forward(lambda self, x: self.f(x + torch.randn_like(x)), f=mlp(8, 3)), CE, vectors(8, 3))


@state.case()
def own_generator() -> Example:
    """Noise drawn in forward with a generator and seed of the model's own."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.f(x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x))

    return Example(Forward(forward, f=mlp(8, 3)), CE, vectors(8, 3))


@state.case()
def seeded_forward() -> Example:
    """Noise drawn in forward after torch.manual_seed."""

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return self.f(x + 0.1 * torch.randn_like(x))

    return Example(Forward(forward, f=mlp(8, 3)), CE, vectors(8, 3))


@state.case()
def rrelu() -> Example:
    """RReLU in evaluation mode."""
    return Example(mlp(8, 3, activation=nn.RReLU), CE, vectors(8, 3))


@state.case()
def recording_hook() -> Example:
    """A user's forward hook that records activations."""
    model, kept = mlp(8, 3), []
    model[1].register_forward_hook(lambda _, __, output: kept.append(output.detach()))

    def fakes() -> list[str]:
        strange = [type(tensor).__name__ for tensor in kept if type(tensor) is not Tensor]
        return [f"the hook's list holds a {name}" for name in strange[:1]]

    return Example(model, CE, vectors(8, 3), leaves_behind=fakes)


@state.case()
def changing_hook() -> Example:
    """A forward hook that changes the output of a layer."""
    model = mlp(8, 3)
    model[0].register_forward_hook(lambda _, __, output: 2 * output)
    return Example(model, CE, vectors(8, 3))


@state.case()
def inference_mode_around() -> Example:
    """hesspec called under inference_mode."""
    return Example(mlp(8, 3), CE, vectors(8, 3), surroundings=torch.inference_mode)


@state.case()
def no_grad_around() -> Example:
    """hesspec called under no_grad."""
    return Example(mlp(8, 3), CE, vectors(8, 3), surroundings=torch.no_grad)


@state.case()
def inference_inputs() -> Example:
    """Inputs that were made under inference_mode."""
    with torch.inference_mode():
        data = vectors(8, 3)
    copies = [(x.clone(), y.clone()) for x, y in data]
    return Example(mlp(8, 3), CE, data, batches=copies)


@state.case()
def gradients_at_hand() -> Example:
    """Parameters that hold gradients of a training step."""
    model, data = mlp(8, 3), vectors(8, 3)
    CE(model(data[0][0]), data[0][1]).backward()
    return Example(model, CE, data)


@state.case()
def closure_of_anything() -> Example:
    """hesspec.closure on batches of any structure."""
    data = [{"x": torch.randn(n, 8), "y": classes(3, n), "id": f"batch {n}"} for n in (8, 4)]
    return Example(
        mlp(8, 3),
        hesspec.closure(lambda model, b: F.cross_entropy(model(b["x"]), b["y"])),
        data,
        outputs=lambda model, b: model(b["x"]),
        criterion=lambda o, b: F.cross_entropy(o, b["y"]),
        weight=lambda b: len(b["y"]),
    )
