"""Fast Gauss-Newton steps compared with full Gauss-Newton steps, and iterations that eigenpairs save: digits, a minute.

python docs/examples/fast_gauss_newton.py [FOLDER]
"""
# ruff: noqa: T201

import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec
from hesspec.plot import OKABE_ITO
from hesspec.plot.figure import new_figure, styled

SAMPLES, CLASSES = 300, 10
LOSS = nn.CrossEntropyLoss()


class Shifted(nn.Module):
    """A linear head of fixed features, whose logits are shifted by given numbers for each sample."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, CLASSES).double()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features, shifts):
        """Logits."""
        return self.head(features) + shifts


def linear_head():
    """A linear head with zero weights, whose probabilities are all equal."""
    head = nn.Linear(64, CLASSES).double()
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def tanh_network(seed=0):
    """A network 64-32-10."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, CLASSES)).double()


def descend(model, inputs, targets, *, steps, rate):
    """Full-batch gradient descent."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        LOSS(model(inputs), targets).backward()
        optimizer.step()


def shifts_of(targets, sharpness):
    """Logits with p_y = 1/10 whose competitors are equal for a sharpness of 0, and few for a large one."""
    normal = torch.randn(len(targets), CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    others = (sharpness * normal).scatter(1, targets[:, None], -torch.inf)
    true = torch.logsumexp(others, 1, keepdim=True) - torch.log(torch.tensor(9.0))
    return others.scatter(1, targets[:, None], true)


def compare(inputs, targets):
    """Steps at initialisation and after 1,000 steps of gradient descent, for both models."""
    found = {}
    for name, model in (("linear", linear_head()), ("tanh", tanh_network())):
        found[f"{name}, initial"] = hesspec.optim.compare_steps(model, LOSS, [(inputs, targets)])
        descend(model, inputs, targets, steps=1_000, rate=0.5)
        found[f"{name}, trained"] = hesspec.optim.compare_steps(model, LOSS, [(inputs, targets)])
    return found


def concentrate(inputs, targets):
    """Relative error at a damping of 0.01 of the largest eigenvalue against the effective number of competitors."""
    found = []
    for sharpness in (0.0, 1.0, 2.0, 4.0, 8.0, 32.0):
        data = [((inputs, shifts_of(targets, sharpness)), targets)]
        steps = hesspec.optim.compare_steps(Shifted(), LOSS, data)
        found.append((steps.participation, steps.relative_errors[2]))
        print(f"  {steps.participation:.2f} competitors, share {steps.share:.3f}: relative error {found[-1][1]:.3f}")
    return found


def train(make, inputs, targets, *, steps):
    """Losses after 12 accepted steps and after all of them, and seconds for each step after the first."""
    for curvature in ("true-vs-rest", "full"):
        model = make()
        optimizer = hesspec.optim.FastGaussNewton(
            model, LOSS, damping=0.01, curvature=curvature, iterations=100, tolerance=1e-6
        )
        taken, start = [optimizer.step(inputs, targets)], time.process_time()
        while sum(step.accepted for step in taken) < steps:
            taken.append(optimizer.step(inputs, targets))
        seconds = (time.process_time() - start) / (len(taken) - 1)
        with torch.no_grad():
            loss = float(LOSS(model(inputs), targets))
        accepted = [step for step in taken if step.accepted]
        print(
            f"  {curvature}: loss {taken[0].loss:.3f}, {accepted[12].loss:.2e} after 12, {loss:.2e} after {steps} "
            f"accepted steps of {len(taken)}; {sum(step.iterations for step in taken) / len(taken):.0f} iterations, "
            f"{1e3 * seconds:.0f} ms each"
        )


def precondition(model, inputs, targets):
    """Iterations of hesspec.solve with and without eigenpairs."""
    gradient = torch.autograd.grad(LOSS(model(inputs), targets), list(model.parameters()))
    b = torch.cat([part.reshape(-1) for part in gradient])
    for kind in (hesspec.GaussNewton, hesspec.Hessian):
        matrix = kind(model, LOSS, [(inputs, targets)])
        pairs = hesspec.eigenpairs(matrix, count=64, steps=160)
        for factor in (1e-1, 1e-2, 1e-3):
            damping = factor * pairs.spectrum.norm
            counts = []
            for given in (None, pairs):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = hesspec.solve(
                        matrix, b, damping=damping, preconditioner=given, tolerance=1e-8, max_iterations=3_000
                    )
                counts.append(f"{found.iterations}" if found.residual <= 1e-8 else f"more than {found.iterations}")
            print(
                f"  {kind.__name__}, damping {factor:g}: {found.method} {counts[0]} -> {counts[1]} iterations with "
                f"{found.eigenpairs} pairs (eigenvalues {pairs.values[0]:.2g} to {pairs.values[-1]:.2g}); "
                f"error estimate {found.error_estimate / float(found.solution.norm()):.1e} of the norm"
            )


def main(folder):
    """Print what was found, and draw it."""
    digits = load_digits()
    inputs = torch.tensor(digits.data[:SAMPLES] / 16)
    targets = torch.tensor(digits.target[:SAMPLES])
    comparisons = compare(inputs, targets)
    for name, found in comparisons.items():
        print(name, found, sep="\n")
    print("concentration, p_y = 0.1, damping 0.01")
    concentration = concentrate(inputs, targets)
    print("training of the linear head")
    train(linear_head, inputs, targets, steps=20)
    for seed in range(3):
        print(f"training of the tanh network, seed {seed}")
        train(partial(tanh_network, seed), inputs, targets, steps=40)
    print("preconditioning, tanh network after 1,000 steps of gradient descent")
    model = tanh_network()
    descend(model, inputs, targets, steps=1_000, rate=0.5)
    precondition(model, inputs, targets)

    hesspec.optim.plot_steps(comparisons).savefig(folder / "fast-gauss-newton.png", dpi=90)
    with styled():
        figure = new_figure(5, 3.6)
        axes = figure.subplots()
        axes.plot(*zip(*concentration, strict=True), "o-", color=OKABE_ITO[0])
        axes.set(xlabel="effective competitors, 1/Σq²", ylabel="relative error of the step")
        axes.set_title("Samples with p = 0.1, damping 0.01")
        axes.set_xlim(left=1)
        axes.set_ylim(bottom=0)
    figure.savefig(folder / "fast-gauss-newton-concentration.png", dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
