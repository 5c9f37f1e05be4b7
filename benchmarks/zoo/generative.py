"""Generative models: variational, adversarial, diffusion, energies, flows, autoregressive."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributions, nn
from torch.nn.utils import parametrizations

from zoo.case import Example, Family
from zoo.parts import MSE, Forward, classes, mlp

generative = Family("generative")
diffusion = Family("diffusion")
flows = Family("flows")


def _evidence(o: Any, y: Tensor) -> Tensor:
    rebuilt, mean, log = o
    return F.mse_loss(rebuilt, y, reduction="sum") / len(y) - 0.5 * (1 + log - mean**2 - log.exp()).sum(1).mean()


def _variational(noise: Any) -> nn.Module:
    def forward(self: Any, x: Tensor, eps: Tensor | None = None) -> Any:
        mean, log = self.e(x).chunk(2, 1)
        eps = noise(self, mean) if eps is None else eps
        return self.d(mean + eps * (0.5 * log).exp()), mean, log

    return Forward(forward, e=mlp(10, 6, 12, nn.ReLU), d=mlp(3, 10, 12, nn.ReLU))


def _vectors() -> list[Tensor]:
    return [torch.randn(n, 10) for n in (8, 4)]


@generative.case()
def vae_noise_given() -> Example:
    """VAE, noise among the inputs."""
    return Example(_variational(None), _evidence, [((x, torch.randn(len(x), 3)), x) for x in _vectors()])


@generative.case()
def vae_noise_kept() -> Example:
    """VAE, noise in a buffer."""
    model = _variational(lambda self, mean: self.eps[: len(mean)])
    model.register_buffer("eps", torch.randn(8, 3))
    return Example(model, _evidence, [(x, x) for x in _vectors()])


@generative.case()
def vae_noise_seeded() -> Example:
    """VAE, noise by a generator of the model's own."""
    draw = lambda _, mean: torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)).to(mean)  # noqa: E731
    return Example(_variational(draw), _evidence, [(x, x) for x in _vectors()])


@generative.case()
def vae_convolutional() -> Example:
    """Convolutional VAE with Bernoulli pixels."""

    def forward(self: Any, x: Tensor, eps: Tensor) -> Any:
        mean, log = self.e(x).flatten(1).chunk(2, 1)
        return self.d((mean + eps * (0.5 * log).exp())[..., None, None]), mean, log

    encoder = nn.Sequential(nn.Conv2d(1, 6, 4, 2, 1), nn.SiLU(), nn.Conv2d(6, 6, 4))
    decoder = nn.Sequential(nn.ConvTranspose2d(3, 6, 4), nn.SiLU(), nn.ConvTranspose2d(6, 1, 4, 2, 1))

    def loss(o: Any, y: Tensor) -> Tensor:
        rest = -0.5 * (1 + o[2] - o[1] ** 2 - o[2].exp()).sum(1).mean()
        return F.binary_cross_entropy_with_logits(o[0], y, reduction="sum") / len(y) + rest

    data = [((torch.rand(n, 1, 8, 8).round(), torch.randn(n, 3)),) * 2 for n in (3, 2)]
    return Example(Forward(forward, e=encoder, d=decoder), loss, [(x, x[0]) for x, _ in data])


@generative.case()
def vae_distributions() -> Example:
    """VAE with torch.distributions and rsample of given noise."""

    def forward(self: Any, x: Tensor, eps: Tensor) -> Any:
        mean, scale = self.e(x).chunk(2, 1)
        posterior = distributions.Normal(mean, F.softplus(scale) + 1e-3)
        rest = distributions.kl_divergence(posterior, distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean)))
        return self.d(posterior.loc + eps * posterior.scale), rest.sum(1)

    model = Forward(forward, e=mlp(10, 6), d=mlp(3, 10))
    loss = lambda o, y: (F.mse_loss(o[0], y, reduction="none").sum(1) + o[1]).mean()  # noqa: E731
    return Example(model, loss, [((x, torch.randn(len(x), 3)), x) for x in _vectors()])


@generative.case()
def vector_quantised() -> Example:
    """VQ-VAE with codebook and commitment losses, straight-through."""

    def forward(self: Any, x: Tensor) -> Any:
        z = self.e(x)
        code = self.codes[torch.cdist(z, self.codes).argmin(1)]
        rest = ((code.detach() - z) ** 2).mean() + ((code - z.detach()) ** 2).mean()
        return self.d(z + (code - z).detach()), rest

    model = Forward(forward, e=mlp(10, 3), d=mlp(3, 10))
    model.codes = nn.Parameter(torch.randn(6, 3))
    return Example(model, lambda o, y: F.mse_loss(o[0], y) + o[1], [(x, x) for x in _vectors()])


@generative.case()
def discriminator() -> Example:
    """GAN discriminator with spectral norm."""
    norm = parametrizations.spectral_norm
    model = nn.Sequential(
        norm(nn.Conv2d(3, 6, 4, 2, 1)), nn.LeakyReLU(0.2), norm(nn.Conv2d(6, 8, 4, 2, 1)), nn.LeakyReLU(0.2), nn.Flatten(), norm(nn.Linear(32, 1))
    )
    return Example(model, nn.BCEWithLogitsLoss(), [(torch.randn(n, 3, 8, 8), torch.rand(n, 1).round()) for n in (4, 2)])


@generative.case()
def generator() -> Example:
    """GAN generator against a frozen discriminator."""
    model = Forward(lambda self, z: self.d(self.g(z)), g=mlp(4, 10, 12, nn.ReLU), d=mlp(10, 1).requires_grad_(False))
    return Example(model, lambda o, _: F.softplus(-o).mean(), [(torch.randn(n, 4), torch.zeros(n)) for n in (8, 4)])


@generative.case()
def gradient_penalty() -> Example:
    """WGAN-GP critic: gradient penalty by autograd.grad in forward."""

    def forward(self: Any, x: Tensor) -> Any:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            value = self.f(x)
            (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return value[:, 0], slope

    loss = lambda o, y: (o[0] * y).mean() + 10 * ((o[1].norm(dim=1) - 1) ** 2).mean()  # noqa: E731
    return Example(Forward(forward, f=mlp(6, 1)), loss, [(torch.randn(n, 6), torch.randn(n).sign()) for n in (8, 4)])


@generative.case()
def least_squares_gan() -> Example:
    """Style generator: modulated convolution, least-squares adversarial loss."""

    def forward(self: Any, z: Tensor) -> Tensor:
        style = self.map(z)
        weight = self.kernel[None] * (1 + style[:, None, :, None, None])
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        x = self.start.expand(len(z), -1, -1, -1).reshape(1, -1, 4, 4)
        x = F.conv2d(x, weight.flatten(0, 1), padding=1, groups=len(z)).view(len(z), -1, 4, 4)
        return self.critic(F.leaky_relu(x, 0.2).flatten(1))

    model = Forward(forward, map=mlp(4, 6), critic=mlp(96, 1).requires_grad_(False))
    model.kernel, model.start = nn.Parameter(torch.randn(6, 6, 3, 3)), nn.Parameter(torch.randn(1, 6, 4, 4))
    return Example(model, lambda o, _: ((o - 1) ** 2).mean(), [(torch.randn(n, 4), torch.zeros(n)) for n in (4, 2)])


@generative.case()
def pixel_cnn() -> Example:
    """PixelCNN: masked convolutions."""

    class Masked(nn.Conv2d):
        def __init__(self, *sizes: Any, strict: bool) -> None:
            super().__init__(*sizes, padding=1)
            mask = torch.ones(3, 3)
            mask[1, 2 - strict :], mask[2] = 0, 0
            self.register_buffer("mask", mask)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)

    model = nn.Sequential(Masked(1, 8, 3, strict=True), nn.ReLU(), Masked(8, 8, 3, strict=False), nn.ReLU(), nn.Conv2d(8, 4, 1))
    data = [classes(4, n, 6, 6) for n in (3, 2)]
    return Example(model, nn.CrossEntropyLoss(), [(x[:, None] / 4.0, x) for x in data])


@generative.case()
def masked_autoregressive() -> Example:
    """MADE: masked dense layers, Bernoulli."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, self.a.weight * self.first, self.a.bias)), self.b.weight * self.second, self.b.bias)

    model = Forward(forward, a=nn.Linear(6, 18), b=nn.Linear(18, 6))
    order, hidden = torch.arange(6), torch.arange(18) % 5
    model.register_buffer("first", (hidden[:, None] >= order).float())
    model.register_buffer("second", (order[:, None] > hidden).float())
    return Example(model, nn.BCEWithLogitsLoss(), [(x, x) for x in (torch.rand(n, 6).round() for n in (8, 4))])


@generative.case()
def energy() -> Example:
    """Energy-based model: contrastive divergence with given negatives, energy regularised."""
    model = Forward(lambda self, x, y: (self.f(x)[:, 0], self.f(y)[:, 0]), f=mlp(6, 1, 16, nn.SiLU))
    loss = lambda o, _: (o[0] - o[1] + 0.1 * (o[0] ** 2 + o[1] ** 2)).mean()  # noqa: E731
    return Example(model, loss, [((torch.randn(n, 6), torch.randn(n, 6)), torch.zeros(n)) for n in (8, 4)])


# ------------------------------------------------------------------ diffusion
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

    data = [((torch.randn(n, 1, 8, 8), torch.randint(0, 100, (n,))), (torch.randn(n, 1, 8, 8), torch.rand(n))) for n in (3, 2)]
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
        forward, time=mlp(8, 12), label=nn.Embedding(4, 12), modulate=nn.Linear(12, 72), patch=nn.Conv2d(1, 12, 2, 2),
        norm=nn.LayerNorm(12, elementwise_affine=False), attend=nn.MultiheadAttention(12, 2, batch_first=True), mlp=mlp(12, 12, 24, nn.GELU), out=nn.Linear(12, 4),
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
            trace = sum(torch.autograd.grad(score[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1]))
        return score, trace

    loss = lambda o, _: (0.5 * (o[0] ** 2).sum(1) + o[1]).mean()  # noqa: E731
    return Example(Forward(forward, f=mlp(3, 1)), loss, [(torch.randn(n, 3), torch.zeros(n)) for n in (8, 4)])


@diffusion.case()
def sliced_score_matching() -> Example:
    """Sliced score matching by torch.func.jvp."""

    def forward(self: Any, x: Tensor, v: Tensor) -> Any:
        score, turned = torch.func.jvp(self.f, (x,), (v,))
        return score, (turned * v).sum(1)

    loss = lambda o, _: (0.5 * (o[0] ** 2).sum(1) + o[1]).mean()  # noqa: E731
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
        f = lambda scale: self.f(torch.cat([x * scale, scale.log()], 1)) * scale + x * (1 - scale)  # noqa: E731
        return f(s), f(less).detach()

    data = [((torch.randn(n, 4), torch.rand(n, 1) / 2 + 0.4, torch.rand(n, 1) / 4 + 0.1), torch.zeros(n)) for n in (8, 4)]
    return Example(Forward(forward, f=mlp(5, 4, 16, nn.SiLU)), lambda o, _: ((o[0] - o[1]) ** 2 + 1e-3).sqrt().mean(), data)


@diffusion.case()
def sampler() -> Example:
    """A differentiable sampler of four steps."""

    def forward(self: Any, x: Tensor) -> Tensor:
        for k in range(4):
            t = x.new_full((len(x), 1), 1 - k / 4)
            x = x - 0.25 * self.f(torch.cat([x, t], 1))
        return x

    return Example(Forward(forward, f=mlp(4, 3)), MSE, [(torch.randn(n, 3), torch.randn(n, 3)) for n in (8, 4)])


# ------------------------------------------------------------------ flows
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
        pick = lambda table, at: table.gather(-1, at)[..., 0]  # noqa: E731
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
    model = Forward(lambda self, x: distributions.Normal(self.a(x)[:, 0], F.softplus(self.b(x)[:, 0]) + 1e-3), a=mlp(4, 1), b=mlp(4, 1))

    def moments(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
        made = module(batch[0])
        return made.loc, made.scale

    return Example(
        model, lambda d, y: -d.log_prob(y).mean(), [(torch.randn(n, 4), torch.randn(n)) for n in (8, 4)],
        outputs=moments, criterion=lambda o, b: -distributions.Normal(*o).log_prob(b[1]).mean(),
    )


@flows.case()
def mixture_of_distributions() -> Example:
    """A mixture by MixtureSameFamily inside the loss."""

    def loss(o: Tensor, y: Tensor) -> Tensor:
        weight, mean, scale = o.chunk(3, 1)
        parts = distributions.Normal(mean, F.softplus(scale) + 1e-2)
        return -distributions.MixtureSameFamily(distributions.Categorical(logits=weight), parts).log_prob(y).mean()

    return Example(mlp(4, 9), loss, [(torch.randn(n, 4), torch.randn(n)) for n in (8, 4)])
