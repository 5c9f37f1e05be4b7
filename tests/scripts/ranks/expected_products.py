"""Modes of an operator before and after more products are expected, for which a trace pays on the first rank only."""

import json

import torch
import torch.distributed as dist
from torch import nn

import hesspec
from hesspec.operators.engine import passes, trace_cost
from hesspec.operators.engine.trace_cost import ForwardWork


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    passes.count_work = lambda *_: ForwardWork(1, 1, 1, trace_seconds=30.0 + 1000 * rank)
    trace_cost.seconds_saved = lambda *_: 1.0
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    data = [(torch.randn(8, 4).double(), torch.arange(8) % 3) for _ in range(2)]
    shared = hesspec.shard_data(data, dist.group.WORLD)
    operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), shared, group=dist.group.WORLD)
    modes, spectra = [], []
    for _ in range(2):
        spectra.append(hesspec.spectrum(operator, steps=20))
        modes.append(operator.attributes["mode"])
    alone = hesspec.Hessian(model, nn.CrossEntropyLoss(), data, mode="double backward")
    spectra.append(hesspec.spectrum(alone, steps=20))
    print(json.dumps({"modes": modes, "spectra": [each.eigenvalues.tolist() for each in spectra]}))  # noqa: T201
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
