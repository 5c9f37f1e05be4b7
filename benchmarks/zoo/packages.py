"""Models of packages that the other cases do without; each case is left out where its package is not installed."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from zoo.case import Example, Family
from zoo.parts import CE, MSE, Forward, classes, mlp, some_training, vectors

packages = Family("other packages")


def _gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1
        )
    )


def _adapted(kind: str, **settings: Any) -> Example:
    peft = importlib.import_module("peft")
    config = getattr(peft, kind)(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True, **settings)
    model = peft.get_peft_model(_gpt2(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    loss = lambda o, y: F.cross_entropy(o[:, :-1].flatten(0, 1), y[:, 1:].flatten())
    data = [({"input_ids": words}, words) for words in (classes(40, n, 6) for n in (2, 1))]
    return Example(
        model,
        lambda o, y: loss(o.logits, y),
        data,
        outputs=lambda m, b: m(**b[0]).logits,
        criterion=lambda o, b: loss(o, b[1]),
    )


packages.add("peft: LoRA on GPT-2", lambda: _adapted("LoraConfig", r=2), needs=("peft",))
packages.add("peft: DoRA on GPT-2", lambda: _adapted("LoraConfig", r=2, use_dora=True), needs=("peft",))


@packages.case(needs=("diffusers",), limit=150.0)
def diffusers_unet() -> Example:
    """diffusers: UNet2DModel, noise prediction."""
    diffusers = importlib.import_module("diffusers")
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    data = [
        ({"sample": torch.randn(n, 1, 8, 8), "timestep": torch.randint(0, 500, (n,))}, torch.randn(n, 1, 8, 8))
        for n in (2, 1)
    ]
    return Example(
        some_training(model),
        lambda o, y: F.mse_loss(o.sample, y),
        data,
        outputs=lambda m, b: m(**b[0]).sample,
        criterion=lambda o, b: F.mse_loss(o, b[1]),
    )


def _graphs(*, pairs: bool) -> Example:
    geometric = importlib.import_module("torch_geometric")
    nets, data = importlib.import_module("torch_geometric.nn"), geometric.data

    def forward(self: Any, g: Any) -> Tensor:
        x = torch.tanh(self.a(g.x, g.edge_index))
        return self.h(nets.global_mean_pool(F.elu(self.b(x, g.edge_index)), g.batch, g.num_graphs))

    model = Forward(forward, a=nets.GCNConv(5, 8), b=nets.GATConv(8, 6, heads=2, concat=False), h=nn.Linear(6, 3))
    made = [
        data.Batch.from_data_list(
            [data.Data(x=torch.randn(5, 5), edge_index=classes(5, 2, 12), y=classes(3, 1)) for _ in range(n)]
        )
        for n in (4, 4)
    ]
    batches = [(g, g.y) for g in made]
    return Example(model, CE, batches if pairs else made, batches=batches, outputs=lambda m, b: m(b[0]))


packages.add("torch_geometric: GCNConv and GATConv, pairs", lambda: _graphs(pairs=True), needs=("torch_geometric",))
packages.add("torch_geometric: batches with .y", lambda: _graphs(pairs=False), needs=("torch_geometric",))


def _ode(solver: str, method: str) -> Example:
    solve = getattr(importlib.import_module("torchdiffeq"), solver)

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = mlp(3, 3)

        def forward(self, _: Tensor, y: Tensor) -> Tensor:
            return self.f(y)

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.h(solve(self.slope, x, torch.linspace(0, 1, 3).to(x), method=method, rtol=1e-3, atol=1e-4)[-1])

    return Example(Forward(forward, slope=Slope(), h=nn.Linear(3, 2)), CE, vectors(3, 2, 6, 3))


packages.add("torchdiffeq: rk4", lambda: _ode("odeint", "rk4"), needs=("torchdiffeq",))
packages.add("torchdiffeq: dopri5, adaptive", lambda: _ode("odeint", "dopri5"), needs=("torchdiffeq",))
packages.add("torchdiffeq: dopri5 by its adjoint", lambda: _ode("odeint_adjoint", "dopri5"), needs=("torchdiffeq",))


@packages.case(needs=("accelerate",))
def accelerated() -> Example:
    """accelerate: a prepared model and loader."""
    accelerator = importlib.import_module("accelerate").Accelerator(cpu=True)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(10, 6), torch.randn(10, 2)), batch_size=4
    )
    model, prepared = accelerator.prepare(mlp(6, 2), loader)
    return Example(model, MSE, prepared)
