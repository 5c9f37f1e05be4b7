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

import hesspec

PRODUCT = 5  # in which the rank fails


def main() -> None:
    how, timeout = sys.argv[1], datetime.timedelta(seconds=float(sys.argv[2]))
    dist.init_process_group("gloo", timeout=timeout)
    rank, group, last = dist.get_rank(), dist.group.WORLD, dist.get_rank() == dist.get_world_size() - 1
    torch.manual_seed(int(how == "weights" and last))
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    torch.manual_seed(2)
    data = [(torch.randn(6, 5), torch.arange(6) % 3) for _ in range(2 * dist.get_world_size())]
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
            time.sleep(10 * timeout.total_seconds())

    try:
        operator = hesspec.Hessian(model, nn.CrossEntropyLoss(), hesspec.shard(data, group), group=group)
        hesspec.spectrum(operator, steps=12, on_step=step)
        error = "", ""
    except Exception as raised:  # noqa: BLE001 - any is reported
        error = type(raised).__name__, str(raised)
    print(json.dumps({"error": error, "products": calls}), flush=True)  # noqa: T201
    # Nobody is left to end the group with.
    os._exit(0)


if __name__ == "__main__":
    main()
