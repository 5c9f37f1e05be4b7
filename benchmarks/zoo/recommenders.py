"""Recommenders and tables: embeddings of all kinds."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Example, Family
from zoo.parts import CE, MSE, Forward, classes, mlp

recommenders = Family("recommenders")
series = Family("time series")

CLICK = nn.BCEWithLogitsLoss()


def _rated(users: int, items: int) -> list[Any]:
    return [((classes(users, n), classes(items, n)), torch.randn(n)) for n in (20, 9)]


@recommenders.case()
def factorisation() -> Example:
    """Matrix factorisation with biases."""
    model = Forward(
        lambda self, u, i: (self.u(u) * self.i(i)).sum(1) + self.b(u)[:, 0] + self.c(i)[:, 0],
        u=nn.Embedding(15, 4),
        i=nn.Embedding(20, 4),
        b=nn.Embedding(15, 1),
        c=nn.Embedding(20, 1),
    )
    return Example(model, MSE, _rated(15, 20))


@recommenders.case()
def pairwise() -> Example:
    """Bayesian personalised ranking."""
    model = Forward(
        lambda self, u, i, j: (self.u(u) * (self.i(i) - self.i(j))).sum(1), u=nn.Embedding(15, 4), i=nn.Embedding(20, 4)
    )
    data = [((classes(15, n), classes(20, n), classes(20, n)), torch.zeros(n)) for n in (20, 9)]
    return Example(model, lambda o, _: F.softplus(-o).mean(), data)


@recommenders.case()
def neural_factorisation() -> Example:
    """Neural collaborative filtering, sparse embeddings."""
    model = Forward(
        lambda self, u, i: self.f(torch.cat([self.u(u), self.i(i)], 1))[:, 0],
        u=nn.Embedding(15, 4, sparse=True),
        i=nn.Embedding(20, 4, sparse=True),
        f=mlp(8, 1, 12, nn.ReLU),
    )
    return Example(model, CLICK, [(pair, torch.rand(len(y)).round()) for pair, y in _rated(15, 20)])


@recommenders.case()
def machine() -> Example:
    """Factorisation machine and DeepFM."""

    def forward(self: Any, fields: Tensor) -> Tensor:
        v = self.v(fields)
        cross = 0.5 * (v.sum(1) ** 2 - (v**2).sum(1)).sum(1)
        return self.w(fields).sum((1, 2)) + cross + self.f(v.flatten(1))[:, 0]

    model = Forward(forward, v=nn.Embedding(30, 4), w=nn.Embedding(30, 1), f=mlp(16, 1, 12, nn.ReLU))
    return Example(model, CLICK, [(classes(30, n, 4), torch.rand(n).round()) for n in (16, 7)])


def _bag(mode: str, **settings: Any) -> Any:
    def build() -> Example:
        model = Forward(
            lambda self, words: self.f(self.bag(words)), bag=nn.EmbeddingBag(30, 6, mode=mode, **settings), f=mlp(6, 3)
        )
        return Example(model, CE, [(classes(30, n, 4), classes(3, n)) for n in (8, 4)])

    return build


recommenders.add("EmbeddingBag, sums", _bag("sum"))
recommenders.add("EmbeddingBag, means with padding_idx", _bag("mean", padding_idx=0))
recommenders.add("EmbeddingBag, maxima", _bag("max"))
recommenders.add("EmbeddingBag, sparse gradients", _bag("sum", sparse=True))


@recommenders.case()
def weighted_bags() -> Example:
    """EmbeddingBag with offsets and weights of the samples."""
    model = Forward(
        lambda self, i, o, w: self.f(self.bag(i, o, per_sample_weights=w)),
        bag=nn.EmbeddingBag(30, 6, mode="sum"),
        f=mlp(6, 3),
    )
    data = []
    for n in (6, 3):
        offsets = torch.arange(n) * 3
        data.append(((classes(30, 3 * n), offsets, torch.rand(3 * n)), classes(3, n)))
    return Example(model, CE, data)


@recommenders.case()
def deep_ranking() -> Example:
    """DLRM: embedding bags, dot interactions."""

    def forward(self: Any, dense: Tensor, a: Tensor, b: Tensor) -> Tensor:
        z = torch.stack([self.bottom(dense), self.a(a), self.b(b)], 1)
        i, j = torch.tril_indices(3, 3, -1)
        return self.top(torch.cat([z[:, 0], (z @ z.transpose(1, 2))[:, i, j]], 1))[:, 0]

    model = Forward(
        forward,
        bottom=mlp(4, 6, 8, nn.ReLU),
        a=nn.EmbeddingBag(30, 6, mode="sum"),
        b=nn.EmbeddingBag(30, 6),
        top=mlp(9, 1, 8, nn.ReLU),
    )
    return Example(
        model,
        CLICK,
        [((torch.randn(n, 4), classes(30, n, 3), classes(30, n, 2)), torch.rand(n).round()) for n in (10, 5)],
    )


@recommenders.case()
def two_towers() -> Example:
    """Two towers with in-batch negatives and a correction for popularity."""

    def forward(self: Any, user: Tensor, item: Tensor, log: Tensor) -> Tensor:
        return F.normalize(self.u(self.e(user)), dim=1) @ F.normalize(self.i(self.g(item)), dim=1).T / 0.3 - log

    model = Forward(forward, e=nn.Embedding(15, 6), g=nn.Embedding(20, 6), u=mlp(6, 4), i=mlp(6, 4))
    data = [((classes(15, n), classes(20, n), torch.randn(n)), torch.arange(n)) for n in (9, 5)]
    return Example(model, CE, data)


@recommenders.case()
def sequential() -> Example:
    """SASRec: causal attention over items with padding_idx, sampled negatives."""

    def forward(self: Any, seen: Tensor, good: Tensor, bad: Tensor) -> Any:
        x = self.e(seen) * 2 + self.p(torch.arange(seen.shape[1]))
        mask = torch.ones(seen.shape[1], seen.shape[1], dtype=torch.bool).triu(1)
        z = x + self.a(self.n(x), x, x, attn_mask=mask, need_weights=False)[0]
        return (z * self.e(good)).sum(-1), (z * self.e(bad)).sum(-1)

    model = Forward(
        forward,
        e=nn.Embedding(25, 8, padding_idx=0),
        p=nn.Embedding(8, 8),
        n=nn.LayerNorm(8),
        a=nn.MultiheadAttention(8, 2, batch_first=True),
    )

    def loss(o: Any, kept: Tensor) -> Tensor:
        return ((F.softplus(-o[0]) + F.softplus(o[1])) * kept).sum() / kept.sum()

    data = []
    for n, pads in ((4, 1), (2, 4)):
        seen = classes(24, n, 6) + 1
        seen[:, :pads] = 0
        data.append(((seen, classes(24, n, 6) + 1, classes(24, n, 6) + 1), (seen != 0).float()))
    return Example(model, loss, data, weight=lambda b: b[1].sum())


@recommenders.case()
def cross_network() -> Example:
    """DCN v2: cross layers beside a deep network, on a table of numbers and categories."""

    def forward(self: Any, numbers: Tensor, kinds: Tensor) -> Tensor:
        start = torch.cat([numbers, self.e(kinds).flatten(1)], 1)
        x = start
        for layer in self.cross:
            x = start * layer(x) + x
        return self.h(torch.cat([x, self.f(start)], 1))[:, 0]

    model = Forward(
        forward,
        e=nn.Embedding(12, 3),
        cross=nn.ModuleList(nn.Linear(10, 10) for _ in range(2)),
        f=mlp(10, 6, 8, nn.ReLU),
        h=nn.Linear(16, 1),
    )
    return Example(model, CLICK, [((torch.randn(n, 4), classes(12, n, 2)), torch.rand(n).round()) for n in (12, 5)])


@recommenders.case()
def table_attention() -> Example:
    """Attention over the features of a table (FT-Transformer), missing values by a mask."""

    def forward(self: Any, numbers: Tensor, missing: Tensor) -> Tensor:
        x = torch.where(missing[..., None], self.empty, numbers[..., None] * self.w + self.b)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.h(self.t(x)[:, 0])

    model = Forward(forward, t=nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), h=nn.Linear(8, 3))
    model.w, model.b, model.empty = (nn.Parameter(torch.randn(5, 8) / 2) for _ in range(3))
    model.token = nn.Parameter(torch.randn(1, 1, 8))
    data = [((torch.randn(n, 5), torch.rand(n, 5) < 0.2), classes(3, n)) for n in (8, 4)]
    return Example(model, CE, data)


@recommenders.case()
def tabular_attention() -> Example:
    """TabNet-like steps with sparsemax."""

    def sparsemax(z: Tensor) -> Tensor:
        ordered, _ = z.sort(1, descending=True)
        k = torch.arange(1, z.shape[1] + 1).to(z)
        total = ordered.cumsum(1) - 1
        support = (ordered * k > total).sum(1, keepdim=True)
        return (z - total.gather(1, support - 1) / support.to(z)).clamp_min(0)

    def forward(self: Any, x: Tensor) -> Tensor:
        out, prior = 0, torch.ones_like(x)
        for choose, step in zip(self.choose, self.steps, strict=True):
            mask = sparsemax(choose(x) * prior)
            prior = prior * (1.3 - mask)
            out = out + step(mask * x)
        return self.h(out)

    model = Forward(
        forward,
        choose=nn.ModuleList(nn.Linear(6, 6) for _ in range(2)),
        steps=nn.ModuleList(mlp(6, 6) for _ in range(2)),
        h=nn.Linear(6, 3),
    )
    return Example(model, CE, [(torch.randn(n, 6), classes(3, n)) for n in (10, 5)])


# ------------------------------------------------------------------ time series
@series.case()
def basis_expansion() -> Example:
    """N-BEATS: residual stacks with a trend basis."""

    def forward(self: Any, x: Tensor) -> Tensor:
        total, basis = 0, torch.linspace(0, 1, 15).pow(torch.arange(3)[:, None])
        for block in self.blocks:
            both = block(x) @ basis.to(x)
            x, total = x - both[:, :12], total + both[:, 12:]
        return total

    return Example(
        Forward(forward, blocks=nn.ModuleList(mlp(12, 3, 12, nn.ReLU) for _ in range(3))),
        MSE,
        [(torch.randn(n, 12), torch.randn(n, 3)) for n in (8, 4)],
    )


@series.case()
def decomposition() -> Example:
    """DLinear: moving average and remainder."""

    def forward(self: Any, x: Tensor) -> Tensor:
        trend = F.avg_pool1d(F.pad(x[:, None], (2, 2), mode="replicate"), 5, 1)[:, 0]
        return self.a(trend) + self.b(x - trend)

    return Example(
        Forward(forward, a=nn.Linear(12, 3), b=nn.Linear(12, 3)),
        MSE,
        [(torch.randn(n, 12), torch.randn(n, 3)) for n in (8, 4)],
    )


@series.case()
def autoregression() -> Example:
    """DeepAR: LSTM with Gaussian likelihood."""

    def forward(self: Any, x: Tensor) -> Any:
        mean, scale = self.h(self.g(x[..., None])[0]).unbind(-1)
        return mean, F.softplus(scale) + 1e-2

    def loss(o: Any, y: Tensor) -> Tensor:
        return F.gaussian_nll_loss(o[0], y, o[1] ** 2)

    return Example(
        Forward(forward, g=nn.LSTM(1, 8, batch_first=True), h=nn.Linear(8, 2)),
        loss,
        [(x[:, :-1], x[:, 1:]) for x in (torch.randn(n, 6) for n in (4, 2))],
    )


@series.case()
def quantiles() -> Example:
    """Temporal fusion: gated residual networks, variable selection, quantile loss."""

    def forward(self: Any, x: Tensor) -> Tensor:
        share = self.select(x.flatten(1)).softmax(1)
        z = (self.embed(x.transpose(1, 2)) * share[..., None]).sum(1)
        return self.h(self.norm(z + F.glu(self.gate(F.elu(self.f(z))))))

    model = Forward(
        forward,
        select=nn.Linear(18, 3),
        embed=nn.Linear(6, 8),
        f=nn.Linear(8, 8),
        gate=nn.Linear(8, 16),
        norm=nn.LayerNorm(8),
        h=nn.Linear(8, 3),
    )

    def loss(o: Tensor, y: Tensor) -> Tensor:
        level, gap = torch.tensor([0.1, 0.5, 0.9]).to(o), y[:, None] - o
        return torch.maximum(level * gap, (level - 1) * gap).mean()

    return Example(model, loss, [(torch.randn(n, 6, 3), torch.randn(n)) for n in (8, 4)])


@series.case()
def frequencies() -> Example:
    """Frequency-domain mixing (FreTS) with complex arithmetic of real parameters."""

    def forward(self: Any, x: Tensor) -> Tensor:
        z = torch.fft.rfft(x, norm="ortho")
        real = F.relu(z.real @ self.r - z.imag @ self.i)
        imaginary = F.relu(z.imag @ self.r + z.real @ self.i)
        return self.h(torch.fft.irfft(torch.complex(real, imaginary), n=x.shape[1], norm="ortho"))

    model = Forward(forward, h=nn.Linear(12, 3))
    model.r, model.i = nn.Parameter(torch.randn(7, 7) / 3), nn.Parameter(torch.randn(7, 7) / 3)
    return Example(model, MSE, [(torch.randn(n, 12), torch.randn(n, 3)) for n in (8, 4)])


@series.case()
def point_process() -> Example:
    """Neural Hawkes process: continuous-time LSTM-like decay, compensator by quadrature."""

    def forward(self: Any, kinds: Tensor, gaps: Tensor) -> Any:
        h, log, total = gaps.new_zeros(len(gaps), 6), 0, 0
        for kind, gap in zip(kinds.unbind(1), gaps.unbind(1), strict=True):
            at = torch.linspace(0, 1, 4).to(gaps)[:, None] * gap
            decayed = h * torch.exp(-F.softplus(self.decay) * at[..., None])
            rates = F.softplus(self.rate(decayed))
            total = total + rates.sum(-1).mean(0) * gap
            log = log + rates[-1].gather(1, kind[:, None])[:, 0].log()
            h = torch.tanh(self.jump(torch.cat([decayed[-1], self.e(kind)], 1)))
        return log, total

    model = Forward(forward, rate=nn.Linear(6, 3), jump=nn.Linear(10, 6), e=nn.Embedding(3, 4))
    model.decay = nn.Parameter(torch.randn(6))
    return Example(
        model,
        lambda o, _: (o[1] - o[0]).mean(),
        [((classes(3, n, 4), torch.rand(n, 4)), torch.zeros(n)) for n in (5, 3)],
    )
