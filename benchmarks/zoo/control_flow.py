"""Control flow: PyTorch's operators for it, loops that end by values, implicit layers."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch._higher_order_ops as operators
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from zoo.case import Example, Family
from zoo.parts import CE, Forward, mlp, vectors

control = Family("control flow")


def _in_python(module: Any) -> nn.Module:
    """A model without the operators, through which PyTorch has no second derivatives."""
    module.operators = False
    return module


@control.case()
def cond() -> Example:
    """torch.cond on the sum of the inputs, parameters in its branches."""

    def forward(self: Any, x: Tensor) -> Tensor:
        branches = (lambda z: torch.tanh(self.a(z))), (lambda z: torch.sigmoid(self.a(z)))
        if self.operators:
            return self.b(torch.cond(x.sum() > 0, *branches, (x,)))
        return self.b(branches[0 if x.sum() > 0 else 1](x))

    model = Forward(forward, a=nn.Linear(8, 12), b=nn.Linear(12, 3), operators=True)
    return Example(model, CE, vectors(8, 3), plain=_in_python)


@control.case()
def while_loop() -> Example:
    """while_loop of a recurrent layer."""

    def forward(self: Any, x: Tensor) -> Tensor:
        n, h = torch.tensor(0), torch.tanh(self.a(x))
        step = lambda n, h: (n + 1, torch.tanh(self.c(h)))
        if self.operators:
            return self.b(operators.while_loop(lambda n, _: n < 3, step, (n, h))[1])
        for _ in range(3):
            n, h = step(n, h)
        return self.b(h)

    model = Forward(forward, a=nn.Linear(8, 6), c=nn.Linear(6, 6), b=nn.Linear(6, 3), operators=True)
    return Example(model, CE, vectors(8, 3), plain=_in_python)


@control.case()
def scan() -> Example:
    """scan over the positions of sequences."""

    def forward(self: Any, x: Tensor) -> Tensor:
        def step(h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.a(z) + self.c(h))
            return h, h * 2

        h, steps = x.new_zeros(len(x), 6), x.transpose(0, 1)
        if self.operators:
            return self.b(operators.scan(step, h, steps)[1].mean(0))
        found = []
        for z in steps:
            h, out = step(h, z)
            found.append(out)
        return self.b(torch.stack(found).mean(0))

    model = Forward(forward, a=nn.Linear(4, 6), c=nn.Linear(6, 6), b=nn.Linear(6, 3), operators=True)
    data = [(torch.randn(n, 5, 4), torch.randint(3, (n,))) for n in (4, 3)]
    return Example(model, CE, data, plain=_in_python)


@control.case()
def selective_checkpoint() -> Example:
    """Selective activation checkpointing by a policy."""

    def policy(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
        saved = operation == torch.ops.aten.addmm.default
        return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)

    def forward(self: Any, x: Tensor) -> Tensor:
        # They can be passed backward once only.
        return self.b(checkpoint(self.a, x, use_reentrant=False, context_fn=contexts) if self.operators else self.a(x))

    model = Forward(forward, a=mlp(8, 8), b=nn.Linear(8, 3), operators=True)
    return Example(model, CE, vectors(8, 3), plain=_in_python)


class _Root(torch.autograd.Function):
    """Root z of z^3 + z = a."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        z = torch.ones_like(a)
        for _ in range(60):
            z = z - (z**3 + z - a) / (3 * z**2 + 1)
        ctx.save_for_backward(z)
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return gradients[0] / (3 * z**2 + 1)


@control.case()
def implicit_root() -> Example:
    """A root by Newton's method as a Function, with its implicit derivative."""
    model = Forward(lambda self, x: self.b(_Root.apply(self.a(x))), a=nn.Linear(8, 6), b=nn.Linear(6, 3))
    return Example(model, CE, vectors(8, 3))


@control.case()
def adaptive_computation_time() -> Example:
    """Adaptive computation time: a recurrent cell until all samples halt."""

    def forward(self: Any, x: Tensor) -> Tensor:
        h, total, halted = torch.zeros_like(x), torch.zeros_like(x), x.new_zeros(len(x), 1)
        for step in range(5):
            h = self.cell(x, h)
            p = self.halt(h).sigmoid()
            weight = torch.where((halted + p > 0.99) | torch.tensor(step == 4), 1 - halted, p) * (halted < 0.99)
            total, halted = total + weight * h, halted + weight
            if bool((halted >= 0.99).all()):
                break
        return self.head(total)

    model = Forward(forward, cell=nn.GRUCell(8, 8), halt=nn.Linear(8, 1), head=nn.Linear(8, 3))
    return Example(model, CE, vectors(8, 3))


@control.case()
def early_exit() -> Example:
    """Early exit: samples of low confidence go through a second layer."""

    def forward(self: Any, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        out = self.first(h)
        unsure = out.softmax(-1).amax(-1) < 0.45
        found = out.clone()
        found[unsure] = self.second(torch.tanh(self.b(h[unsure])))
        return found

    parts = {"a": nn.Linear(8, 8), "first": nn.Linear(8, 3), "b": nn.Linear(8, 8), "second": nn.Linear(8, 3)}
    return Example(Forward(forward, **parts), CE, vectors(8, 3))


@control.case()
def sorted_activations() -> Example:
    """Sorted activations, medians, quantiles and running maxima."""

    def forward(self: Any, x: Tensor) -> Tensor:
        z = self.a(x)
        rows = z.view(len(x), 3, 3)
        picked = [rows.median(-1).values[:, :1], rows.quantile(0.3, -1)[:, 1:2], rows.kthvalue(2, -1).values[:, 2:]]
        return self.b(torch.cat([z.sort(-1).values, torch.cummax(F.gelu(z), 1).values, *picked], 1))

    return Example(Forward(forward, a=nn.Linear(8, 9), b=nn.Linear(21, 3)), CE, vectors(8, 3))
