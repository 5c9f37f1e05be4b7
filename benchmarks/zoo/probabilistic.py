"""Probabilistic models, structured outputs, layers that solve something."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Example, Family
from zoo.parts import MSE, Forward, classes, mlp

probabilistic = Family("probabilistic and structured")


@probabilistic.case()
def gaussian_process() -> Example:
    """Gaussian process: marginal likelihood by Cholesky."""

    def forward(self: Any, x: Tensor) -> Tensor:
        z = x / self.length.exp()
        square = (z[:, None] - z[None]).square().sum(-1)
        return self.scale.exp() * torch.exp(-0.5 * square) + (self.noise.exp() + 1e-2) * torch.eye(len(x)).to(x)

    def loss(k: Tensor, y: Tensor) -> Tensor:
        root = torch.linalg.cholesky(k)
        solved = torch.cholesky_solve(y[:, None], root)[:, 0]
        return (0.5 * y @ solved + root.diagonal().log().sum()) / len(y)

    model = Forward(forward)
    model.length, model.scale, model.noise = (
        nn.Parameter(torch.zeros(3)),
        nn.Parameter(torch.zeros(())),
        nn.Parameter(torch.tensor(-1.0)),
    )
    return Example(model, loss, [(torch.randn(10, 3), torch.randn(10))])


@probabilistic.case()
def deep_kernel() -> Example:
    """Deep kernel learning: a network under a Gaussian process, solve and slogdet."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        k = torch.exp(-0.5 * (z[:, None] - z[None]).square().sum(-1)) + 0.1 * torch.eye(len(z)).to(z)
        return (y @ torch.linalg.solve(k, y) + torch.linalg.slogdet(k)[1]) / (2 * len(y))

    return Example(mlp(4, 2), loss, [(torch.randn(9, 4), torch.randn(9))])


@probabilistic.case()
def radial_basis() -> Example:
    """Radial basis network by cdist."""
    model = Forward(lambda self, x: self.h(torch.exp(-(torch.cdist(x, self.c) ** 2))), h=nn.Linear(6, 1))
    model.c = nn.Parameter(torch.randn(6, 3))
    return Example(model, MSE, [(torch.randn(n, 3), torch.randn(n, 1)) for n in (10, 5)])


@probabilistic.case()
def eigenvalues() -> Example:
    """Eigenvalues of a feature covariance (eigvalsh)."""

    def loss(z: Tensor, _: Any) -> Tensor:
        return (torch.linalg.eigvalsh(z.T @ z / len(z)) + 0.1).log().square().sum()

    return Example(mlp(5, 3), loss, [(torch.randn(12, 5), torch.zeros(12))])


@probabilistic.case()
def singular_values() -> Example:
    """Nuclear norm and determinant of weight products (svd, det)."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return (
            F.mse_loss(z.mean(0), y.mean(0)) + 0.1 * torch.linalg.svdvals(z).sum() + torch.linalg.det(z.T @ z / len(z))
        )

    return Example(mlp(5, 3), loss, [(torch.randn(12, 5), torch.randn(12, 3))])


@probabilistic.case()
def random_field() -> Example:
    """Linear-chain conditional random field, forward algorithm."""

    def loss(o: Any, y: Tensor) -> Tensor:
        score, move = o
        alpha = score[:, 0]
        for t in range(1, score.shape[1]):
            alpha = torch.logsumexp(alpha[:, :, None] + move, 1) + score[:, t]
        path = score.gather(2, y[..., None])[..., 0].sum(1) + move[y[:, :-1], y[:, 1:]].sum(1)
        return (torch.logsumexp(alpha, 1) - path).mean()

    model = Forward(lambda self, x: (self.f(x), self.move), f=nn.Linear(4, 4))
    model.move = nn.Parameter(torch.randn(4, 4) / 4)
    return Example(model, loss, [(torch.randn(n, 5, 4), classes(4, n, 5)) for n in (4, 2)])


@probabilistic.case()
def hidden_markov() -> Example:
    """Hidden Markov model with neural emissions."""

    def forward(self: Any, words: Tensor) -> Tensor:
        start, move = self.start.log_softmax(0), self.move.log_softmax(1)
        emit = self.f(self.states).log_softmax(1)
        alpha = start + emit[:, words[:, 0]].T
        for t in range(1, words.shape[1]):
            alpha = torch.logsumexp(alpha[:, :, None] + move, 1) + emit[:, words[:, t]].T
        return -torch.logsumexp(alpha, 1)

    model = Forward(forward, f=mlp(4, 8))
    model.start, model.move, model.states = (
        nn.Parameter(torch.randn(3)),
        nn.Parameter(torch.randn(3, 3)),
        nn.Parameter(torch.randn(3, 4)),
    )
    return Example(model, lambda o, _: o.mean(), [(classes(8, n, 5), torch.zeros(n)) for n in (4, 2)])


@probabilistic.case()
def sinkhorn() -> Example:
    """Sinkhorn divergence, 20 unrolled iterations."""

    def loss(o: Tensor, y: Tensor) -> Tensor:
        cost = (o[:, None] - y[None]).square().sum(-1)
        f, g = torch.zeros_like(cost[:, 0]), torch.zeros_like(cost[0])
        for _ in range(20):
            f = -torch.logsumexp(g - cost, 1)
            g = -torch.logsumexp(f[:, None] - cost, 0)
        return (torch.exp(f[:, None] + g - cost) * cost).mean()

    return Example(mlp(4, 2), loss, [(torch.randn(8, 4), torch.randn(8, 2))])


@probabilistic.case()
def soft_sort() -> Example:
    """Differentiable sorting (NeuralSort) with a Spearman-like loss."""

    def loss(o: Tensor, y: Tensor) -> Tensor:
        s = o[:, 0]
        apart = (s[:, None] - s[None]).abs().sum(0)
        weight = len(s) + 1 - 2 * torch.arange(1, len(s) + 1).to(s)
        order = (weight[:, None] * s - apart).softmax(1)
        return ((order @ y) - y.sort(descending=True)[0]).square().mean()

    return Example(mlp(4, 1), loss, [(torch.randn(8, 4), torch.randn(8))])


@probabilistic.case()
def implicit_layer() -> Example:
    """A quadratic programme's solution as a layer (linear solve)."""

    def forward(self: Any, x: Tensor) -> Tensor:
        root = self.f(x).view(len(x), 3, 3)
        return torch.linalg.solve(root @ root.transpose(1, 2) + torch.eye(3).to(x), self.g(x)[..., None])[..., 0]

    return Example(
        Forward(forward, f=mlp(4, 9), g=mlp(4, 3)), MSE, [(torch.randn(n, 4), torch.randn(n, 3)) for n in (6, 3)]
    )


@probabilistic.case()
def meta_learning() -> Example:
    """MAML: an inner step of gradient descent in forward."""

    def forward(self: Any, x: Tensor, support: Tensor, label: Tensor) -> Tensor:
        named = dict(self.f.named_parameters())
        with torch.enable_grad():
            inner = F.mse_loss(torch.func.functional_call(self.f, named, (support,)), label)
            slopes = torch.autograd.grad(inner, list(named.values()), create_graph=True)
        moved = {name: value - 0.1 * slope for (name, value), slope in zip(named.items(), slopes, strict=True)}
        return torch.func.functional_call(self.f, moved, (x,))

    data = [((torch.randn(n, 4), torch.randn(5, 4), torch.randn(5, 2)), torch.randn(n, 2)) for n in (6, 3)]
    return Example(Forward(forward, f=mlp(4, 2)), MSE, data)


@probabilistic.case()
def bayes_by_backprop() -> Example:
    """Bayesian layers: weights sampled with given noise, Kullback-Leibler term."""

    def forward(self: Any, x: Tensor, eps: Tensor) -> Any:
        scale = F.softplus(self.rho)
        rest = (scale.square() + self.mean.square() - 1 - 2 * scale.log()).sum() / 2
        return x @ (self.mean + scale * eps), rest

    model = Forward(forward)
    model.mean, model.rho = nn.Parameter(torch.randn(5, 3) / 3), nn.Parameter(torch.randn(5, 3) - 2)
    data = [((torch.randn(n, 5), torch.randn(5, 3)), classes(3, n)) for n in (8, 4)]
    return Example(model, lambda o, y: F.cross_entropy(o[0], y) + 0.01 * o[1], data)


@probabilistic.case()
def survival() -> Example:
    """Discrete-time survival with censoring."""

    def loss(o: Tensor, batch: Any) -> Tensor:
        time, happened = batch
        hazard, past = F.logsigmoid(o), F.logsigmoid(-o)
        before = (past * (torch.arange(o.shape[1]) < time[:, None])).sum(1)
        now = torch.where(happened, hazard.gather(1, time[:, None])[:, 0], past.gather(1, time[:, None])[:, 0])
        return -(before + now).mean()

    return Example(mlp(4, 6), loss, [(torch.randn(n, 4), (classes(6, n), torch.rand(n) < 0.6)) for n in (8, 4)])
