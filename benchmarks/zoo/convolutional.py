"""Convolutional networks in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.case import Example, Family
from zoo.parts import CE, MSE, Forward, classes, head, images

convolutional = Family("convolutional")


@convolutional.case()
def lenet() -> Example:
    """LeNet-5, 256 images of 28x28 (the trace is chosen)."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 10),
    )
    return Example(model, CE, images(1, 28, 10, 256))


@convolutional.case()
def lenet_sigmoid() -> Example:
    """LeNet with sigmoids and mean pooling, two batches."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return Example(model, CE, images(1, 16, 10, 8, 5))


@convolutional.case()
def response_norm() -> Example:
    """AlexNet's local response normalisation, overlapping pooling."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.LocalResponseNorm(3), nn.MaxPool2d(3, 2), head(8, 5)
    )
    return Example(model, CE, images(3, 20, 5))


@convolutional.case()
def vgg_batch_norm() -> Example:
    """VGG blocks with batch norm."""
    layers, width = [], 3
    for out in (8, 8, 16):
        layers += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
        width = out
    return Example(nn.Sequential(*layers, head(16, 5)), CE, images(3, 16, 5, 6, 3))


class _Residual(nn.Module):
    def __init__(self, width: int, norm: Any) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.m, self.n = norm(width), norm(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.n(self.b(F.relu(self.m(self.a(x))))))


@convolutional.case()
def residual_batch_norm() -> Example:
    """Residual network of CIFAR's kind, 96 images."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), *(_Residual(16, nn.BatchNorm2d) for _ in range(2)), head(16, 10)
    )
    return Example(model, CE, images(3, 24, 10, 64, 32))


@convolutional.case()
def residual_group_norm() -> Example:
    """Residual network with group norm."""
    norm = lambda width: nn.GroupNorm(4, width)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *(_Residual(8, norm) for _ in range(2)), head(8, 5))
    return Example(model, CE, images(3, 10, 5))


@convolutional.case()
def dense_connections() -> Example:
    """Dense connections (DenseNet-40's blocks)."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return self.head(F.avg_pool2d(x, 2))

    widths = [8 + 4 * i for i in range(4)]
    model = Forward(
        forward,
        stem=nn.Conv2d(3, 8, 3, padding=1),
        norms=nn.ModuleList(nn.BatchNorm2d(w) for w in widths),
        layers=nn.ModuleList(nn.Conv2d(w, 4, 3, padding=1) for w in widths),
        head=head(24, 5),
    )
    return Example(model, CE, images(3, 10, 5))


@convolutional.case()
def separable() -> Example:
    """Depthwise separable convolutions with squeeze and excitation."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.hardswish(self.point(self.depth(self.stem(x))))
        return self.head(x * F.hardsigmoid(self.excite(x.mean((2, 3)))[..., None, None]))

    parts = {
        "stem": nn.Conv2d(3, 8, 3, 2, 1),
        "depth": nn.Conv2d(8, 8, 5, padding=2, groups=8),
        "point": nn.Conv2d(8, 16, 1),
    }
    excite = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16))
    return Example(Forward(forward, **parts, excite=excite, head=head(16, 5)), CE, images(3, 12, 5))


@convolutional.case()
def convnext_chosen() -> Example:
    """ConvNeXt blocks in plain PyTorch, permute and layer norm."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        for depth, norm, wide, narrow in zip(self.depths, self.norms, self.wides, self.narrows, strict=True):
            y = narrow(F.gelu(wide(norm(depth(x).permute(0, 2, 3, 1)))))
            x = x + 0.1 * y.permute(0, 3, 1, 2)
        return self.head(x)

    many = lambda make: nn.ModuleList(make() for _ in range(2))
    model = Forward(
        forward,
        stem=nn.Conv2d(3, 8, 4, 4),
        depths=many(lambda: nn.Conv2d(8, 8, 7, padding=3, groups=8)),
        norms=many(lambda: nn.LayerNorm(8)),
        wides=many(lambda: nn.Linear(8, 16)),
        narrows=many(lambda: nn.Linear(16, 8)),
        head=head(8, 5),
    )
    return Example(model, CE, images(3, 32, 5, 64))


@convolutional.case()
def three_dimensions() -> Example:
    """3-D convolutions, max pooling, PReLU."""
    model = nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1),
        nn.PReLU(6),
        nn.MaxPool3d(2),
        nn.Conv3d(6, 8, 3),
        nn.BatchNorm3d(8),
        nn.ELU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    return Example(model, CE, [(torch.randn(n, 1, 8, 8, 8), classes(3, n)) for n in (2, 1)])


@convolutional.case()
def one_dimension() -> Example:
    """Temporal convolutions, dilated and causal."""

    def forward(self: Any, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = F.elu(layer(F.pad(x, (2 * 2**i, 0)))) + (x if i else 0)
        return self.head(x[..., -1])

    layers = nn.ModuleList(nn.Conv1d(3 if i == 0 else 8, 8, 3, dilation=2**i) for i in range(3))
    model = Forward(forward, layers=layers, head=nn.Linear(8, 3))
    return Example(model, CE, [(torch.randn(n, 3, length), classes(3, n)) for n, length in ((4, 16), (2, 12))])


@convolutional.case()
def transposed() -> Example:
    """Convolutional autoencoder with transposed convolutions and instance norm."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1),
        nn.InstanceNorm2d(8, affine=True),
        nn.LeakyReLU(0.2),
        nn.Conv2d(8, 8, 4, 2, 1),
        nn.Tanh(),
        nn.ConvTranspose2d(8, 8, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(8, 1, 4, 2, 1),
        nn.Sigmoid(),
    )
    data = [torch.rand(n, 1, 12, 12) for n in (3, 2)]
    return Example(model, MSE, [(x, x) for x in data])


@convolutional.case()
def unpooling() -> Example:
    """Max pooling with indices and unpooling (SegNet)."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x, index = F.max_pool2d(torch.tanh(self.a(x)), 2, return_indices=True)
        return self.b(F.max_unpool2d(x, index, 2))

    model = Forward(forward, a=nn.Conv2d(1, 6, 3, padding=1), b=nn.Conv2d(6, 3, 3, padding=1))
    data = [(torch.randn(n, 1, 8, 8), classes(3, n, 8, 8)) for n in (2, 1)]
    return Example(model, CE, data)


@convolutional.case()
def super_resolution() -> Example:
    """Super-resolution: pixel shuffle, bicubic skip, Charbonnier loss."""
    model = Forward(
        lambda self, x: self.up(self.f(x)) + F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False),
        f=nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1)),
        up=nn.PixelShuffle(2),
    )
    loss = lambda o, y: ((o - y) ** 2 + 1e-4).sqrt().mean()
    return Example(model, loss, [(torch.rand(n, 3, 8, 8), torch.rand(n, 3, 16, 16)) for n in (2, 1)])


@convolutional.case()
def spatial_transformer() -> Example:
    """Spatial transformer: affine grid and grid_sample."""

    def forward(self: Any, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.where(x.flatten(1)).view(-1, 2, 3), x.shape, align_corners=False)
        return self.what(F.grid_sample(x, grid, align_corners=False).flatten(1))

    model = Forward(forward, where=nn.Linear(64, 6), what=nn.Linear(64, 4))
    with torch.no_grad():
        model.where.weight.mul_(0.1)
        model.where.bias.copy_(torch.tensor([1, 0, 0, 0, 1, 0.0]))
    return Example(model, CE, images(1, 8, 4))


@convolutional.case()
def pools() -> Example:
    """Lp pooling, adaptive max pooling, reflection and circular padding."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"),
        nn.Softplus(),
        nn.LPPool2d(2, 2),
        nn.ReflectionPad2d(1),
        nn.Conv2d(8, 8, 3),
        nn.Tanh(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    return Example(model, CE, images(3, 12, 5))


@convolutional.case()
def style() -> Example:
    """Gram matrices of features against those of a style (perceptual loss)."""
    fixed = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh()).requires_grad_(False)

    def forward(self: Any, x: Tensor) -> Tensor:
        z = self.fixed(self.f(x)).flatten(2)
        return z @ z.transpose(1, 2) / z.shape[-1]

    model = Forward(forward, f=nn.Conv2d(3, 3, 3, padding=1), fixed=fixed)
    return Example(model, MSE, [(torch.randn(n, 3, 10, 10), torch.randn(n, 6, 6)) for n in (3, 2)])


@convolutional.case()
def locally_connected() -> Example:
    """Locally connected layer by unfold."""

    def forward(self: Any, x: Tensor) -> Tensor:
        patches = F.unfold(x, 3, stride=2)
        return self.h(torch.tanh(torch.einsum("ncl,lco->nlo", patches, self.w)).flatten(1))

    model = Forward(forward, h=nn.Linear(16 * 4, 3))
    model.w = nn.Parameter(torch.randn(16, 27, 4) / 5)
    return Example(model, CE, images(3, 9, 3))


@convolutional.case()
def dynamic() -> Example:
    """Dynamic convolution: kernels mixed by attention for each sample."""

    def forward(self: Any, x: Tensor) -> Tensor:
        mix = self.attend(x.mean((2, 3))).softmax(1)
        weight = torch.einsum("nk,kocij->nocij", mix, self.kernels).flatten(0, 1)
        out = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight, padding=1, groups=len(x))
        return self.head(torch.tanh(out.view(len(x), -1, *x.shape[2:])))

    model = Forward(forward, attend=nn.Linear(3, 4), head=head(6, 3))
    model.kernels = nn.Parameter(torch.randn(4, 6, 3, 3, 3) / 5)
    return Example(model, CE, images(3, 8, 3))


@convolutional.case()
def involution() -> Example:
    """Group-equivariant convolution: one kernel in four rotations."""

    def forward(self: Any, x: Tensor) -> Tensor:
        turned = [F.conv2d(x, torch.rot90(self.w, k, (2, 3)), padding=1) for k in range(4)]
        return self.head(torch.tanh(torch.stack(turned).amax(0)))

    model = Forward(forward, head=head(6, 3))
    model.w = nn.Parameter(torch.randn(6, 3, 3, 3) / 5)
    return Example(model, CE, images(3, 8, 3))


@convolutional.case()
def text_cnn() -> Example:
    """Text CNN with padding_idx, pads unmasked, 64 texts of 40 words (the trace is chosen)."""

    def forward(self: Any, words: Tensor) -> Tensor:
        return self.h(F.gelu(self.c(self.embed(words).transpose(1, 2))).mean(2))

    model = Forward(
        forward, embed=nn.Embedding(2000, 96, padding_idx=0), c=nn.Conv1d(96, 96, 5, padding=2), h=nn.Linear(96, 4)
    )
    words = classes(2000, 64, 40)
    for i in range(64):
        words[i, 12 + i % 28 :] = 0
    return Example(model, CE, [(words, classes(4, 64))])


@convolutional.case()
def blurred() -> Example:
    """Gabor-like filters made of parameters, anti-aliased pooling."""

    def forward(self: Any, x: Tensor) -> Tensor:
        at = torch.linspace(-1, 1, 5, dtype=x.dtype)
        distance = at[:, None] ** 2 + at[None] ** 2
        wave = torch.cos(self.frequency[:, None, None] * at + self.phase[:, None, None])
        kernel = (wave * torch.exp(-distance * self.width.exp()[:, None, None]))[:, None]
        blur = x.new_ones(6, 1, 2, 2) / 4
        return self.head(F.conv2d(F.relu(F.conv2d(x, kernel)), blur, stride=2, groups=6))

    model = Forward(forward, head=head(6, 3))
    model.frequency, model.phase, model.width = (nn.Parameter(torch.randn(6)) for _ in range(3))
    return Example(model, CE, images(1, 12, 3))
