"""Gradient descent and Adam at the edge of stability: a tanh network on 600 digits, full batch, a few minutes.

python docs/examples/edge_of_stability.py [FOLDER]
"""
# ruff: noqa: T201

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec

STEPS, EVERY, RATE = 4_000, 25, 2.5


def train(make_optimizer, inputs, targets):
    """Full-batch training with a monitor of its sharpness; the model and the monitor."""
    torch.manual_seed(0)
    layers = [nn.Linear(size, out, bias=False) for size, out in ((64, 12), (12, 12), (12, 10))]
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])
    loss_fn, optimizer = nn.MSELoss(), make_optimizer(model.parameters())
    monitor = hesspec.stability.monitor(model, loss_fn, [(inputs, targets)], optimizer, every=EVERY)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
        monitor(step)
    return model, monitor


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
    for name, make_optimizer in runs.items():
        model, monitor = train(make_optimizer, inputs, targets)
        run = monitor.result()
        late = run.ratios[run.steps > STEPS // 2]
        print(run)
        print(f"  ratio in the second half: mean {late.mean():.3f}, {late.min():.3f} to {late.max():.3f}")
        print(f"  largest ratio {run.ratios.max():.3f}; products of the first measurements {run.products[:5]}")
        run.plot().savefig(folder / f"edge-of-stability-{name}.png", dpi=110)
        if name == "gradient-descent":
            hessian = hesspec.Hessian(model, nn.MSELoss(), [(inputs, targets)])
            spectrum = hesspec.spectrum(hessian, steps=256)
            found = hesspec.stability.sharpness_dimension(spectrum, learning_rate=RATE)
            dense = torch.linalg.eigvalsh((hessian @ torch.eye(hessian.shape[0])).double()).numpy()
            exact = hesspec.stability.sharpness_dimension(dense, learning_rate=RATE)
            print(found)
            print(f"  from all {exact.dimension:,} eigenvalues: {exact.value:.1f}")
            print(f"  share of the expansion from lambda > 2/eta: {exact.sharp_share:.3f}")
            found.plot().savefig(folder / "sharpness-dimension.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
