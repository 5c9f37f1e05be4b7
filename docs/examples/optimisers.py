"""Where the steps of four optimisers go: a tanh network on digits, with the shares in the top eigenspace; a minute.

python docs/examples/optimisers.py [FOLDER]
"""
# ruff: noqa: T201

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec
from hesspec.plot import OKABE_ITO
from hesspec.plot.figure import new_figure, styled

STEPS, EVERY, BATCH, K = 400, 20, 128, 10


def muon(model):
    """Muon for hidden matrices, AdamW for the rest, with updates of the same size."""
    hidden, rest = ([parameter for _, parameter in group["params"]] for group in hesspec.optim.muon_groups(model))
    first = torch.optim.Muon(hidden, lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return [first, torch.optim.AdamW(rest, lr=0.01, weight_decay=0.0)]


def amuse(model):
    """AMUSE with the interpolation that its authors use for CIFAR-10."""
    groups = hesspec.optim.muon_groups(model)
    return [hesspec.optim.AMUSE(groups, lr=0.01, warmup_steps=STEPS // 20, beta=0.8, rho=0.3)]


OPTIMIZERS = {
    "SGD": lambda model: [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)],
    "AdamW": lambda model: [torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)],
    "Muon": muon,
    "AMUSE": amuse,
}


def train(make_optimizers, inputs, targets):
    """Steps that were measured, their loss on all data, and the dominant shares of gradient and update."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    loss_fn, optimizers = nn.CrossEntropyLoss(), make_optimizers(model)
    graphs = hesspec.GraphCache(points=2 * STEPS)
    measured = []
    for step in range(STEPS):
        chosen = torch.randint(len(targets), (BATCH,))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_fn(model(inputs[chosen]), targets[chosen]).backward()
        if step % EVERY == EVERY - 1:
            # At the point where the gradient is evaluated, before the step.
            hessian = hesspec.Hessian(model, loss_fn, [(inputs, targets)], graphs=graphs, verify=not measured)
            pairs = hesspec.eigenpairs(hessian, count=K, steps=60, progress=False)
            shares = hesspec.optim.dominant_share(optimizers, pairs, model)
            values = dict(zip(shares.names, shares.dominant().values, strict=True))
            measured.append((step, hessian.risk, values["gradient"], values["update"]))
        for optimizer in optimizers:
            optimizer.step()
    return np.array(measured).T, shares


def main(folder):
    """Train, print what was found, and draw it."""
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32)
    inputs, targets = (inputs - inputs.mean()) / inputs.std(), torch.tensor(digits.target)
    with styled():
        figure = new_figure(11, 4)
        figure.get_layout_engine().set(wspace=0.08)
        panels = figure.subplots(1, 3)
        for (name, make_optimizers), colour in zip(OPTIMIZERS.items(), OKABE_ITO, strict=False):
            (steps, losses, gradients, updates), shares = train(make_optimizers, inputs, targets)
            print(f"{name}: mean share of gradients {gradients.mean():.2f}, of updates {updates.mean():.2f}")
            for panel, values in zip(panels, (losses, gradients, updates), strict=True):
                panel.plot(steps, values, color=colour, linewidth=1.6, marker="o", markersize=3, label=name)
        print(shares)
        panels[0].set(ylabel="training loss (AMUSE: at y)", yscale="log")
        panels[1].set(ylabel="dominant share of the gradient", ylim=(0, 1))
        panels[2].set(ylabel="dominant share of the update", ylim=(0, 1))
        for panel in panels:
            panel.set_xlabel("step")
        panels[0].legend()
    figure.savefig(folder / "optimisers.png", dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
