"""Exit times of quadratics under stable and Gaussian noise, and tail indices of the gradient noise of a small network.

python docs/examples/exit_times.py [FOLDER]

Takes one to two minutes on one core.
"""
# ruff: noqa: T201

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec
from hesspec.plot.figure import new_figure, styled

noise = hesspec.noise
RUNS, RATE = 2_000, 0.1
STABLE, GAUSSIAN = {"alpha": 1.5, "scale": 0.03}, {"alpha": 2.0, "scale": 0.3}
BATCH, MINIBATCHES, LENGTH = 20, 4_000, 50


def exits(radius, curvature, seed, *, max_steps=1_000_000, **how):
    """Exit times from a quadratic in one dimension."""
    hessian = torch.tensor([[curvature]], dtype=torch.float64)
    return noise.first_exit_times(hessian, radius, learning_rate=RATE, runs=RUNS, max_steps=max_steps, seed=seed, **how)


def simulate():
    """Exit times against the radius and against the curvature."""
    by_radius = {
        "α = 1.5": {a: exits(a, 1.0, seed, **STABLE) for seed, a in enumerate((0.5, 0.7, 1.0, 1.4, 2.0))},
        "α = 2": {a: exits(a, 1.0, seed, **GAUSSIAN) for seed, a in enumerate((0.5, 0.7, 0.85, 1.0, 1.15, 1.3))},
    }
    by_curvature = {
        "α = 1.5": {c: exits(1.0, c, 10 + seed, **STABLE) for seed, c in enumerate((0.5, 1.0, 2.0, 4.0, 8.0))},
        # At a curvature of 2 about half of the runs are censored.
        "α = 2": {
            c: exits(1.0, c, 10 + seed, max_steps=100_000, **GAUSSIAN) for seed, c in enumerate((0.5, 1.0, 1.5, 2.0))
        },
    }
    return by_radius, by_curvature


def tell(by_radius, by_curvature, laws):
    """Print simulated times and those of the laws."""
    for what, results in (("radius", by_radius), ("curvature", by_curvature)):
        for label, series in results.items():
            print(f"{label}: {what}, mean exit time, its standard error, mean / law, deviation / mean, censored runs")
            for x, found in series.items():
                law = laws[what][label](x)
                mean = f"{found.mean:.5g} +- {found.standard_error:.2g}, {found.mean / law:.3f}"
                print(f"  {x:g}: {mean}, {found.variation:.3f}, {found.censored}")
    for label, series in by_radius.items():
        x, y = np.log(list(series)), np.log([found.mean for found in series.values()])
        spread = 1 / np.sqrt(RUNS)
        error = spread / np.sqrt(((x - x.mean()) ** 2).sum())
        print(f"{label}: slope of the log-log line {np.polyfit(x, y, 1)[0]:.3f} +- {error:.3f}")
        print(f"  local slopes {(np.diff(y) / np.diff(x)).round(2)}")


def networks():
    """Gradient noise of a network on digits at three moments of its training."""
    digits = load_digits()
    inputs, targets = torch.tensor(digits.data, dtype=torch.float32), torch.tensor(digits.target)
    inputs = (inputs - inputs.mean()) / inputs.std()
    torch.manual_seed(0)
    model, loss_fn = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)), nn.CrossEntropyLoss()
    optimizer, generator = torch.optim.SGD(model.parameters(), lr=0.1), torch.Generator().manual_seed(0)
    found = {}
    for step in range(1, 2_001):
        chosen = torch.randperm(len(inputs), generator=generator)[:BATCH]
        optimizer.zero_grad()
        loss_fn(model(inputs[chosen]), targets[chosen]).backward()
        optimizer.step()
        if step in (50, 600, 2_000):
            data = [(inputs, targets)]
            hessian = hesspec.Hessian(model, loss_fn, data)
            pairs = hesspec.eigenpairs(hessian, count=10, steps=96)
            found[step] = noise.gradient_noise(
                model, loss_fn, data, pairs, batch_size=BATCH, count=MINIBATCHES, bulk=20
            )
            print(f"step {step}, loss {hessian.risk:.3f}, {len(pairs.values)} eigenvectors")
            for name, each in found[step].tail_indices(LENGTH).items():
                curve = dict(zip(each.lengths.tolist(), each.alpha_curve.round(2).tolist(), strict=True))
                print(f"  {name}: alpha = {each.alpha:.3f} +- {each.standard_error:.3f}; by length {curve}")
            flat = noise.tail_index(found[step].projections, axis=None)
            print(f"  all directions flattened: {flat.alpha:.2f}")
    return found


def main(folder):
    """Simulate, measure, print and draw."""
    by_radius, by_curvature = simulate()
    laws = {
        "radius": {
            "α = 1.5": lambda a: noise.mean_exit_time(radius=a, **STABLE),
            "α = 2": lambda a: noise.mean_exit_time(radius=a, curvature=1.0, learning_rate=RATE, **GAUSSIAN),
        },
        "curvature": {
            "α = 1.5": lambda c: noise.mean_exit_time(radius=1.0, **STABLE),  # noqa: ARG005 - it does not matter
            "α = 2": lambda c: noise.mean_exit_time(radius=1.0, curvature=c, learning_rate=RATE, **GAUSSIAN),
        },
    }
    tell(by_radius, by_curvature, laws)
    trained = networks()
    with styled():
        figure = new_figure(11, 8.4)
        panels = figure.subplots(2, 2).ravel()
        noise.plot_mean_exit_times(by_radius, laws=laws["radius"], ax=panels[0])
        noise.plot_mean_exit_times(by_curvature, xlabel="curvature", laws=laws["curvature"], ax=panels[1])
        panels[0].set_title("Exit times at curvature 1")
        panels[1].set_title("Exit times at radius 1")
        trained[600].plot(ax=panels[2])
        panels[2].set_title("Gradient noise at step 600, blocks of 63")
        curves = {
            f"{name}, step {step:,}": each
            for step in (50, 600, 2_000)
            for name, each in trained[step].tail_indices(LENGTH).items()
        }
        noise.plot_tail_indices(curves, ax=panels[3])
    figure.savefig(folder / "exit-times.png", dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
