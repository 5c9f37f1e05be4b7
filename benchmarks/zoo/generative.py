"""Generative models: variational, adversarial, energies, autoregressive."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributions, nn
from torch.nn.utils import parametrizations

from zoo.case import Example, Family
from zoo.parts import Forward, classes, mlp

generative = Family("generative")


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
    draw = lambda _, mean: torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)).to(mean)
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
        rest = distributions.kl_divergence(
            posterior, distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
        )
        return self.d(posterior.loc + eps * posterior.scale), rest.sum(1)

    model = Forward(forward, e=mlp(10, 6), d=mlp(3, 10))
    loss = lambda o, y: (F.mse_loss(o[0], y, reduction="none").sum(1) + o[1]).mean()
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
        norm(nn.Conv2d(3, 6, 4, 2, 1)),
        nn.LeakyReLU(0.2),
        norm(nn.Conv2d(6, 8, 4, 2, 1)),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        norm(nn.Linear(32, 1)),
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

    loss = lambda o, y: (o[0] * y).mean() + 10 * ((o[1].norm(dim=1) - 1) ** 2).mean()
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

    model = nn.Sequential(
        Masked(1, 8, 3, strict=True), nn.ReLU(), Masked(8, 8, 3, strict=False), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    data = [classes(4, n, 6, 6) for n in (3, 2)]
    return Example(model, nn.CrossEntropyLoss(), [(x[:, None] / 4.0, x) for x in data])


@generative.case()
def masked_autoregressive() -> Example:
    """MADE: masked dense layers, Bernoulli."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return F.linear(
            F.relu(F.linear(x, self.a.weight * self.first, self.a.bias)), self.b.weight * self.second, self.b.bias
        )

    model = Forward(forward, a=nn.Linear(6, 18), b=nn.Linear(18, 6))
    order, hidden = torch.arange(6), torch.arange(18) % 5
    model.register_buffer("first", (hidden[:, None] >= order).float())
    model.register_buffer("second", (order[:, None] > hidden).float())
    return Example(model, nn.BCEWithLogitsLoss(), [(x, x) for x in (torch.rand(n, 6).round() for n in (8, 4))])


@generative.case()
def energy() -> Example:
    """Energy-based model: contrastive divergence with given negatives, energy regularised."""
    model = Forward(lambda self, x, y: (self.f(x)[:, 0], self.f(y)[:, 0]), f=mlp(6, 1, 16, nn.SiLU))
    loss = lambda o, _: (o[0] - o[1] + 0.1 * (o[0] ** 2 + o[1] ** 2)).mean()
    return Example(model, loss, [((torch.randn(n, 6), torch.randn(n, 6)), torch.zeros(n)) for n in (8, 4)])
