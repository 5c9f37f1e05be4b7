"""Graph networks in plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Example, Family
from zoo.parts import CE, MSE, Forward, classes, mlp

graphs = Family("graphs")

NODES, EDGES = (14, 9), (40, 22)


def _mean(values: Tensor, to: Tensor, count: int) -> Tensor:
    """Means of values by the node that they go to."""
    total = values.new_zeros(count, values.shape[1]).index_add_(0, to, values)
    degree = values.new_zeros(count).index_add_(0, to, values.new_ones(len(to))).clamp_min(1)
    return total / degree[:, None]


def _nodes(model: nn.Module, width: int = 6) -> Example:
    """Classification of nodes."""
    data = [((torch.randn(n, width), classes(n, 2, e)), classes(3, n)) for n, e in zip(NODES, EDGES, strict=True)]
    return Example(model, CE, data)


@graphs.case()
def convolution() -> Example:
    """GCN by index_add."""

    def forward(self: Any, x: Tensor, edges: Tensor) -> Tensor:
        x = F.relu(self.a(_mean(x[edges[0]], edges[1], len(x))))
        return self.b(_mean(x[edges[0]], edges[1], len(x)))

    return _nodes(Forward(forward, a=nn.Linear(6, 10), b=nn.Linear(10, 3)))


@graphs.case()
def symmetric_convolution() -> Example:
    """GCN with symmetric normalisation by scatter_add."""

    def forward(self: Any, x: Tensor, edges: Tensor) -> Tensor:
        source, to = torch.cat([edges, torch.arange(len(x)).expand(2, -1)], 1)
        degree = x.new_zeros(len(x)).scatter_add(0, to, x.new_ones(len(to)))
        weight = (degree[source] * degree[to]).rsqrt()[:, None]
        for layer in (self.a, self.b):
            y = layer(x)
            x = torch.zeros_like(y).scatter_add(0, to[:, None].expand(-1, y.shape[1]), weight * y[source])
            x = torch.tanh(x) if layer is self.a else x
        return x

    return _nodes(Forward(forward, a=nn.Linear(6, 10), b=nn.Linear(10, 3)))


@graphs.case()
def attention() -> Example:
    """GAT: softmax over the edges of a node."""

    def forward(self: Any, x: Tensor, edges: Tensor) -> Tensor:
        source, to = edges
        z = self.a(x)
        score = F.leaky_relu(self.s(z)[source] + self.t(z)[to], 0.2)[:, 0]
        most = score.new_full((len(x),), -1e9).scatter_reduce(0, to, score, "amax").detach()
        weight = torch.exp(score - most[to])
        total = weight.new_zeros(len(x)).index_add(0, to, weight)
        return self.b(F.elu(torch.zeros_like(z).index_add(0, to, (weight / total[to])[:, None] * z[source])))

    return _nodes(Forward(forward, a=nn.Linear(6, 10), s=nn.Linear(10, 1), t=nn.Linear(10, 1), b=nn.Linear(10, 3)))


@graphs.case()
def sampling() -> Example:
    """GraphSAGE with maxima over neighbours by scatter_reduce."""

    def forward(self: Any, x: Tensor, edges: Tensor) -> Tensor:
        source, to = edges
        z = self.p(x)[source]
        most = z.new_zeros(len(x), z.shape[1]).scatter_reduce(
            0, to[:, None].expand_as(z), z, "amax", include_self=False
        )
        return self.b(F.normalize(torch.tanh(self.a(torch.cat([x, most], 1))), dim=1))

    return _nodes(Forward(forward, p=nn.Linear(6, 6), a=nn.Linear(12, 10), b=nn.Linear(10, 3)))


@graphs.case()
def isomorphism() -> Example:
    """GIN, sums over graphs by batch index, a graph object without a pytree."""

    class Graphs:
        def __init__(self, x: Tensor, edges: Tensor, batch: Tensor, count: int) -> None:
            self.x, self.edges, self.batch, self.count = x, edges, batch, count

        def __repr__(self) -> str:
            return f"Graphs(x={list(self.x.shape)}, edges={list(self.edges.shape)})"

    def forward(self: Any, g: Graphs) -> Tensor:
        near = torch.zeros_like(g.x).index_add(0, g.edges[1], g.x[g.edges[0]])
        x = self.f((1 + self.eps) * g.x + near)
        return self.h(x.new_zeros(g.count, x.shape[1]).index_add(0, g.batch, x))

    model = Forward(forward, f=mlp(5, 8, 8, nn.ReLU), h=nn.Linear(8, 3))
    model.eps = nn.Parameter(torch.zeros(()))
    data = []
    for _ in range(2):
        batch = torch.arange(4).repeat_interleave(5)
        edges = classes(5, 2, 24) + 5 * classes(4, 24)
        data.append((Graphs(torch.randn(20, 5), edges, batch, 4), classes(3, 4)))
    return Example(model, CE, data)


@dataclass
class _Molecule:
    kinds: Tensor
    places: Tensor
    edges: Tensor


@graphs.case()
def messages() -> Example:
    """Message passing with edge features and a GRU cell, dataclass batches."""

    def forward(self: Any, m: _Molecule) -> Tensor:
        x = self.embed(m.kinds)
        source, to = m.edges
        distance = (m.places[source] - m.places[to]).norm(dim=1, keepdim=True)
        for _ in range(2):
            message = self.message(torch.cat([x[source], x[to], distance], 1))
            x = self.update(torch.zeros_like(x).index_add(0, to, message), x)
        return self.h(x)

    model = Forward(forward, embed=nn.Embedding(5, 6), message=mlp(13, 6), update=nn.GRUCell(6, 6), h=nn.Linear(6, 1))
    data = []
    for n, e in zip(NODES, EDGES, strict=True):
        edges = torch.stack([classes(n, e), classes(n, e)])
        edges = edges[:, edges[0] != edges[1]]
        data.append((_Molecule(classes(5, n), torch.randn(n, 3), edges), torch.randn(n, 1)))
    return Example(model, MSE, data)


@graphs.case()
def energies_and_forces() -> Example:
    """SchNet: energy and forces by autograd.grad in forward."""

    def energy(self: Any, places: Tensor) -> Tensor:
        distance = (places[:, :, None] - places[:, None] + torch.eye(5, dtype=places.dtype)[..., None]).norm(dim=-1)
        basis = torch.exp(-((distance[..., None] - torch.linspace(0, 3, 6).to(places)) ** 2))
        return self.f(basis).sum((1, 2, 3))

    def forward(self: Any, places: Tensor) -> tuple[Tensor, Tensor]:
        places = places.detach().requires_grad_()
        with torch.enable_grad():
            value = energy(self, places)
            (force,) = torch.autograd.grad(-value.sum(), places, create_graph=True)
        return value, force

    data = [(torch.randn(n, 5, 3), (torch.randn(n), torch.randn(n, 5, 3))) for n in (3, 2)]
    loss = lambda o, y: F.mse_loss(o[0], y[0]) + 10 * F.mse_loss(o[1], y[1])
    return Example(Forward(forward, f=mlp(6, 1)), loss, data)


@graphs.case()
def equivariant() -> Example:
    """EGNN: equivariant coordinates."""

    def forward(self: Any, h: Tensor, x: Tensor) -> Tensor:
        for edge, node, shift in zip(self.edges, self.nodes, self.shifts, strict=True):
            apart = x[:, :, None] - x[:, None]
            pair = torch.cat(
                [
                    h[:, :, None].expand(-1, -1, 5, -1),
                    h[:, None].expand(-1, 5, -1, -1),
                    apart.square().sum(-1, keepdim=True),
                ],
                -1,
            )
            m = edge(pair)
            x = x + (apart * torch.tanh(shift(m))).mean(2)
            h = h + node(torch.cat([h, m.sum(2)], -1))
        return x

    many = lambda make: nn.ModuleList(make() for _ in range(2))
    model = Forward(
        forward,
        edges=many(lambda: mlp(9, 6, 8, nn.SiLU)),
        nodes=many(lambda: mlp(10, 4, 8, nn.SiLU)),
        shifts=many(lambda: nn.Linear(6, 1)),
    )
    return Example(model, MSE, [((torch.randn(n, 5, 4), torch.randn(n, 5, 3)), torch.randn(n, 5, 3)) for n in (3, 2)])


@graphs.case()
def transformer() -> Example:
    """Graph transformer with Laplacian positions (eigh of the graph)."""

    def forward(self: Any, x: Tensor, adjacency: Tensor) -> Tensor:
        laplacian = torch.diag_embed(adjacency.sum(-1)) - adjacency
        place = torch.linalg.eigh(laplacian)[1][..., 1:4].abs()
        z = self.embed(torch.cat([x, place], -1))
        return self.h(self.t(z).mean(1))

    layer = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
    model = Forward(forward, embed=nn.Linear(8, 12), t=layer, h=nn.Linear(12, 3))

    def batch(n: int) -> Any:
        half = torch.rand(n, 7, 7).triu(1).round()
        return (torch.randn(n, 7, 5), half + half.transpose(1, 2)), classes(3, n)

    return Example(model, CE, [batch(3), batch(2)])


@graphs.case()
def pooled() -> Example:
    """Differentiable pooling with its auxiliary losses."""

    def forward(self: Any, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.tanh(self.f(a @ x))
        s = self.s(a @ x).softmax(-1)
        small = s.transpose(1, 2) @ a @ s
        link = (a - s @ s.transpose(1, 2)).square().mean()
        return self.h((small @ (s.transpose(1, 2) @ z)).mean(1)), link - (s * s.log()).sum(-1).mean()

    model = Forward(forward, f=nn.Linear(5, 8), s=nn.Linear(5, 3), h=nn.Linear(8, 3))
    data = [((torch.randn(n, 6, 5), torch.rand(n, 6, 6).round()), classes(3, n)) for n in (4, 2)]
    return Example(model, lambda o, y: F.cross_entropy(o[0], y) + o[1], data)


@graphs.case()
def points() -> Example:
    """Point cloud: nearest neighbours by cdist and topk (DGCNN)."""

    def forward(self: Any, x: Tensor) -> Tensor:
        near = torch.cdist(x, x).topk(3, largest=False)[1]
        neighbours = torch.stack([cloud[index] for cloud, index in zip(x, near, strict=True)])
        center = x[:, :, None].expand_as(neighbours)
        return self.h(self.f(torch.cat([center, neighbours - center], -1)).amax(2).amax(1))

    return Example(
        Forward(forward, f=mlp(6, 8, 12, nn.ReLU), h=nn.Linear(8, 3)),
        CE,
        [(torch.randn(n, 9, 3), classes(3, n)) for n in (3, 2)],
    )


@graphs.case()
def knowledge() -> Example:
    """Knowledge graph embeddings (RotatE) with self-adversarial negatives."""

    def forward(self: Any, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        a, b = self.entities(head).chunk(2, -1), self.entities(tail).chunk(2, -1)
        turn = self.relations(relation)
        real, imaginary = a[0] * turn.cos() - a[1] * turn.sin(), a[0] * turn.sin() + a[1] * turn.cos()
        return ((real - b[0]) ** 2 + (imaginary - b[1]) ** 2 + 1e-6).sqrt().sum(-1)

    model = Forward(forward, entities=nn.Embedding(20, 8), relations=nn.Embedding(4, 4))

    def loss(distance: Tensor, _: Any) -> Tensor:
        good, bad = distance[:, 0], distance[:, 1:]
        return (F.softplus(good - 3) + (F.softplus(3 - bad) * (-bad).softmax(1).detach()).sum(1)).mean()

    data = [((classes(20, n, 1), classes(4, n, 1), classes(20, n, 4)), torch.zeros(n)) for n in (6, 3)]
    return Example(model, loss, data)
