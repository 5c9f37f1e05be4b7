"""Normalising flows and densities."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributions, nn

from zoo.case import Example, Family
from zoo.parts import Forward, mlp

flows = Family("flows")


def _likelihood(o: Any, _: Any) -> Tensor:
    return (0.5 * (o[0] ** 2).sum(1) - o[1]).mean()


def _samples(width: int) -> list[Any]:
    return [(torch.randn(n, width), torch.zeros(n)) for n in (8, 4)]


@flows.case()
def real_nvp() -> Example:
    """RealNVP."""

    def forward(self: Any, x: Tensor) -> Any:
        volume = x.new_zeros(len(x))
        for i, network in enumerate(self.networks):
            a, b = x.chunk(2, 1) if i % 2 else x.chunk(2, 1)[::-1]
            s, t = network(a).chunk(2, 1)
            b, volume = b * torch.tanh(s).exp() + t, volume + torch.tanh(s).sum(1)
            x = torch.cat([a, b] if i % 2 else [b, a], 1)
        return x, volume

    return Example(Forward(forward, networks=nn.ModuleList(mlp(2, 4, 8) for _ in range(4))), _likelihood, _samples(4))


@flows.case()
def glow() -> Example:
    """Glow: activation norm, 1x1 convolution with slogdet, coupling."""

    def forward(self: Any, x: Tensor) -> Any:
        x = (x + self.bias) * self.scale.exp()
        x = x @ self.mix
        volume = self.scale.sum() + torch.linalg.slogdet(self.mix)[1]
        a, b = x.chunk(2, 1)
        s, t = self.f(a).chunk(2, 1)
        return torch.cat([a, (b + t) * torch.sigmoid(s + 2)], 1), volume + F.logsigmoid(s + 2).sum(1)

    model = Forward(forward, f=mlp(2, 4))
    model.mix = nn.Parameter(torch.linalg.qr(torch.randn(4, 4))[0])
    model.bias, model.scale = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4) / 4)
    return Example(model, _likelihood, _samples(4))


@flows.case()
def autoregressive_flow() -> Example:
    """Masked autoregressive flow."""

    def forward(self: Any, x: Tensor) -> Any:
        volume = x.new_zeros(len(x))
        for layer, mask in zip(self.layers, (self.mask, self.mask.flip(0, 1)), strict=True):
            s, t = (torch.tanh(F.linear(x, weight * mask)) for weight in layer.weight.chunk(2))
            x, volume = (x - t) * torch.exp(-s), volume - s.sum(1)
        return x, volume

    model = Forward(forward, layers=nn.ModuleList(nn.Linear(4, 8, bias=False) for _ in range(2)))
    model.register_buffer("mask", torch.ones(4, 4).tril(-1))
    return Example(model, _likelihood, _samples(4))


@flows.case()
def spline() -> Example:
    """Rational quadratic spline flow by searchsorted and gather."""

    def forward(self: Any, x: Tensor) -> Any:
        a, b = x.chunk(2, 1)
        told = self.f(a).view(len(x), 2, 14)
        width, height = (part.softmax(-1) * 8 - 0 for part in told[..., :10].chunk(2, -1))
        slope = F.softplus(told[..., 10:]) + 1e-2
        slope = F.pad(slope, (1, 1), value=1.0)
        left, low = F.pad(width.cumsum(-1), (1, 0)) - 4, F.pad(height.cumsum(-1), (1, 0)) - 4
        y = b.clamp(-3.9, 3.9)
        k = (torch.searchsorted(left.detach().contiguous(), y[..., None]) - 1).clamp(0, 4)
        pick = lambda table, at: table.gather(-1, at)[..., 0]
        w, h, d0, d1 = pick(width, k), pick(height, k), pick(slope, k), pick(slope, k + 1)
        s, u = h / w, (y - pick(left, k)) / w
        lower = s + (d1 + d0 - 2 * s) * u * (1 - u)
        out = pick(low, k) + h * (s * u**2 + d0 * u * (1 - u)) / lower
        log = 2 * s.log() + (d1 * u**2 + 2 * s * u * (1 - u) + d0 * (1 - u) ** 2).log() - 2 * lower.log()
        return torch.cat([a, out], 1), log.sum(1)

    return Example(Forward(forward, f=mlp(2, 28)), _likelihood, _samples(4))


@flows.case()
def planar() -> Example:
    """Planar and radial flows."""

    def forward(self: Any, x: Tensor) -> Any:
        inner = x @ self.w + self.b
        volume = torch.log1p(self.u @ self.w * (1 - torch.tanh(inner) ** 2)).abs()
        x = x + self.u * torch.tanh(inner)[:, None]
        distance = (x - self.center).norm(dim=1, keepdim=True)
        return x + 0.3 * (x - self.center) / (1 + distance), volume + (1 + 0.3 / (1 + distance[:, 0])).log()

    model = Forward(forward)
    model.w, model.u, model.b, model.center = (nn.Parameter(torch.randn(shape).squeeze() / 2) for shape in (4, 4, 1, 4))
    return Example(model, _likelihood, _samples(4))


@flows.case()
def continuous() -> Example:
    """Continuous flow (FFJORD): exact trace, Runge-Kutta steps."""

    def slope(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.a(x))
        trace = ((1 - hidden**2) * (self.b.weight.T * self.a.weight).sum(1)).sum(1)
        return self.b(hidden), trace

    def forward(self: Any, x: Tensor) -> Any:
        volume, h = x.new_zeros(len(x)), 0.25
        for _ in range(4):
            k1, v1 = slope(self, x)
            k2, v2 = slope(self, x + h * k1 / 2)
            x, volume = x + h * k2, volume + h * v2 + 0 * v1
        return x, volume

    return Example(Forward(forward, a=nn.Linear(3, 10), b=nn.Linear(10, 3)), _likelihood, _samples(3))


@flows.case()
def distribution_outputs() -> Example:
    """A torch.distributions object as the output."""
    model = Forward(
        lambda self, x: distributions.Normal(self.a(x)[:, 0], F.softplus(self.b(x)[:, 0]) + 1e-3),
        a=mlp(4, 1),
        b=mlp(4, 1),
    )

    def moments(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
        made = module(batch[0])
        return made.loc, made.scale

    return Example(
        model,
        lambda d, y: -d.log_prob(y).mean(),
        [(torch.randn(n, 4), torch.randn(n)) for n in (8, 4)],
        outputs=moments,
        criterion=lambda o, b: -distributions.Normal(*o).log_prob(b[1]).mean(),
    )


@flows.case()
def mixture_of_distributions() -> Example:
    """A mixture by MixtureSameFamily inside the loss."""

    def loss(o: Tensor, y: Tensor) -> Tensor:
        weight, mean, scale = o.chunk(3, 1)
        parts = distributions.Normal(mean, F.softplus(scale) + 1e-2)
        return -distributions.MixtureSameFamily(distributions.Categorical(logits=weight), parts).log_prob(y).mean()

    return Example(mlp(4, 9), loss, [(torch.randn(n, 4), torch.randn(n)) for n in (8, 4)])
