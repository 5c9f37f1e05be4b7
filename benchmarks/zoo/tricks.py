"""Tricks of training and of code that decide whether second derivatives come out right."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import hesspec
from zoo.case import Example, Family
from zoo.parts import CE, MSE, Forward, classes, mlp, vectors

tricks = Family("tricks")


def _old(wrap: Callable[..., nn.Module], *modules: nn.Module) -> list[nn.Module]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [wrap(module) for module in modules]


@tricks.case()
def weight_norm_hook() -> Example:
    """Weight norm by a hook."""
    a, b = _old(weight_norm, nn.Linear(8, 12), nn.Linear(12, 3))
    return Example(nn.Sequential(a, nn.Tanh(), b), CE, vectors(8, 3))


@tricks.case()
def weight_norm_hook_convolutions() -> Example:
    """Weight norm by a hook, dilated convolutions."""
    convolutions = _old(weight_norm, nn.Conv1d(4, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=2, dilation=2))
    model = nn.Sequential(convolutions[0], nn.ELU(), convolutions[1], nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3))
    return Example(model, CE, [(torch.randn(n, 4, 12), classes(3, n)) for n in (4, 2)])


@tricks.case()
def weight_norm_parametrised() -> Example:
    """Weight norm as a parametrisation."""
    a, b = parametrizations.weight_norm(nn.Linear(8, 12)), parametrizations.weight_norm(nn.Linear(12, 3))
    return Example(nn.Sequential(a, nn.Tanh(), b), CE, vectors(8, 3))


@tricks.case()
def spectral_norm_hook() -> Example:
    """Spectral norm by a hook."""
    a, b = _old(spectral_norm, nn.Linear(8, 16), nn.Linear(16, 1))
    data = [(torch.randn(n, 8), torch.rand(n, 1).round()) for n in (6, 3)]
    return Example(nn.Sequential(a, nn.LeakyReLU(0.2), b), nn.BCEWithLogitsLoss(), data)


@tricks.case()
def spectral_norm_parametrised() -> Example:
    """Spectral norm as a parametrisation."""
    a, b = parametrizations.spectral_norm(nn.Linear(8, 16)), parametrizations.spectral_norm(nn.Linear(16, 3))
    return Example(nn.Sequential(a, nn.Tanh(), b), CE, vectors(8, 3))


@tricks.case()
def orthogonal() -> Example:
    """Orthogonal parametrisation (matrix exponential)."""
    square = parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map="matrix_exp")
    return Example(nn.Sequential(square, nn.Tanh(), nn.Linear(6, 3)), CE, vectors(6, 3))


@tricks.case()
def pruned() -> Example:
    """Pruned layers with masks."""
    model = mlp(8, 3)
    prune.random_unstructured(model[0], "weight", amount=0.5)
    return Example(model, CE, vectors(8, 3))


@tricks.case()
def weight_standardised() -> Example:
    """Weight standardisation inside forward."""

    class Standard(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight
            weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
            return F.conv2d(x, weight, self.bias, padding=1)

    model = nn.Sequential(Standard(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    return Example(model, CE, [(torch.randn(n, 3, 8, 8), classes(3, n)) for n in (4, 2)])


def _checkpointed(*, reentrant: bool, first: bool) -> Callable[[], Example]:
    def build() -> Example:
        def forward(self: Any, x: Tensor) -> Tensor:
            x = x if first else self.start(x)
            return self.end(checkpoint(self.block, x, use_reentrant=reentrant) if self.saving else self.block(x))

        model = Forward(forward, start=nn.Linear(8, 8), block=mlp(8, 12), end=nn.Linear(12, 3), saving=True)
        if first:
            model.start.requires_grad_(False)

        def plainly(module: Any) -> nn.Module:
            module.saving = False
            return module

        return Example(model, CE, vectors(8, 3), plain=plainly)

    return build


tricks.add("checkpointing, not reentrant", _checkpointed(reentrant=False, first=False))
tricks.add("checkpointing, reentrant, first block", _checkpointed(reentrant=True, first=True))
tricks.add("checkpointing, reentrant, later block", _checkpointed(reentrant=True, first=False))


@tricks.case()
def checkpoint_of_sequence() -> Example:
    """Checkpointing of a sequence in segments."""
    model = Forward(
        lambda self, x: self.end(checkpoint_sequential(self.layers, 2, x, use_reentrant=False)),
        layers=nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4))),
        end=nn.Linear(8, 3),
    )
    return Example(model, CE, vectors(8, 3))


class _SquareOldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class _SquareOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class _SquareWithContext(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * grad

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * tangent


class _SwishNumPy(torch.autograd.Function):
    """An extension's kernel, as far as PyTorch can see: both passes leave it for NumPy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        a = x.detach().numpy()
        import numpy as np  # noqa: PLC0415

        return torch.from_numpy((a / (1 + np.exp(-a))).astype(a.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        import numpy as np  # noqa: PLC0415

        a = ctx.saved_tensors[0].detach().numpy()
        s = 1 / (1 + np.exp(-a))
        return torch.from_numpy(((s + a * s * (1 - s)) * grad.detach().numpy()).astype(a.dtype))


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return grad


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return -grad


def _function(apply: Callable[[Tensor], Tensor]) -> Callable[[], Example]:
    def build() -> Example:
        model = Forward(lambda self, x: self.b(apply(torch.tanh(self.a(x)))), a=nn.Linear(8, 12), b=nn.Linear(12, 3))
        return Example(model, CE, vectors(8, 3))

    return build


tricks.add("Function, old style", _function(_SquareOldStyle.apply))
tricks.add("Function, once_differentiable", _function(_SquareOnce.apply))
tricks.add("Function with setup_context and jvp", _function(_SquareWithContext.apply))
tricks.add("Function that leaves PyTorch for NumPy", _function(_SwishNumPy.apply))
tricks.add("straight-through rounding", _function(lambda x: _Round.apply(4 * x) / 4))


@tricks.case()
def gradient_reversal() -> Example:
    """Gradient reversal (domain-adversarial)."""

    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.tanh(self.f(x))
        return self.c(z), self.d(_Reverse.apply(z))

    model = Forward(forward, f=nn.Linear(8, 12), c=nn.Linear(12, 3), d=nn.Linear(12, 2))
    data = [(torch.randn(n, 8), (classes(3, n), classes(2, n))) for n in (8, 4)]
    return Example(model, lambda o, y: F.cross_entropy(o[0], y[0]) + F.cross_entropy(o[1], y[1]), data)


@tricks.case()
def hook_that_scales() -> Example:
    """A hook on an activation that halves its gradient."""

    def forward(self: Any, x: Tensor) -> Tensor:
        z = torch.tanh(self.a(x))
        if z.requires_grad:
            z.register_hook(lambda grad: 0.5 * grad)
        return self.b(z)

    return Example(Forward(forward, a=nn.Linear(8, 12), b=nn.Linear(12, 3)), CE, vectors(8, 3))


@tricks.case()
def frozen_by_no_grad() -> Example:
    """A backbone under no_grad whose parameters require a gradient."""

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = self.a(x)
        return self.b(z)

    return Example(Forward(forward, a=mlp(8, 12), b=nn.Linear(12, 3)), CE, vectors(8, 3))


@tricks.case()
def frozen_properly() -> Example:
    """A backbone without gradients, under no_grad."""

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = self.a(x)
        return self.b(z)

    return Example(Forward(forward, a=mlp(8, 12).requires_grad_(False), b=mlp(12, 3)), CE, vectors(8, 3))


@tricks.case()
def detached_statistic() -> Example:
    """Activations divided by a detached maximum."""
    model = Forward(lambda self, x: self.b(self.a(x) / self.a(x).abs().amax(1, keepdim=True).detach()), a=nn.Linear(8, 12), b=mlp(12, 3))
    return Example(model, CE, vectors(8, 3))


@tricks.case()
def running_statistic_without_gradient() -> Example:
    """A statistic of the inputs under no_grad, which parameters do not reach."""

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.std(0) + 1
        return self.f(x / scale)

    return Example(Forward(forward, f=mlp(8, 3)), CE, vectors(8, 3))


@tricks.case()
def autocast_inside() -> Example:
    """autocast to bfloat16 inside forward."""

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.lowered):
            return self.f(x).float()

    def exactly(module: Any) -> nn.Module:
        module.lowered = False
        return module

    return Example(Forward(forward, f=mlp(8, 3, 24, nn.GELU), lowered=True), CE, vectors(8, 3), plain=exactly)


@tricks.case()
def lora() -> Example:
    """LoRA: frozen layers with trained low-rank updates."""

    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base.requires_grad_(False)
            self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + 2 * self.up(self.down(x))

    model = nn.Sequential(Adapted(nn.Linear(8, 16)), nn.GELU(), Adapted(nn.Linear(16, 3)))
    return Example(model, CE, vectors(8, 3))


@tricks.case()
def lora_on_bfloat16() -> Example:
    """LoRA in float32 on a frozen base in bfloat16."""

    def forward(self: Any, x: Tensor) -> Tensor:
        z = self.base(x.bfloat16()).float()
        return self.head(torch.tanh(z + self.up(self.down(x))))

    model = Forward(
        forward, base=nn.Linear(8, 16).bfloat16().requires_grad_(False), down=nn.Linear(8, 2), up=nn.Linear(2, 16), head=nn.Linear(16, 3)
    )
    return Example(model, CE, vectors(8, 3))


@tricks.case()
def tied() -> Example:
    """Embedding and head share their weights."""

    def forward(self: Any, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.f(self.embed(words))))

    model = Forward(forward, embed=nn.Embedding(20, 8), f=nn.Linear(8, 8), head=nn.Linear(8, 20, bias=False))
    model.head.weight = model.embed.weight
    data = [(classes(20, n, 5), classes(20, n, 5)) for n in (4, 2)]
    return Example(model, lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten()), data)


def _tied_by(name: str) -> Callable[[], Example]:
    def build() -> Example:
        example = tied()
        example.options = {"params": [name]}
        example.selected = lambda parameter: parameter == "embed.weight"
        return example

    return build


tricks.add("tied weights selected by their first name", _tied_by("embed.weight"))
tricks.add("tied weights selected by their second name", _tied_by("head.weight"))


@tricks.case()
def shared_layer() -> Example:
    """One layer applied four times."""

    def forward(self: Any, x: Tensor) -> Tensor:
        for _ in range(4):
            x = torch.tanh(self.f(x))
        return self.h(x)

    return Example(Forward(forward, f=nn.Linear(8, 8), h=nn.Linear(8, 3)), CE, vectors(8, 3))


@tricks.case()
def complex_parameters() -> Example:
    """Complex parameters: a spectral layer."""

    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 5, dtype=torch.complex64) / 4)

        def forward(self, x: Tensor) -> Tensor:
            modes = torch.fft.rfft(x)[..., :5]
            return torch.fft.irfft(torch.einsum("bim,iom->bom", modes, self.weight), n=x.shape[-1])

    model = nn.Sequential(nn.Conv1d(1, 4, 1), Spectral(), nn.GELU(), nn.Conv1d(4, 1, 1))
    return Example(model, MSE, [(torch.randn(n, 1, 16), torch.randn(n, 1, 16)) for n in (3, 2)])


@tricks.case()
def complex_layer() -> Example:
    """Complex dense layers, the modulus as the output."""
    linear = nn.Linear(6, 8, dtype=torch.complex64), nn.Linear(8, 3, dtype=torch.complex64)
    model = Forward(lambda self, x: self.b(torch.tanh(self.a(x.to(self.a.weight.dtype)))).abs(), a=linear[0], b=linear[1])
    return Example(model, CE, vectors(6, 3))


@tricks.case()
def sparse_embedding() -> Example:
    """Embedding with sparse gradients."""
    model = nn.Sequential(nn.Embedding(30, 6, sparse=True), nn.Flatten(), mlp(18, 3))
    return Example(model, CE, [(classes(30, n, 3), classes(3, n)) for n in (6, 3)])


@tricks.case()
def embedding_max_norm() -> Example:
    """Embedding with max_norm (rows renormalised in place)."""
    model = nn.Sequential(nn.Embedding(30, 6, max_norm=1.0), nn.Flatten(), mlp(18, 3))
    with torch.no_grad():
        model(torch.arange(30).view(10, 3))
    return Example(model, CE, [(classes(30, n, 3), classes(3, n)) for n in (6, 3)])


@tricks.case()
def embedding_by_frequency() -> Example:
    """Embedding with scale_grad_by_freq."""
    model = nn.Sequential(nn.Embedding(30, 6, scale_grad_by_freq=True), nn.Flatten(), mlp(18, 3))
    return Example(model, CE, [(classes(30, n, 3), classes(3, n)) for n in (6, 3)])


@tricks.case()
def cached_table() -> Example:
    """A table cached on the module by its first forward pass."""

    def forward(self: Any, words: Tensor) -> Tensor:
        x = self.embed(words)
        if self.table is None or len(self.table) < words.shape[1]:
            position = torch.arange(words.shape[1], dtype=x.dtype)[:, None]
            self.table = torch.sin(position * torch.arange(1, 9, dtype=x.dtype) / 8)
        return self.head(torch.tanh(x + self.table[: words.shape[1]]).mean(1))

    model = Forward(forward, embed=nn.Embedding(20, 8), head=nn.Linear(8, 3), table=None)
    return Example(model, CE, [(classes(20, n, t), classes(3, n)) for n, t in ((4, 4), (3, 6))])


@tricks.case()
def cached_parameter_product() -> Example:
    """A product of parameters cached in evaluation mode by the first forward pass."""

    def forward(self: Any, x: Tensor) -> Tensor:
        if self.training or self.kept is None:
            self.kept = self.table[:, self.index]
        return self.head(torch.tanh(self.f(x) + self.kept.sum(1)))

    model = Forward(forward, f=nn.Linear(8, 4), head=nn.Linear(4, 3), kept=None)
    model.table = nn.Parameter(torch.randn(4, 5))
    model.index = torch.tensor([0, 2, 2, 4])
    return Example(model, CE, vectors(8, 3), plain=lambda module: module.train())


@tricks.case()
def table_in_dictionary() -> Example:
    """Masks cached in a dictionary by length."""

    def forward(self: Any, x: Tensor) -> Tensor:
        length = x.shape[1]
        if length not in self.masks:
            self.masks[length] = torch.full((length, length), float("-inf")).triu(1)
        q, k, v = self.f(x).chunk(3, -1)
        return self.head(((q @ k.transpose(1, 2) + self.masks[length].to(x)).softmax(-1) @ v).mean(1))

    model = Forward(forward, f=nn.Linear(6, 18), head=nn.Linear(6, 3), masks={})
    return Example(model, CE, [(torch.randn(n, t, 6), classes(3, n)) for n, t in ((4, 4), (3, 6))])


@tricks.case()
def in_place_inputs() -> Example:
    """A forward pass that normalises a copy of its inputs in place."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = x.clone()
        x.sub_(x.mean(1, keepdim=True)).div_(x.std(1, keepdim=True))
        y = self.a(x)
        y.mul_(2).add_(1)
        return self.b(F.relu_(y))

    return Example(Forward(forward, a=nn.Linear(8, 12), b=nn.Linear(12, 3)), CE, vectors(8, 3))


@tricks.case(sentence="the forward pass changes its inputs, so every pass is of other data")
def in_place_data() -> Example:
    """A forward pass that changes its inputs themselves."""
    model = Forward(lambda self, x: self.f(x.mul_(0.9)), f=mlp(8, 3))
    return Example(model, CE, vectors(8, 3))


@tricks.case()
def static_buffer() -> Example:
    """A result written into a buffer in place, slice by slice."""

    def forward(self: Any, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), 3, 6)
        for i in range(3):
            out[:, i] = torch.tanh(self.f(x) * (i + 1))
        return self.h(out.flatten(1))

    return Example(Forward(forward, f=nn.Linear(8, 6), h=nn.Linear(18, 3)), CE, vectors(8, 3))


@tricks.case(sentence="the forward pass changes what it computes, so there is no one loss")
def counting() -> Example:
    """A forward pass that counts its calls and scales by the parity."""

    def forward(self: Any, x: Tensor) -> Tensor:
        self.calls += 1
        return self.f(x) * (1 + 0.5 * (self.calls % 2))

    return Example(Forward(forward, f=mlp(8, 3), calls=0), CE, vectors(8, 3))


@tricks.case()
def batch_statistics() -> Example:
    """Batch norm in training mode, one full batch."""
    model = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 3))
    return Example(model, CE, vectors(8, 3, 16), {"batch_statistics": True}, train=True)


@tricks.case()
def norm_without_running_statistics() -> Example:
    """Batch norm without running statistics, in evaluation mode, one full batch."""
    model = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12, track_running_stats=False), nn.Tanh(), nn.Linear(12, 3))
    return Example(model, CE, vectors(8, 3, 16), {"batch_statistics": True})


@tricks.case(sentence="dropout is active")
def active_dropout() -> Example:
    """Dropout in training mode."""
    return Example(nn.Sequential(mlp(8, 8), nn.Dropout(0.5), nn.Linear(8, 3)), CE, vectors(8, 3), train=True)


@tricks.case(sentence="the forward pass draws new random numbers each time")
def noise() -> Example:
    """Noise drawn in forward from the global generator."""
    return Example(Forward(lambda self, x: self.f(x + torch.randn_like(x)), f=mlp(8, 3)), CE, vectors(8, 3))


@tricks.case()
def own_generator() -> Example:
    """Noise drawn in forward with a generator and seed of the model's own."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.f(x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x))

    return Example(Forward(forward, f=mlp(8, 3)), CE, vectors(8, 3))


@tricks.case()
def seeded_forward() -> Example:
    """Noise drawn in forward after torch.manual_seed."""

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return self.f(x + 0.1 * torch.randn_like(x))

    return Example(Forward(forward, f=mlp(8, 3)), CE, vectors(8, 3))


@tricks.case()
def rrelu() -> Example:
    """RReLU in evaluation mode."""
    return Example(mlp(8, 3, activation=nn.RReLU), CE, vectors(8, 3))


@tricks.case()
def recording_hook() -> Example:
    """A user's forward hook that records activations."""
    model, kept = mlp(8, 3), []
    model[1].register_forward_hook(lambda _, __, output: kept.append(output.detach()))

    def fakes() -> list[str]:
        strange = [type(tensor).__name__ for tensor in kept if type(tensor) is not Tensor]
        return [f"the hook's list holds a {name}" for name in strange[:1]]

    return Example(model, CE, vectors(8, 3), leaves_behind=fakes)


@tricks.case()
def changing_hook() -> Example:
    """A forward hook that changes the output of a layer."""
    model = mlp(8, 3)
    model[0].register_forward_hook(lambda _, __, output: 2 * output)
    return Example(model, CE, vectors(8, 3))


@tricks.case()
def parameters_in_list() -> Example:
    """Parameters kept in a ParameterList and a ParameterDict."""

    def forward(self: Any, x: Tensor) -> Tensor:
        for weight in self.list:
            x = torch.tanh(x @ weight)
        return x @ self.dict["head"]

    model = Forward(forward, list=nn.ParameterList([torch.randn(8, 8) / 3 for _ in range(2)]))
    model.dict = nn.ParameterDict({"head": nn.Parameter(torch.randn(8, 3) / 3)})
    return Example(model, CE, vectors(8, 3))


@tricks.case()
def views_as_parameters() -> Example:
    """Parameters that are views of one flat tensor, one of them transposed."""
    model, flat = mlp(8, 3), torch.randn(12, 24)
    model[0].weight = nn.Parameter(flat[:8, :16].T)
    return Example(model, CE, vectors(8, 3))


@tricks.case()
def unused_parameters() -> Example:
    """Parameters that the forward pass never touches."""
    return Example(Forward(lambda self, x: self.f(x), f=mlp(8, 3), spare=nn.Linear(4, 4)), CE, vectors(8, 3))


@tricks.case()
def selected_layer() -> Example:
    """The parameters of one layer, by a pattern."""
    return Example(mlp(8, 3), CE, vectors(8, 3), {"params": ["2.*"]}, selected=lambda name: name.startswith("2."))


@tricks.case()
def flattened_convolution() -> Example:
    """view behind a convolution on channels-last images."""
    model = Forward(lambda self, x: self.h(self.c(x).view(len(x), -1)), c=nn.Conv2d(3, 4, 3), h=nn.Linear(4 * 36, 3))
    return Example(model, CE, [(torch.randn(n, 3, 8, 8), classes(3, n)) for n in (4, 2)])


@tricks.case()
def channels_last() -> Example:
    """A model and images in channels-last memory format."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    images = [(torch.randn(n, 3, 10, 10).to(memory_format=torch.channels_last), classes(3, n)) for n in (4, 2)]
    return Example(model.to(memory_format=torch.channels_last), CE, images)


@tricks.case()
def inference_mode_around() -> Example:
    """hesspec called under inference_mode."""
    return Example(mlp(8, 3), CE, vectors(8, 3), surroundings=torch.inference_mode)


@tricks.case()
def no_grad_around() -> Example:
    """hesspec called under no_grad."""
    return Example(mlp(8, 3), CE, vectors(8, 3), surroundings=torch.no_grad)


@tricks.case()
def inference_inputs() -> Example:
    """Inputs that were made under inference_mode."""
    with torch.inference_mode():
        data = vectors(8, 3)
    copies = [(x.clone(), y.clone()) for x, y in data]
    return Example(mlp(8, 3), CE, data, batches=copies)


@tricks.case()
def gradients_at_hand() -> Example:
    """Parameters that hold gradients of a training step."""
    model, data = mlp(8, 3), vectors(8, 3)
    CE(model(data[0][0]), data[0][1]).backward()
    return Example(model, CE, data)


@tricks.case()
def ensemble_by_vmap() -> Example:
    """An ensemble by torch.func.vmap and functional_call."""

    def forward(self: Any, x: Tensor) -> Tensor:
        one = lambda weights: torch.func.functional_call(self.skeleton[0], weights, (x,))  # noqa: E731
        return torch.func.vmap(one)({name.replace("_", "."): value for name, value in self.stacked.items()}).mean(0)

    members = [mlp(8, 3) for _ in range(3)]
    weights, _ = torch.func.stack_module_state(members)
    stacked = nn.ParameterDict({name.replace(".", "_"): nn.Parameter(value.detach()) for name, value in weights.items()})
    skeleton = [copy.deepcopy(members[0]).to("meta")]
    model = Forward(forward, stacked=stacked)
    model.skeleton = skeleton
    return Example(model, CE, vectors(8, 3))


@tricks.case()
def closure_of_anything() -> Example:
    """hesspec.closure on batches of any structure."""
    data = [{"x": torch.randn(n, 8), "y": classes(3, n), "id": f"batch {n}"} for n in (8, 4)]
    return Example(
        mlp(8, 3), hesspec.closure(lambda model, b: F.cross_entropy(model(b["x"]), b["y"])), data,
        outputs=lambda model, b: model(b["x"]), criterion=lambda o, b: F.cross_entropy(o, b["y"]), weight=lambda b: len(b["y"]),
    )
