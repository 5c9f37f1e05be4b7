"""Products with the second moment of gradients, M, and with H_p = M - Hess, against those with G and the Hessian.

    python benchmarks/second_moment.py [--network small_cnn] [--images 256] [--repeats 15]

One process, float32, random images in one batch, the network at its initialisation. In each repeat every matrix
multiplies once, in a random order; ratios are taken within a repeat, and their median and quartiles are printed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from torch import nn

import hesspec
from hesspec.study.networks import build_network

MATRICES = ("GaussNewton", "SecondMoment", "Hessian", "LikelihoodResidual")
RATIOS = (("SecondMoment", "GaussNewton"), ("LikelihoodResidual", "Hessian"))


def main() -> None:
    """Time products in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="small_cnn")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    torch.manual_seed(0)
    random.seed(0)
    model = build_network(given.network, channels=1, classes=10, size=given.size).eval()
    data = [(torch.randn(given.images, 1, given.size, given.size), torch.randint(10, (given.images,)))]
    operators = {name: getattr(hesspec, name)(model, nn.CrossEntropyLoss(), data) for name in MATRICES}
    vector = torch.randn(operators["Hessian"].shape[0])
    for name, operator in operators.items():
        _ = operator @ vector
        print(f"{name}: {operator.attributes['mode']}, set up in {operator.attributes['build_seconds']:.1f} s")
    seconds: dict[str, list[float]] = {name: [] for name in MATRICES}
    for _ in range(given.repeats):
        for name in random.sample(MATRICES, len(MATRICES)):
            begin = time.perf_counter()
            _ = operators[name] @ vector
            seconds[name].append(time.perf_counter() - begin)
    print(f"{given.network}, {given.images} images, p = {len(vector):,}, {torch.get_num_threads()} threads")
    for name, times in seconds.items():
        print(f"{name}: {1e3 * statistics.median(times):.1f} ms")
    for one, other in RATIOS:
        ratios = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{one} / {other}: {middle:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
