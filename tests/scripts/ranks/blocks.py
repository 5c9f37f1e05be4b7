"""Spectra of blocks of a matrix whose data ranks share, and those of one process."""

import json
import sys

import torch
import torch.distributed as dist
from torch import nn

import hesspec


def main() -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    data = [(torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))) for _ in range(4)]
    loss, settings = nn.CrossEntropyLoss(), {"blocks": "module", "steps": 8}
    group = dist.group.WORLD
    shared = hesspec.by_block(model, loss, hesspec.shard_data(data, group), group=group, **settings)
    alone = hesspec.by_block(model, loss, data, **settings)
    apart = float(abs(shared.ritz_values - alone.ritz_values).max())
    json.dump({"names": list(shared), "apart": apart, "ritz": shared.ritz_values.tolist()}, sys.stdout)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
