"""Dense networks, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Example, Family
from zoo.parts import CE, MSE, Forward, classes, mlp, vectors

dense = Family("dense")

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "GELU, tanh form": lambda: nn.GELU("tanh"),
    "SiLU and Mish": lambda: nn.Sequential(nn.SiLU(), nn.Mish()),
    "ELU, SELU and CELU": lambda: nn.Sequential(nn.ELU(), nn.SELU(), nn.CELU(0.7)),
    "Softplus, Softsign, LogSigmoid, Tanhshrink": lambda: nn.Sequential(
        nn.Softplus(2), nn.Softsign(), nn.LogSigmoid(), nn.Tanhshrink()
    ),
    "hard sigmoid, hard swish, hard tanh, ReLU6": lambda: nn.Sequential(
        nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(0.2, 0.9), nn.ReLU6()
    ),
    "soft and hard shrinkage, threshold": lambda: nn.Sequential(
        nn.Softshrink(0.05), nn.Hardshrink(0.1), nn.Threshold(0.0, 0.1)
    ),
    "PReLU": lambda: nn.PReLU(16),
}
for name, activation in ACTIVATIONS.items():
    dense.add(f"MLP, {name}", lambda activation=activation: Example(mlp(8, 3, 16, activation), CE, vectors(8, 3)))


@dense.case()
def digits_mlp() -> Example:
    """MLP 784-128-10 of 64 images."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    return Example(model, CE, [(torch.randn(n, 1, 28, 28), classes(10, n)) for n in (48, 16)])


@dense.case()
def wide() -> Example:
    """Wide MLP 784-1000-10."""
    model = nn.Sequential(nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 10))
    return Example(model, CE, vectors(784, 10, 48, 16))


@dense.case()
def deep() -> Example:
    """Deep residual MLP with RMSNorm, 24 blocks."""

    def forward(self: Any, x: Tensor) -> Tensor:
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x)

    blocks = nn.ModuleList(mlp(12, 12, 16, nn.GELU) for _ in range(24))
    norms = nn.ModuleList(nn.RMSNorm(12) for _ in range(24))
    return Example(Forward(forward, norms=norms, blocks=blocks, head=nn.Linear(12, 3)), CE, vectors(12, 3, 6, 3))


@dense.case()
def logistic() -> Example:
    """Logistic regression, 1,000 samples in 4 batches."""
    return Example(nn.Linear(30, 2), CE, vectors(30, 2, 300, 300, 300, 100))


@dense.case()
def linear_regression() -> Example:
    """Linear regression."""
    return Example(nn.Linear(6, 1), MSE, [(torch.randn(n, 6), torch.randn(n, 1)) for n in (20, 7)])


@dense.case()
def normalised() -> Example:
    """Layer norm, batch norm without affine, dropout in evaluation mode."""
    model = nn.Sequential(
        nn.Linear(8, 16),
        nn.LayerNorm(16),
        nn.Tanh(),
        nn.Linear(16, 16),
        nn.BatchNorm1d(16, affine=False),
        nn.SiLU(),
        nn.AlphaDropout(0.2),
        nn.Dropout(0.3),
        nn.Linear(16, 3),
    )
    return Example(model, CE, vectors(8, 3))


@dense.case()
def gated() -> Example:
    """GLU and SwiGLU blocks, highway layers."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.glu(self.a(x))
        gate = self.gate(x).sigmoid()
        x = gate * torch.tanh(self.b(x)) + (1 - gate) * x
        return self.head(F.silu(self.c(x)) * self.d(x))

    layers = {
        "a": nn.Linear(8, 16),
        "gate": nn.Linear(8, 8),
        "b": nn.Linear(8, 8),
        "c": nn.Linear(8, 12),
        "d": nn.Linear(8, 12),
        "head": nn.Linear(12, 3),
    }
    return Example(Forward(forward, **layers), CE, vectors(8, 3))


@dense.case()
def maxout() -> Example:
    """Maxout."""
    model = Forward(
        lambda self, x: self.b(self.a(x).view(len(x), 6, 4).amax(-1)), a=nn.Linear(8, 24), b=nn.Linear(6, 3)
    )
    return Example(model, CE, vectors(8, 3))


@dense.case()
def bilinear() -> Example:
    """nn.Bilinear and an einsum of three factors."""

    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x, y)) + torch.einsum("bi,bj,ijk->bk", x, y, self.core))

    model = Forward(forward, a=nn.Bilinear(5, 4, 6), b=nn.Linear(6, 3))
    model.core = nn.Parameter(torch.randn(5, 4, 6) / 5)
    return Example(model, CE, [((torch.randn(n, 5), torch.randn(n, 4)), classes(3, n)) for n in (8, 4)])


@dense.case()
def mixture_by_mask() -> Example:
    """Mixture of experts, top 2 by a mask."""

    def forward(self: Any, x: Tensor) -> Tensor:
        share = self.gate(x).softmax(1)
        top, index = share.topk(2, 1)
        weight = torch.zeros_like(share).scatter(1, index, top / top.sum(1, keepdim=True))
        return self.head(sum(weight[:, i, None] * expert(x) for i, expert in enumerate(self.experts)))

    experts = nn.ModuleList(mlp(8, 8) for _ in range(4))
    return Example(Forward(forward, gate=nn.Linear(8, 4), experts=experts, head=nn.Linear(8, 3)), CE, vectors(8, 3))


@dense.case()
def mixture_by_index() -> Example:
    """Mixture of experts, top 2 gathered by nonzero."""

    def forward(self: Any, x: Tensor) -> Tensor:
        top, index = self.gate(x).softmax(1).topk(2, 1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            row, column = (index == i).nonzero(as_tuple=True)
            if len(row):
                out = out.index_add(0, row, expert(x[row]) * top[row, column, None])
        return self.head(out)

    experts = nn.ModuleList(mlp(8, 8) for _ in range(4))
    return Example(Forward(forward, gate=nn.Linear(8, 4), experts=experts, head=nn.Linear(8, 3)), CE, vectors(8, 3))


@dense.case()
def branches_on_values() -> Example:
    """A branch on the inputs' values, another one in each batch."""
    model = Forward(lambda self, x: self.a(x) if x.mean() > 0 else self.b(x), a=mlp(8, 3), b=mlp(8, 3))
    return Example(model, CE, [(torch.randn(6, 8).abs(), classes(3, 6)), (-torch.randn(4, 8).abs(), classes(3, 4))])


@dense.case()
def equilibrium() -> Example:
    """Deep equilibrium: a fixed point iterated until it is one."""

    def forward(self: Any, x: Tensor) -> Tensor:
        z = x.new_zeros(len(x), 10)
        for _ in range(60):
            new = torch.tanh(self.w(z) + self.u(x))
            done = (new - z).norm() < 1e-3
            z = new
            if done:
                break
        return self.h(z)

    model = Forward(forward, w=nn.Linear(10, 10), u=nn.Linear(6, 10), h=nn.Linear(10, 3))
    with torch.no_grad():
        model.w.weight.mul_(0.5)
    return Example(model, CE, vectors(6, 3))


@dense.case()
def kan() -> Example:
    """Kolmogorov-Arnold network with radial basis functions."""

    class Layer(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(inputs, outputs, 6) * 0.3)
            self.base = nn.Linear(inputs, outputs)
            self.register_buffer("grid", torch.linspace(-2, 2, 6))

        def forward(self, x: Tensor) -> Tensor:
            basis = torch.exp(-((x[..., None] - self.grid) ** 2) / 0.5)
            return torch.einsum("nig,iog->no", basis, self.weight) + self.base(F.silu(x))

    return Example(nn.Sequential(Layer(6, 6), Layer(6, 3)), CE, vectors(6, 3))


@dense.case()
def fourier_features() -> Example:
    """Random Fourier features of coordinates."""

    def forward(self: Any, x: Tensor) -> Tensor:
        angle = x @ self.frequencies
        return self.f(torch.cat([angle.sin(), angle.cos()], 1))

    model = Forward(forward, f=mlp(16, 3))
    model.register_buffer("frequencies", 2 * torch.randn(2, 8))
    return Example(model, MSE, [(torch.rand(n, 2), torch.rand(n, 3)) for n in (20, 9)])


@dense.case()
def autoencoder() -> Example:
    """Autoencoder with tied weights."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(torch.sigmoid(self.f(x)), self.f.weight.T, self.bias)

    model = Forward(forward, f=nn.Linear(12, 5))
    model.bias = nn.Parameter(torch.zeros(12))
    data = [torch.randn(n, 12) for n in (10, 4)]
    return Example(model, MSE, [(x, x) for x in data])


@dense.case()
def deep_sets() -> Example:
    """Deep sets: sum, mean and maximum over elements."""

    def forward(self: Any, x: Tensor) -> Tensor:
        z = self.f(x)
        return self.g(torch.cat([z.sum(1), z.mean(1), z.amax(1)], 1))

    model = Forward(forward, f=mlp(3, 6, 12, nn.ReLU), g=mlp(18, 3))
    return Example(model, CE, [(torch.randn(n, size, 3), classes(3, n)) for n, size in ((5, 6), (3, 4))])


@dense.case()
def decision_tree() -> Example:
    """Soft decision tree of depth 3."""

    def forward(self: Any, x: Tensor) -> Tensor:
        right = self.splits(x).sigmoid()
        reach = x.new_ones(len(x), 1)
        for depth in range(3):
            nodes = right[:, 2**depth - 1 : 2 ** (depth + 1) - 1]
            reach = torch.stack([reach * (1 - nodes), reach * nodes], 2).flatten(1)
        return reach @ self.leaves

    model = Forward(forward, splits=nn.Linear(8, 7))
    model.leaves = nn.Parameter(torch.randn(8, 3))
    return Example(model, CE, vectors(8, 3))


@dense.case()
def mixer() -> Example:
    """MLP-Mixer on patches."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.embed(F.unfold(x, 4, stride=4).transpose(1, 2))
        x = x + self.across(self.a(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.along(self.b(x))).mean(1))

    parts = {
        "embed": nn.Linear(48, 12),
        "a": nn.LayerNorm(12),
        "b": nn.LayerNorm(12),
        "across": mlp(9, 9),
        "along": mlp(12, 12),
        "head": nn.Linear(12, 3),
    }
    return Example(Forward(forward, **parts), CE, [(torch.randn(n, 3, 12, 12), classes(3, n)) for n in (4, 2)])


@dense.case()
def capsules() -> Example:
    """Capsules with routing by agreement."""

    def squash(x: Tensor) -> Tensor:
        size = x.square().sum(-1, keepdim=True)
        return x * size / (1 + size) / (size + 1e-8).sqrt()

    def forward(self: Any, x: Tensor) -> Tensor:
        votes = torch.einsum("nik,ijkl->nijl", squash(self.f(x).view(len(x), 6, 4)), self.transform)
        logits = votes.new_zeros(votes.shape[:3])
        for _ in range(3):
            out = squash((logits.softmax(2)[..., None] * votes).sum(1))
            logits = logits + (votes * out[:, None]).sum(-1)
        return (out.square().sum(-1) + 1e-8).sqrt()

    model = Forward(forward, f=nn.Linear(8, 24))
    model.transform = nn.Parameter(torch.randn(6, 3, 4, 5) / 2)
    return Example(model, nn.MultiMarginLoss(margin=0.4), vectors(8, 3))
