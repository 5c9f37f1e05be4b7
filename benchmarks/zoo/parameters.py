"""Parameters of every kind: reparametrised, shared, complex, sparse, selected."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from zoo.case import Example, Family
from zoo.parts import CE, MSE, Forward, classes, mlp, vectors

parameters = Family("parameters")


def _old(wrap: Callable[..., nn.Module], *modules: nn.Module) -> list[nn.Module]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [wrap(module) for module in modules]


@parameters.case()
def weight_norm_hook() -> Example:
    """Weight norm by a hook."""
    a, b = _old(weight_norm, nn.Linear(8, 12), nn.Linear(12, 3))
    return Example(nn.Sequential(a, nn.Tanh(), b), CE, vectors(8, 3))


@parameters.case()
def weight_norm_hook_convolutions() -> Example:
    """Weight norm by a hook, dilated convolutions."""
    convolutions = _old(weight_norm, nn.Conv1d(4, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=2, dilation=2))
    model = nn.Sequential(
        convolutions[0], nn.ELU(), convolutions[1], nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    return Example(model, CE, [(torch.randn(n, 4, 12), classes(3, n)) for n in (4, 2)])


@parameters.case()
def weight_norm_parametrised() -> Example:
    """Weight norm as a parametrisation."""
    a, b = parametrizations.weight_norm(nn.Linear(8, 12)), parametrizations.weight_norm(nn.Linear(12, 3))
    return Example(nn.Sequential(a, nn.Tanh(), b), CE, vectors(8, 3))


@parameters.case()
def spectral_norm_hook() -> Example:
    """Spectral norm by a hook."""
    a, b = _old(spectral_norm, nn.Linear(8, 16), nn.Linear(16, 1))
    data = [(torch.randn(n, 8), torch.rand(n, 1).round()) for n in (6, 3)]
    return Example(nn.Sequential(a, nn.LeakyReLU(0.2), b), nn.BCEWithLogitsLoss(), data)


@parameters.case()
def spectral_norm_parametrised() -> Example:
    """Spectral norm as a parametrisation."""
    a, b = parametrizations.spectral_norm(nn.Linear(8, 16)), parametrizations.spectral_norm(nn.Linear(16, 3))
    return Example(nn.Sequential(a, nn.Tanh(), b), CE, vectors(8, 3))


@parameters.case()
def orthogonal() -> Example:
    """Orthogonal parametrisation (matrix exponential)."""
    square = parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map="matrix_exp")
    return Example(nn.Sequential(square, nn.Tanh(), nn.Linear(6, 3)), CE, vectors(6, 3))


@parameters.case()
def pruned() -> Example:
    """Pruned layers with masks."""
    model = mlp(8, 3)
    prune.random_unstructured(model[0], "weight", amount=0.5)
    return Example(model, CE, vectors(8, 3))


@parameters.case()
def weight_standardised() -> Example:
    """Weight standardisation inside forward."""

    class Standard(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight
            weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
            return F.conv2d(x, weight, self.bias, padding=1)

    model = nn.Sequential(
        Standard(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    return Example(model, CE, [(torch.randn(n, 3, 8, 8), classes(3, n)) for n in (4, 2)])


@parameters.case()
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


@parameters.case()
def lora_on_bfloat16() -> Example:
    """LoRA in float32 on a frozen base in bfloat16."""

    def forward(self: Any, x: Tensor) -> Tensor:
        z = self.base(x.bfloat16()).float()
        return self.head(torch.tanh(z + self.up(self.down(x))))

    model = Forward(
        forward,
        base=nn.Linear(8, 16).bfloat16().requires_grad_(False),
        down=nn.Linear(8, 2),
        up=nn.Linear(2, 16),
        head=nn.Linear(16, 3),
    )
    return Example(model, CE, vectors(8, 3))


@parameters.case()
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


parameters.add("tied weights selected by their first name", _tied_by("embed.weight"))
parameters.add("tied weights selected by their second name", _tied_by("head.weight"))


@parameters.case()
def shared_layer() -> Example:
    """One layer applied four times."""

    def forward(self: Any, x: Tensor) -> Tensor:
        for _ in range(4):
            x = torch.tanh(self.f(x))
        return self.h(x)

    return Example(Forward(forward, f=nn.Linear(8, 8), h=nn.Linear(8, 3)), CE, vectors(8, 3))


@parameters.case()
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


@parameters.case()
def complex_layer() -> Example:
    """Complex dense layers, the modulus as the output."""
    linear = nn.Linear(6, 8, dtype=torch.complex64), nn.Linear(8, 3, dtype=torch.complex64)
    model = Forward(
        lambda self, x: self.b(torch.tanh(self.a(x.to(self.a.weight.dtype)))).abs(), a=linear[0], b=linear[1]
    )
    return Example(model, CE, vectors(6, 3))


@parameters.case()
def sparse_embedding() -> Example:
    """Embedding with sparse gradients."""
    model = nn.Sequential(nn.Embedding(30, 6, sparse=True), nn.Flatten(), mlp(18, 3))
    return Example(model, CE, [(classes(30, n, 3), classes(3, n)) for n in (6, 3)])


@parameters.case()
def embedding_max_norm() -> Example:
    """Embedding with max_norm (rows renormalised in place)."""
    model = nn.Sequential(nn.Embedding(30, 6, max_norm=1.0), nn.Flatten(), mlp(18, 3))
    with torch.no_grad():
        model(torch.arange(30).view(10, 3))
    return Example(model, CE, [(classes(30, n, 3), classes(3, n)) for n in (6, 3)])


@parameters.case(sentence="gradients are divided by the frequencies of words, and are not those of the loss")
def embedding_by_frequency() -> Example:
    """Embedding with scale_grad_by_freq."""
    model = nn.Sequential(nn.Embedding(30, 6, scale_grad_by_freq=True), nn.Flatten(), mlp(18, 3))
    return Example(model, CE, [(classes(30, n, 3), classes(3, n)) for n in (6, 3)])


@parameters.case()
def parameters_in_list() -> Example:
    """Parameters kept in a ParameterList and a ParameterDict."""

    def forward(self: Any, x: Tensor) -> Tensor:
        for weight in self.list:
            x = torch.tanh(x @ weight)
        return x @ self.dict["head"]

    model = Forward(forward, list=nn.ParameterList([torch.randn(8, 8) / 3 for _ in range(2)]))
    model.dict = nn.ParameterDict({"head": nn.Parameter(torch.randn(8, 3) / 3)})
    return Example(model, CE, vectors(8, 3))


@parameters.case()
def views_as_parameters() -> Example:
    """Parameters that are views of one flat tensor, one of them transposed."""
    model, flat = mlp(8, 3), torch.randn(12, 24)
    model[0].weight = nn.Parameter(flat[:8, :16].T)
    return Example(model, CE, vectors(8, 3))


@parameters.case()
def unused_parameters() -> Example:
    """Parameters that the forward pass never touches."""
    return Example(Forward(lambda self, x: self.f(x), f=mlp(8, 3), spare=nn.Linear(4, 4)), CE, vectors(8, 3))


@parameters.case()
def selected_layer() -> Example:
    """The parameters of one layer, by a pattern."""
    return Example(mlp(8, 3), CE, vectors(8, 3), {"params": ["2.*"]}, selected=lambda name: name.startswith("2."))


@parameters.case()
def flattened_convolution() -> Example:
    """view behind a convolution on channels-last images."""
    model = Forward(lambda self, x: self.h(self.c(x).view(len(x), -1)), c=nn.Conv2d(3, 4, 3), h=nn.Linear(4 * 36, 3))
    return Example(model, CE, [(torch.randn(n, 3, 8, 8), classes(3, n)) for n in (4, 2)])


@parameters.case()
def channels_last() -> Example:
    """A model and images in channels-last memory format."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    images = [(torch.randn(n, 3, 10, 10).to(memory_format=torch.channels_last), classes(3, n)) for n in (4, 2)]
    return Example(model.to(memory_format=torch.channels_last), CE, images)


@parameters.case()
def ensemble_by_vmap() -> Example:
    """An ensemble by torch.func.vmap and functional_call."""

    def forward(self: Any, x: Tensor) -> Tensor:
        one = lambda weights: torch.func.functional_call(self.skeleton[0], weights, (x,))
        return torch.func.vmap(one)({name.replace("_", "."): value for name, value in self.stacked.items()}).mean(0)

    members = [mlp(8, 3) for _ in range(3)]
    weights, _ = torch.func.stack_module_state(members)
    stacked = nn.ParameterDict(
        {name.replace(".", "_"): nn.Parameter(value.detach()) for name, value in weights.items()}
    )
    skeleton = [copy.deepcopy(members[0]).to("meta")]
    model = Forward(forward, stacked=stacked)
    model.skeleton = skeleton
    return Example(model, CE, vectors(8, 3))
