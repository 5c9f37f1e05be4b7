"""Code that decides whether second derivatives come out right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from zoo.case import Example, Family
from zoo.parts import CE, Forward, classes, mlp, vectors

autograd = Family("autograd")


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


autograd.add("checkpointing, not reentrant", _checkpointed(reentrant=False, first=False))
autograd.add("checkpointing, reentrant, first block", _checkpointed(reentrant=True, first=True))
autograd.add("checkpointing, reentrant, later block", _checkpointed(reentrant=True, first=False))


@autograd.case()
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
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:  # noqa: ARG004 - PyTorch passes it by name
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
        return torch.from_numpy((a / (1 + np.exp(-a))).astype(a.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        a = ctx.saved_tensors[0].detach().numpy()
        s = 1 / (1 + np.exp(-a))
        return torch.from_numpy(((s + a * s * (1 - s)) * grad.detach().numpy()).astype(a.dtype))


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return grad


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return -grad


def _function(apply: Callable[[Tensor], Tensor]) -> Callable[[], Example]:
    def build() -> Example:
        model = Forward(lambda self, x: self.b(apply(torch.tanh(self.a(x)))), a=nn.Linear(8, 12), b=nn.Linear(12, 3))
        return Example(model, CE, vectors(8, 3))

    return build


autograd.add("Function, old style", _function(_SquareOldStyle.apply))
autograd.add("Function, once_differentiable", _function(_SquareOnce.apply))
autograd.add("Function with setup_context and jvp", _function(_SquareWithContext.apply))
autograd.add("Function that leaves PyTorch for NumPy", _function(_SwishNumPy.apply))
autograd.add("straight-through rounding", _function(lambda x: _Round.apply(4 * x) / 4))


@autograd.case()
def gradient_reversal() -> Example:
    """Gradient reversal (domain-adversarial)."""

    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.tanh(self.f(x))
        return self.c(z), self.d(_Reverse.apply(z))

    model = Forward(forward, f=nn.Linear(8, 12), c=nn.Linear(12, 3), d=nn.Linear(12, 2))
    data = [(torch.randn(n, 8), (classes(3, n), classes(2, n))) for n in (8, 4)]
    return Example(model, lambda o, y: F.cross_entropy(o[0], y[0]) + F.cross_entropy(o[1], y[1]), data)


@autograd.case()
def hook_that_scales() -> Example:
    """A hook on an activation that halves its gradient."""

    def forward(self: Any, x: Tensor) -> Tensor:
        z = torch.tanh(self.a(x))
        if z.requires_grad:
            z.register_hook(lambda grad: 0.5 * grad)
        return self.b(z)

    return Example(Forward(forward, a=nn.Linear(8, 12), b=nn.Linear(12, 3)), CE, vectors(8, 3))


@autograd.case()
def frozen_by_no_grad() -> Example:
    """A backbone under no_grad whose parameters require a gradient."""

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = self.a(x)
        return self.b(z)

    return Example(Forward(forward, a=mlp(8, 12), b=nn.Linear(12, 3)), CE, vectors(8, 3))


@autograd.case()
def frozen_properly() -> Example:
    """A backbone without gradients, under no_grad."""

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = self.a(x)
        return self.b(z)

    return Example(Forward(forward, a=mlp(8, 12).requires_grad_(False), b=mlp(12, 3)), CE, vectors(8, 3))


@autograd.case()
def detached_statistic() -> Example:
    """Activations divided by a detached maximum."""
    model = Forward(
        lambda self, x: self.b(self.a(x) / self.a(x).abs().amax(1, keepdim=True).detach()),
        a=nn.Linear(8, 12),
        b=mlp(12, 3),
    )
    return Example(model, CE, vectors(8, 3))


@autograd.case()
def running_statistic_without_gradient() -> Example:
    """A statistic of the inputs under no_grad, which parameters do not reach."""

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.std(0) + 1
        return self.f(x / scale)

    return Example(Forward(forward, f=mlp(8, 3)), CE, vectors(8, 3))


@autograd.case()
def autocast_inside() -> Example:
    """autocast to bfloat16 inside forward."""

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.lowered):
            return self.f(x).float()

    def exactly(module: Any) -> nn.Module:
        module.lowered = False
        return module

    return Example(Forward(forward, f=mlp(8, 3, 24, nn.GELU), lowered=True), CE, vectors(8, 3), plain=exactly)
