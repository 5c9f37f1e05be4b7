"""A spectrum that ranks share, of which one rank fails in the way that is named first; what the others see."""

import datetime
import json
import os
import signal
import sys
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import hesspec

PRODUCT = 5  # in which the rank fails


class Failing(nn.Sequential):
    """A model of which one rank has a sample that it cannot take."""

    fails = False

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise RuntimeError("bad sample")
        return super().forward(inputs)


def main() -> None:
    how, timeout = sys.argv[1], datetime.timedelta(seconds=float(sys.argv[2]))
    dist.init_process_group("gloo", timeout=timeout)
    rank, group, last = dist.get_rank(), dist.group.WORLD, dist.get_rank() == dist.get_world_size() - 1
    torch.manual_seed(int(how == "weights" and last))
    model = Failing(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    torch.manual_seed(2)
    data = [(torch.randn(6, 5), torch.arange(6) % 3) for _ in range(2 * dist.get_world_size())]
    if how == "too few samples":
        data = [(x[:2], y[:2]) for x, y in data[:1]]
    if how == "not finite" and last:
        # This rank's, as batches are dealt in turn.
        data[rank][0][0, 0] = torch.nan
    calls = 0

    def step(done: int, _: int | None) -> None:
        nonlocal calls
        calls = done
        if done == PRODUCT and last and how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if done == PRODUCT and last and how == "hangs":
            time.sleep(3 * timeout.total_seconds())

    try:
        shared = hesspec.shard_data(data, group)
        if how == "sharded":
            model.fails = last
            fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
            operator = hesspec.CentralDifferenceHessian(model, nn.CrossEntropyLoss(), shared)
        else:
            operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), shared, group=group)
        hesspec.spectrum(operator, steps=12, on_step=step)
        error = "", ""
    except Exception as raised:  # noqa: BLE001 - any is reported
        error = type(raised).__name__, str(raised)
    print(json.dumps({"error": error, "products": calls}), flush=True)  # noqa: T201
    # Nobody is left to end the group with.
    os._exit(0)


if __name__ == "__main__":
    main()
