"""A group that is destroyed while an operator on it lives: threads of it that are left, and what the operator says."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import hesspec


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    mine = hesspec.shard_data([(torch.randn(12, 5), torch.arange(12) % 3)], dist.group.WORLD)
    operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), mine, group=dist.group.WORLD)
    hesspec.spectrum(operator, steps=12, snapshot=sys.argv[1], every=0)
    dist.destroy_process_group()
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    try:
        operator @ torch.ones(operator.shape[0])
        error = ""
    except ValueError as raised:
        error = str(raised)
    print(json.dumps({"threads": threads, "error": error}))  # noqa: T201


if __name__ == "__main__":
    main()
