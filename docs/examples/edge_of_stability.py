"""Gradient descent and Adam at the edge of stability: a tanh network on 600 digits, full batch, a few minutes.

python docs/examples/edge_of_stability.py [FOLDER]
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
from hesspec.plot.figure import legend_above, new_figure, styled

STEPS, EVERY, RATE = 4_000, 25, 2.5
# Steps after which the sharpness dimension is measured, and Lanczos steps of each spectrum.
CHECKS, LANCZOS = (0, 100, 300, 1_000, 2_000, 4_000), 512


def train(make_optimizer, inputs, targets, look):
    """Full-batch training; returns the monitor of its sharpness, and calls `look(step, model)` after each step."""
    torch.manual_seed(0)
    layers = [nn.Linear(size, out, bias=False) for size, out in ((64, 12), (12, 12), (12, 10))]
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    loss_fn, optimizer = nn.MSELoss(), make_optimizer(model.parameters())
    monitor = hesspec.stability.monitor(model, loss_fn, [(inputs, targets)], optimizer, every=EVERY)
    look(0, model)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
        monitor(step)
        look(step, model)
    return monitor


def dimensions(model, inputs, targets):
    """Sharpness dimension from Lanczos steps, with its bracket, and from all eigenvalues."""
    hessian = hesspec.Hessian(model, nn.MSELoss(), [(inputs, targets)])
    found = hesspec.stability.sharpness_dimension(hesspec.spectrum(hessian, steps=LANCZOS), learning_rate=RATE)
    dense = torch.linalg.eigvalsh((hessian @ torch.eye(hessian.shape[0])).double()).numpy()
    return found, hesspec.stability.sharpness_dimension(dense, learning_rate=RATE)


def plot_dimensions(results, path):
    """Draw the sharpness dimension through training: estimate, bracket, and truth."""
    places = range(len(results))
    value, low, high = (np.array([getattr(found, name) for found, _ in results]) for name in ("value", "low", "high"))
    bars = np.clip([value - low, high - value], 0, None)
    with styled():
        figure = new_figure(7, 4)
        axes = figure.subplots()
        label = f"{LANCZOS} Lanczos steps, with bracket"
        estimate = axes.errorbar(places, value, yerr=bars, fmt="o", color=OKABE_ITO[0], capsize=4)
        (truth,) = axes.plot(places, [exact.value for _, exact in results], "x", color="black", markersize=9)
        axes.set_xticks(places, [f"{step:,}" for step in CHECKS])
        axes.set(xlabel="step of gradient descent", ylabel="sharpness dimension")
        axes.set_ylim(0, 1.05 * results[0][0].dimension)
        legend_above(figure, [truth, estimate], ["all eigenvalues", label])
    figure.savefig(path, dpi=100)


def main(folder):
    """Train, print what was found, and draw it."""
    digits = load_digits()
    inputs = torch.tensor(digits.data[:600], dtype=torch.float32)
    inputs = (inputs - inputs.mean()) / inputs.std()
    targets = nn.functional.one_hot(torch.tensor(digits.target[:600]), 10).float()
    runs = {
        "gradient-descent": lambda parameters: torch.optim.SGD(parameters, lr=RATE),
        "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    }
    results = []
    for name, make_optimizer in runs.items():

        def look(step, model, name=name):
            if name == "gradient-descent" and step in CHECKS:
                results.append(dimensions(model, inputs, targets))

        run = train(make_optimizer, inputs, targets, look).result()
        late = run.ratios[run.steps > STEPS // 2]
        print(run)
        print(f"  ratio in the second half: mean {late.mean():.3f}, {late.min():.3f} to {late.max():.3f}")
        print(f"  largest ratio {run.ratios.max():.3f}; products of the first measurements {run.products[:5]}")
        run.plot().savefig(folder / f"edge-of-stability-{name}.png", dpi=110)
    for step, (found, exact) in zip(CHECKS, results, strict=True):
        print(f"step {step:,}: {found.value:.1f}, {found.low:.1f} to {found.high:.1f}; exact {exact.value:.1f}")
        print(f"  share of the expansion from lambda > 2/eta: {exact.sharp_share:.3f}")
    plot_dimensions(results, folder / "sharpness-dimension.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
