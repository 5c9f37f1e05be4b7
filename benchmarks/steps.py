"""What a Fast Gauss-Newton step of 20 iterations takes beyond its products, a gradient and a forward pass.

python benchmarks/steps.py
"""

import statistics
import time

import torch
from sklearn.datasets import load_digits
from torch import nn

import hesspec
from hesspec.applications.optim.systems import RowSpace
from hesspec.operators.engine.jacobian import LinearisedModel
from hesspec.operators.risk.empirical_risk import EmpiricalRisk

ROUNDS, ITERATIONS = 9, 20
# Products of a step: one for each iteration, one for the residual, and S^T y.
PRODUCTS = ITERATIONS + 1.5
LOSS = nn.CrossEntropyLoss()


def perceptron(width):
    """A network 64-width-10."""
    return nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))


def convolutional():
    """Two convolutions and a linear layer."""
    convolutions = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *convolutions, nn.Flatten(), nn.Linear(2048, 10))


def seconds(call):
    """Processor time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main():
    """Print a row for each network, from interleaved repeats."""
    torch.set_num_threads(1)
    digits = load_digits()
    print("| network | p | N | product, ms | step, ms | beyond products, gradient and forward pass |")
    print("|---|---|---|---|---|---|")
    for name, make, samples in (
        ("perceptron", lambda: perceptron(32), 256),
        ("perceptron", lambda: perceptron(256), 1024),
        ("convolutional", convolutional, 256),
    ):
        torch.manual_seed(0)
        x, y = torch.tensor(digits.data[:samples], dtype=torch.float32) / 16, torch.tensor(digits.target[:samples])
        model = make().eval()
        # A tiny lr leaves the model where it is, but for rounding.
        options = {"damping": 1e-3, "policy": "constant", "lr": 1e-9, "iterations": ITERATIONS, "tolerance": 1e-14}
        optimizer = hesspec.optim.FastGaussNewton(model, LOSS, **options)
        optimizer.step(x, y)
        graphs = hesspec.GraphCache(points=1_000)
        space = RowSpace(LinearisedModel(EmpiricalRisk(model, LOSS, [(x, y)]), 1 << 32, graphs=graphs))
        w = torch.randn(samples, dtype=torch.float64)
        parameters = list(model.parameters())
        calls = {
            "step": lambda o=optimizer, x=x, y=y: o.step(x, y),
            "product": lambda s=space, w=w: s.push(s.pull(w)),
            "gradient": lambda m=model, x=x, y=y, p=parameters: torch.autograd.grad(LOSS(m(x), y), p),
            "forward": lambda m=model, x=x, y=y: LOSS(m(x), y),
        }
        times = [{key: seconds(call) for key, call in calls.items()} for _ in range(ROUNDS)]
        shares = [1 - (PRODUCTS * t["product"] + t["gradient"] + t["forward"]) / t["step"] for t in times]
        product, step = (1e3 * statistics.median(t[key] for t in times) for key in ("product", "step"))
        low, middle, high = (sorted(shares)[place] for place in (2, ROUNDS // 2, ROUNDS - 3))
        count = sum(value.numel() for value in parameters)
        print(
            f"| {name} | {count:,} | {samples} | {product:.2f} | {step:.1f} | {middle:.0%} ({low:.0%} to {high:.0%}) |"
        )


if __name__ == "__main__":
    main()
