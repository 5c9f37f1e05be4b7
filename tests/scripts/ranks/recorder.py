"""A recorder in a data-parallel training, whose ranks measure together: what each rank has found and left behind."""

import json
import sys
import warnings
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hesspec.study import SpectrumRecorder


def main() -> None:
    folder = sys.argv[1]
    warnings.simplefilter("error")
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    inputs, targets = torch.randn(12, 4), torch.arange(12) % 3
    loss = nn.CrossEntropyLoss()
    rank, size = dist.get_rank(), dist.get_world_size()
    loss(model(inputs[rank::size]), targets[rank::size]).backward()
    gradient, state = model.module[0].weight.grad.clone(), torch.get_rng_state()

    def record_of(place: str, matrices: Sequence[str] = ("hessian",)) -> SpectrumRecorder:
        data = {"train": [(inputs, targets)]}
        return SpectrumRecorder(place, loss, data, matrices, steps=8, group=dist.group.WORLD)

    record = record_of(folder)
    first, again = record(model, 0, step=3), record(model, 0, step=3)
    kept = torch.equal(gradient, model.module[0].weight.grad) and torch.equal(state, torch.get_rng_state())
    # The exchange of gradients still works.
    loss(model(inputs[rank::size]), targets[rank::size]).backward()
    every = [torch.empty_like(gradient) for _ in range(size)]
    dist.all_gather(every, model.module[0].weight.grad)
    kept = kept and all(torch.equal(each, every[0]) for each in every)
    found = first["train", "Hessian"]
    sharded = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    sharded.load_state_dict(model.module.state_dict())
    fully_shard(sharded, mesh=init_device_mesh("cpu", (size,)))
    split = record_of(f"{folder}/sharded")(sharded, 0)["train", "Hessian"]
    try:
        record_of(f"{folder}/sharded", ["g"])(sharded, 0)
    except ValueError as error:
        refused = str(error)
    print(  # noqa: T201
        json.dumps(
            {
                "values": found.ritz_values.tolist(),
                "again": len(again),
                "kept": kept,
                "sharded": split.ritz_values.tolist(),
                "refused": refused,
            }
        )
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
