"""Models inside something else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from zoo.case import Example, Family
from zoo.parts import CE, Forward, classes, mlp, vectors

wrappers = Family("wrappers")


def _original(module: Any) -> nn.Module:
    return module._orig_mod  # noqa: SLF001 - PyTorch's own name for it


@wrappers.case(limit=200)
def compiled_by_inductor() -> Example:
    """torch.compile with inductor."""
    return Example(torch.compile(mlp(8, 3, 16, nn.GELU)), CE, vectors(8, 3), plain=_original)


@wrappers.case()
def compiled() -> Example:
    """torch.compile with aot_eager."""
    return Example(torch.compile(mlp(8, 3), backend="aot_eager"), CE, vectors(8, 3), plain=_original)


@wrappers.case()
def compiled_and_called() -> Example:
    """torch.compile with aot_eager, called before."""
    model, data = torch.compile(mlp(8, 3), backend="aot_eager"), vectors(8, 3)
    CE(model(data[0][0]), data[0][1]).backward()
    model.zero_grad()
    return Example(model, CE, data, plain=_original)


@wrappers.case()
def compiled_in_place() -> Example:
    """model.compile() in place."""
    model = mlp(8, 3)
    model.compile(backend="aot_eager")

    def uncompiled(module: Any) -> nn.Module:
        module._compiled_call_impl = None  # noqa: SLF001 - what compile() sets
        return module

    return Example(model, CE, vectors(8, 3), plain=uncompiled)


@wrappers.case()
def compiled_layer() -> Example:
    """One compiled layer inside a model."""
    model = nn.Sequential(torch.compile(nn.Linear(8, 12), backend="aot_eager"), nn.Tanh(), nn.Linear(12, 3))

    def uncompiled(module: Any) -> nn.Module:
        module[0] = _original(module[0])
        return module

    return Example(model, CE, vectors(8, 3), plain=uncompiled)


def _swish(x: Tensor) -> Tensor:
    return torch.sin(x) * x


@wrappers.case()
def compiled_function() -> Example:
    """A compiled function inside forward."""
    fast = torch.compile(_swish, backend="aot_eager")
    model = Forward(
        lambda self, x: self.b((_swish if self.plainly else fast)(self.a(x))),
        a=nn.Linear(8, 12),
        b=nn.Linear(12, 3),
        plainly=False,
    )

    def uncompiled(module: Any) -> nn.Module:
        module.plainly = True
        return module

    return Example(model, CE, vectors(8, 3), plain=uncompiled)


@wrappers.case()
def data_parallel() -> Example:
    """nn.DataParallel."""
    return Example(nn.DataParallel(mlp(8, 3)), CE, vectors(8, 3))


@wrappers.case(sentence="TorchScript has no Python module to differentiate")
def scripted() -> Example:
    """torch.jit.script."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Example(torch.jit.script(mlp(8, 3)), CE, vectors(8, 3))


@wrappers.case(sentence="TorchScript has no Python module to differentiate")
def traced() -> Example:
    """torch.jit.trace."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Example(torch.jit.trace(mlp(8, 3), torch.randn(4, 8)), CE, vectors(8, 3))


@wrappers.case()
def exported() -> Example:
    """torch.export."""
    data = vectors(8, 3, 12)
    return Example(torch.export.export(mlp(8, 3), (data[0][0],)).module(), CE, data, train=True)


@wrappers.case()
def graph_module() -> Example:
    """torch.fx GraphModule."""
    return Example(torch.fx.symbolic_trace(mlp(8, 3)), CE, vectors(8, 3))


@wrappers.case()
def averaged() -> Example:
    """AveragedModel (weight averaging)."""
    return Example(AveragedModel(mlp(8, 3)), CE, vectors(8, 3))


@wrappers.case(sentence="a lazy module has no weights yet")
def lazy() -> Example:
    """Lazy modules before their first call."""
    return Example(nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(3)), CE, vectors(8, 3))


@wrappers.case()
def lazy_called() -> Example:
    """Lazy modules after their first call."""
    model, data = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(3)), vectors(8, 3)
    model(data[0][0])
    return Example(model, CE, data)


@wrappers.case(sentence="nothing in the model requires a gradient")
def frozen() -> Example:
    """A model all of which is frozen."""
    return Example(mlp(8, 3).requires_grad_(False), CE, vectors(8, 3))


def _steps(loss_inside: bool) -> Callable[[], Example]:
    """A module in the style of Lightning: `training_step` and a forward."""

    def build() -> Example:
        class Step(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = mlp(8, 3)

            def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
                logits = self.network(x)
                return logits if y is None else F.cross_entropy(logits, y)

            def training_step(self, batch: Any) -> Tensor:
                return self(*batch)

        data = vectors(8, 3)
        if not loss_inside:
            return Example(Step(), CE, data)
        # The loss is what the model returns: linear in it, so that G is zero and a warning has to say so.
        return Example(
            Step(),
            lambda loss, _: loss,
            [((x, y), torch.zeros(len(x))) for x, y in data],
            outputs=lambda model, batch: model(batch[0][0]),
            criterion=lambda o, batch: F.cross_entropy(o, batch[0][1]),
        )

    return build


wrappers.add("a module with training_step, called for logits", _steps(loss_inside=False))
wrappers.add("a module that returns its loss", _steps(loss_inside=True))


@wrappers.case()
def siamese() -> Example:
    """One encoder called twice within a pair model."""
    model = Forward(
        lambda self, a, b: self.head((self.f(a) - self.f(b)).abs())[:, 0], f=mlp(8, 6), head=nn.Linear(6, 1)
    )
    data = [((torch.randn(n, 8), torch.randn(n, 8)), torch.rand(n).round()) for n in (8, 4)]
    return Example(model, nn.BCEWithLogitsLoss(), data)


@wrappers.case()
def ensemble() -> Example:
    """A mean over an ensemble in a ModuleList."""
    model = Forward(
        lambda self, x: torch.stack([m(x).softmax(1) for m in self.members]).mean(0).log(),
        members=nn.ModuleList(mlp(8, 3) for _ in range(3)),
    )
    return Example(model, F.nll_loss, vectors(8, 3), criterion=lambda o, batch: F.cross_entropy(o, batch[1]))


@wrappers.case()
def quantised_base() -> Example:
    """A frozen int8 base with a float head."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x @ (self.codes.to(x) * 0.01)))

    model = Forward(forward, head=nn.Linear(12, 3))
    model.register_buffer("codes", torch.randint(-127, 128, (8, 12), dtype=torch.int8))
    return Example(model, CE, vectors(8, 3))


@wrappers.case()
def hypernetwork() -> Example:
    """A hypernetwork that makes the weights of a layer."""

    def forward(self: Any, x: Tensor) -> Tensor:
        weight = self.maker(self.code).view(3, 8)
        return F.linear(x, weight)

    model = Forward(forward, maker=mlp(4, 24))
    model.code = nn.Parameter(torch.randn(4))
    return Example(model, CE, vectors(8, 3))


@wrappers.case()
def two_optimised_parts() -> Example:
    """Student and teacher in one module, the teacher frozen and detached."""
    model = Forward(
        lambda self, x: (self.student(x), self.teacher(x).detach()),
        student=mlp(8, 3),
        teacher=mlp(8, 3).requires_grad_(False),
    )
    data = [(torch.randn(n, 8), classes(3, n)) for n in (8, 4)]
    return Example(model, lambda o, y: F.cross_entropy(o[0], y) + F.mse_loss(o[0], o[1]), data)
