"""Diffusion, score matching, flow matching."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Example, Family
from zoo.parts import MSE, Forward, classes, mlp

diffusion = Family("diffusion")


def _embedded(t: Tensor, width: int) -> Tensor:
    angle = t[:, None] * torch.exp(-torch.arange(width // 2).to(t) * math.log(100) / (width // 2))
    return torch.cat([angle.sin(), angle.cos()], 1)


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time = mlp(8, 8, 16, nn.SiLU)
        self.a, self.b, self.c = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(16, 8, 3, padding=1)
        self.m, self.n = nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)
        self.attend, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        a = self.a(x) + self.time(_embedded(t.to(x), 8))[..., None, None]
        b = F.silu(self.m(self.b(F.silu(a))))
        z = b.flatten(2).transpose(1, 2)
        b = b + self.attend(z, z, z, need_weights=False)[0].transpose(1, 2).view_as(b)
        up = F.interpolate(b, scale_factor=2, mode="nearest")
        return self.out(F.silu(self.n(self.c(torch.cat([a, up], 1)))))


@diffusion.case()
def noise_prediction() -> Example:
    """DDPM: U-Net with attention predicts the noise."""
    data = [((torch.randn(n, 1, 8, 8), torch.randint(0, 100, (n,))), torch.randn(n, 1, 8, 8)) for n in (3, 2)]
    return Example(_UNet(), MSE, data)


@diffusion.case()
def velocity_prediction() -> Example:
    """v-prediction with weights by signal-to-noise ratio."""

    def loss(o: Tensor, batch: Any) -> Tensor:
        return (batch[1] * (o - batch[0]).square().mean((1, 2, 3))).mean()

    data = [
        ((torch.randn(n, 1, 8, 8), torch.randint(0, 100, (n,))), (torch.randn(n, 1, 8, 8), torch.rand(n)))
        for n in (3, 2)
    ]
    return Example(_UNet(), loss, data)


@diffusion.case()
def diffusion_transformer() -> Example:
    """DiT: adaptive layer norm by time and class."""

    def forward(self: Any, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        told = F.silu(self.time(_embedded(t, 8)) + self.label(label))
        shift, scale, gate, shift2, scale2, gate2 = self.modulate(told)[:, None].chunk(6, -1)
        z = self.patch(x).flatten(2).transpose(1, 2)
        y = self.norm(z) * (1 + scale) + shift
        z = z + gate * self.attend(y, y, y, need_weights=False)[0]
        z = z + gate2 * self.mlp(self.norm(z) * (1 + scale2) + shift2)
        return self.out(z)

    model = Forward(
        forward,
        time=mlp(8, 12),
        label=nn.Embedding(4, 12),
        modulate=nn.Linear(12, 72),
        patch=nn.Conv2d(1, 12, 2, 2),
        norm=nn.LayerNorm(12, elementwise_affine=False),
        attend=nn.MultiheadAttention(12, 2, batch_first=True),
        mlp=mlp(12, 12, 24, nn.GELU),
        out=nn.Linear(12, 4),
    )
    data = [((torch.randn(n, 1, 6, 6), torch.rand(n), classes(4, n)), torch.randn(n, 9, 4)) for n in (3, 2)]
    return Example(model, MSE, data)


@diffusion.case()
def denoising_score_matching() -> Example:
    """Denoising score matching of vectors."""
    model = Forward(lambda self, x, s: self.f(torch.cat([x, s.log()], 1)) / s, f=mlp(5, 4, 16, nn.SiLU))

    def loss(o: Tensor, batch: Any) -> Tensor:
        eps, s = batch
        return ((o * s + eps) ** 2).sum(1).mean()

    data = []
    for n in (8, 4):
        scale, eps = torch.rand(n, 1) + 0.1, torch.randn(n, 4)
        data.append(((torch.randn(n, 4) + scale * eps, scale), (eps, scale)))
    return Example(model, loss, data)


@diffusion.case()
def exact_score_matching() -> Example:
    """Score matching with the trace of the Jacobian by autograd (third order)."""

    def forward(self: Any, x: Tensor) -> Any:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            (score,) = torch.autograd.grad(self.f(x).sum(), x, create_graph=True)
            trace = sum(
                torch.autograd.grad(score[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1])
            )
        return score, trace

    loss = lambda o, _: (0.5 * (o[0] ** 2).sum(1) + o[1]).mean()
    return Example(Forward(forward, f=mlp(3, 1)), loss, [(torch.randn(n, 3), torch.zeros(n)) for n in (8, 4)])


@diffusion.case()
def sliced_score_matching() -> Example:
    """Sliced score matching by torch.func.jvp."""

    def forward(self: Any, x: Tensor, v: Tensor) -> Any:
        score, turned = torch.func.jvp(self.f, (x,), (v,))
        return score, (turned * v).sum(1)

    loss = lambda o, _: (0.5 * (o[0] ** 2).sum(1) + o[1]).mean()
    data = [((torch.randn(n, 3), torch.randn(n, 3)), torch.zeros(n)) for n in (8, 4)]
    return Example(Forward(forward, f=mlp(3, 3)), loss, data)


@diffusion.case()
def flow_matching() -> Example:
    """Flow matching."""
    model = Forward(lambda self, x, t: self.f(torch.cat([x, t], 1)), f=mlp(5, 4, 16, nn.SiLU))
    return Example(model, MSE, [((torch.randn(n, 4), torch.rand(n, 1)), torch.randn(n, 4)) for n in (8, 4)])


@diffusion.case()
def consistency() -> Example:
    """Consistency training: a detached teacher at the neighbouring noise."""

    def forward(self: Any, x: Tensor, s: Tensor, less: Tensor) -> Any:
        f = lambda scale: self.f(torch.cat([x * scale, scale.log()], 1)) * scale + x * (1 - scale)
        return f(s), f(less).detach()

    data = [
        ((torch.randn(n, 4), torch.rand(n, 1) / 2 + 0.4, torch.rand(n, 1) / 4 + 0.1), torch.zeros(n)) for n in (8, 4)
    ]
    return Example(
        Forward(forward, f=mlp(5, 4, 16, nn.SiLU)), lambda o, _: ((o[0] - o[1]) ** 2 + 1e-3).sqrt().mean(), data
    )


@diffusion.case()
def sampler() -> Example:
    """A differentiable sampler of four steps."""

    def forward(self: Any, x: Tensor) -> Tensor:
        for k in range(4):
            t = x.new_full((len(x), 1), 1 - k / 4)
            x = x - 0.25 * self.f(torch.cat([x, t], 1))
        return x

    return Example(Forward(forward, f=mlp(4, 3)), MSE, [(torch.randn(n, 3), torch.randn(n, 3)) for n in (8, 4)])
