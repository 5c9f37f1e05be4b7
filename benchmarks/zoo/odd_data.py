"""Batches of every structure."""

from __future__ import annotations

from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from zoo.case import Example, Family
from zoo.parts import CE, MSE, Forward, classes, mlp, vectors

data = Family("data")

LARGE = 40  # batches so large that PyTorch prints their corners alone


def _alike() -> tuple[Tensor, Tensor]:
    """Two tensors of equal corners, so that what PyTorch prints of them is the same."""
    first, second = torch.randn(LARGE, LARGE), torch.randn(LARGE, LARGE)
    for margin in (slice(None, 4), slice(-4, None)):
        second[margin] = first[margin]
        second[:, margin] = first[:, margin]
    return first, second


def _both(wrap: Any, read: Any) -> Example:
    """Two batches whose inputs are wrapped."""
    model = Forward(lambda self, x: self.f(read(x)), f=mlp(LARGE, 3))
    batches = [(x, classes(3, LARGE)) for x in _alike()]
    given = [(wrap(x), y) for x, y in batches]
    return Example(model, CE, given, batches=batches, outputs=lambda module, batch: module.f(batch[0]))


@dataclass
class _Sample:
    x: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class _Frozen:
    x: Tensor


class _Box:
    def __init__(self, x: Tensor) -> None:
        self.x = x


class _Shown(_Box):
    def __repr__(self) -> str:
        return f"Shown(x={list(self.x.shape)})"


class _Slotted:
    __slots__ = ("x",)

    def __init__(self, x: Tensor) -> None:
        self.x = x


_Named = namedtuple("_Named", ["x", "scale"])

data.add("inputs a UserDict (as BatchEncoding is)", lambda: _keyword(UserDict))
data.add("inputs a dict of keywords", lambda: _keyword(dict))
data.add("inputs a dataclass", lambda: _both(lambda x: _Sample(x, 1.0), lambda s: s.x * s.scale))
data.add("inputs a frozen dataclass", lambda: _both(_Frozen, lambda s: s.x))
data.add("inputs a named tuple in a tuple", lambda: _both(lambda x: (_Named(x, 1.0),), lambda s: s.x * s.scale))
data.add("inputs an object", lambda: _both(_Box, lambda s: s.x))
data.add("inputs an object in a tuple", lambda: _both(lambda x: (_Box(x),), lambda s: s.x))
data.add("inputs an object whose repr shows shapes", lambda: _both(_Shown, lambda s: s.x))
data.add("inputs an object with slots", lambda: _both(_Slotted, lambda s: s.x))
data.add(
    "inputs NumPy arrays, turned into tensors by the model", lambda: _both(lambda x: (x.numpy(),), torch.as_tensor)
)
data.add("inputs nested lists of tensors in a tuple", lambda: _both(lambda x: ([x, [x]],), lambda s: s[1][0]))


def _keyword(kind: Any) -> Example:
    model = Forward(lambda self, x, shift: self.f(x + shift), f=mlp(LARGE, 3))
    batches = [(x, classes(3, LARGE)) for x in _alike()]
    given = [(kind({"x": x, "shift": torch.full((1,), 0.1)}), y) for x, y in batches]
    return Example(model, CE, given)


@data.case()
def numpy_batches() -> Example:
    """NumPy arrays as inputs and targets."""
    batches = vectors(8, 3)
    return Example(mlp(8, 3), CE, [(x.numpy(), y.numpy()) for x, y in batches], batches=batches)


@data.case()
def double_inputs() -> Example:
    """Inputs and targets in float64, the model in float32."""
    batches = [(torch.randn(n, 8).double(), torch.randn(n, 2).double()) for n in (8, 4)]
    rounded = [(x.float(), y.float()) for x, y in batches]
    return Example(mlp(8, 2), MSE, batches, batches=rounded)


@data.case()
def bytes_of_images() -> Example:
    """Images of uint8 that the model scales."""
    model = Forward(
        lambda self, x: self.f(x.to(self.f[1].weight.dtype) / 255), f=nn.Sequential(nn.Flatten(), *mlp(75, 3))
    )
    return Example(model, CE, [(torch.randint(256, (n, 3, 5, 5), dtype=torch.uint8), classes(3, n)) for n in (6, 3)])


@data.case()
def three_in_targets() -> Example:
    """Labels and sample weights as a tuple of targets."""
    loss = lambda o, t: (F.cross_entropy(o, t[0], reduction="none") * t[1]).mean()
    return Example(mlp(8, 3), loss, [(torch.randn(n, 8), (classes(3, n), torch.rand(n))) for n in (8, 4)])


@data.case()
def dictionary_targets() -> Example:
    """Two tasks: outputs and targets in dictionaries, learned weights of the losses."""

    def forward(self: Any, x: Tensor) -> dict[str, Tensor]:
        z = torch.tanh(self.f(x))
        return {"class": self.a(z), "value": self.b(z)[:, 0], "scale": self.scale}

    def loss(o: dict[str, Tensor], y: dict[str, Tensor]) -> Tensor:
        parts = torch.stack([F.cross_entropy(o["class"], y["class"]), F.mse_loss(o["value"], y["value"])])
        return (parts * torch.exp(-o["scale"]) + o["scale"]).sum()

    model = Forward(forward, f=nn.Linear(8, 12), a=nn.Linear(12, 3), b=nn.Linear(12, 1))
    model.scale = nn.Parameter(torch.tensor([0.1, -0.2]))
    return Example(
        model, loss, [(torch.randn(n, 8), {"class": classes(3, n), "value": torch.randn(n)}) for n in (8, 4)]
    )


@data.case()
def no_targets() -> Example:
    """Targets None: an autoencoder that returns inputs and reconstruction."""
    model = Forward(lambda self, x: (x, self.f(x)), f=mlp(8, 8))
    batches = [(torch.randn(n, 8), None) for n in (8, 4)]
    return Example(model, lambda o, _: F.mse_loss(o[1], o[0]), batches)


@data.case()
def labelled_dictionaries() -> Example:
    """Batches that are dictionaries with labels, as transformers' loaders give them."""
    model = Forward(lambda self, x, **_: {"logits": self.f(x)}, f=mlp(8, 3))
    batches = [{"x": torch.randn(n, 8), "labels": classes(3, n)} for n in (8, 4)]
    return Example(
        model,
        lambda o, y: F.cross_entropy(o["logits"], y),
        batches,
        batches=[(batch["x"], batch["labels"]) for batch in batches],
        outputs=lambda module, batch: module.f(batch[0]),
        criterion=lambda o, batch: F.cross_entropy(o, batch[1]),
    )


@data.case()
def loader() -> Example:
    """A DataLoader with a short last batch."""
    torch.manual_seed(1)
    return Example(mlp(8, 3), CE, DataLoader(TensorDataset(torch.randn(11, 8), classes(3, 11)), batch_size=4))


@data.case(sentence="the loader shuffles, so every pass is of other batches")
def shuffled() -> Example:
    """A DataLoader that shuffles."""
    return Example(
        mlp(8, 3), CE, DataLoader(TensorDataset(torch.randn(11, 8), classes(3, 11)), batch_size=4, shuffle=True)
    )


@data.case(sentence="a Dataset gives samples, not batches")
def dataset() -> Example:
    """A TensorDataset instead of a DataLoader."""
    return Example(mlp(8, 3), CE, TensorDataset(torch.randn(11, 8), classes(3, 11)))


@data.case(sentence="a generator can be passed through once only")
def generator() -> Example:
    """A generator of batches."""
    return Example(mlp(8, 3), CE, (batch for batch in vectors(8, 3)), batches=[])


@data.case(sentence="there is no data")
def empty() -> Example:
    """No batch at all."""
    return Example(mlp(8, 3), CE, [])


@data.case(sentence="three items are not a pair")
def three_items() -> Example:
    """Batches of three items."""
    return Example(mlp(8, 3), CE, [(torch.randn(4, 8), torch.rand(4), classes(3, 4))])


@data.case()
def lists_of_boxes() -> Example:
    """Targets a list of dictionaries with other numbers of boxes (detection)."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )

    def loss(o: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        return torch.stack([(o[i] - t["boxes"]).square().mean() for i, t in enumerate(targets)]).mean()

    def targets(*counts: int) -> list[dict[str, Tensor]]:
        return [{"boxes": torch.rand(count, 4), "labels": classes(3, count)} for count in counts]

    batches = [(torch.randn(3, 3, 9, 9), targets(3, 1, 2)), (torch.randn(2, 3, 9, 9), targets(1, 4))]
    return Example(model, loss, batches, weight=lambda batch: len(batch[0]))


@data.case()
def sparse_adjacency() -> Example:
    """A sparse COO matrix among the inputs."""
    model = Forward(
        lambda self, x, a: self.b(torch.sparse.mm(a, torch.tanh(self.a(torch.sparse.mm(a, x))))),
        a=nn.Linear(6, 10),
        b=nn.Linear(10, 3),
    )
    adjacency = lambda n: (torch.rand(n, n) > 0.7).float().to_sparse()
    return Example(model, CE, [((torch.randn(n, 6), adjacency(n)), classes(3, n)) for n in (12, 7)])


@data.case()
def sparse_rows() -> Example:
    """A sparse CSR matrix as the input of a dense layer."""
    model = Forward(lambda self, x: self.h(torch.tanh(x @ self.w + self.b)), h=nn.Linear(10, 3))
    model.w, model.b = nn.Parameter(torch.randn(20, 10) / 4), nn.Parameter(torch.zeros(10))
    rows = lambda n: (torch.rand(n, 20) > 0.8).float().to_sparse_csr()
    return Example(model, CE, [(rows(n), classes(3, n)) for n in (8, 4)])


@data.case()
def jagged() -> Example:
    """A jagged nested tensor as the input."""
    model = Forward(
        lambda self, x: self.h(torch.nested.to_padded_tensor(self.f(x), 0.0).sum(1)), f=nn.Linear(6, 8), h=mlp(8, 3)
    )
    ragged = lambda *lengths: torch.nested.nested_tensor([torch.randn(t, 6) for t in lengths], layout=torch.jagged)
    return Example(model, CE, [(ragged(3, 5, 2), classes(3, 3)), (ragged(4, 1), classes(3, 2))])


@data.case()
def images_of_other_sizes() -> Example:
    """Images of another size in each batch."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    return Example(model, CE, [(torch.randn(n, 3, side, side), classes(3, n)) for n, side in ((3, 8), (2, 11), (1, 9))])


@data.case()
def one_sample() -> Example:
    """Batches of one sample."""
    return Example(mlp(8, 3), CE, vectors(8, 3, 1, 1, 1))


@data.case()
def flags() -> Example:
    """A Python flag among the inputs that chooses a branch."""
    model = Forward(lambda self, x, second: (self.b if second else self.a)(x), a=mlp(8, 3), b=mlp(8, 3))
    return Example(
        model, CE, [({"x": torch.randn(n, 8), "second": flag}, classes(3, n)) for n, flag in ((6, False), (6, True))]
    )


@data.case()
def numbers_among_inputs() -> Example:
    """A Python number among the inputs, another in each batch."""
    model = Forward(lambda self, x, t: self.f(torch.cat([x, x.new_full((len(x), 1), t)], 1)), f=mlp(9, 3))
    return Example(model, CE, [((torch.randn(6, 8), t), classes(3, 6)) for t in (0.1, 0.7)])


@data.case()
def text() -> Example:
    """Strings among the inputs, encoded in forward."""

    def forward(self: Any, words: list[str]) -> Tensor:
        codes = torch.tensor([[ord(letter) % 30 for letter in f"{word:<6}"[:6]] for word in words])
        return self.h(torch.tanh(self.embed(codes)).mean(1))

    model = Forward(forward, embed=nn.Embedding(30, 6), h=nn.Linear(6, 3))
    batches = [((["tree", "house", "river"],), classes(3, 3)), ((["stone", "bird"],), classes(3, 2))]
    return Example(model, CE, batches)


@data.case(sentence="a loss of the second batch is not finite")
def not_finite() -> Example:
    """A batch with NaN among its inputs."""
    batches = vectors(8, 3)
    batches[1][0][0, 0] = float("nan")
    return Example(mlp(8, 3), CE, batches)


@data.case()
def structured_arrays() -> Example:
    """NumPy float64 arrays in a dictionary of keywords."""
    generator = np.random.default_rng(0)
    batches = [(generator.normal(size=(n, 8)).astype("float32"), classes(3, n)) for n in (8, 4)]
    model = Forward(lambda self, x: self.f(torch.as_tensor(x)), f=mlp(8, 3))
    given = [({"x": x.astype("float64")}, y) for x, y in batches]
    return Example(model, CE, given, batches=[(torch.from_numpy(x), y) for x, y in batches])


@data.case(unsplit="the loss differentiates the outputs by the inputs, and is not a function of them alone")
def inputs_with_gradient() -> Example:
    """Inputs that require a gradient, by which the loss differentiates the outputs."""
    model = Forward(lambda self, x: (self.f(x), x), f=mlp(2, 1))

    def loss(o: Any, y: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(o[0].sum(), o[1], create_graph=True)
        return ((slope[:, 0] - y) ** 2).mean()

    def slopes(module: Any, batch: Any) -> Tensor:
        x = batch[0]
        return torch.autograd.grad(module.f(x).sum(), x, create_graph=True)[0]

    batches = [(torch.rand(n, 2, requires_grad=True), torch.zeros(n)) for n in (8, 4)]
    return Example(model, loss, batches, outputs=slopes, criterion=lambda o, batch: ((o[:, 0] - batch[1]) ** 2).mean())
