"""A spectrum with snapshots that stops after a number of products, or is compared with one without in the end.

An error of the snapshot is printed as what was found. A limit of bytes that a file may have stands for a full disk.
"""

import json
import resource
import signal
import sys
import warnings

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import hesspec


class StopError(Exception):
    """Raised on all ranks at once."""


def main() -> None:
    folder, basis, probes, stop = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    warnings.simplefilter("error")
    if len(sys.argv) > 5:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[5]),) * 2)
    dist.init_process_group("gloo")
    group = dist.group.WORLD if dist.get_world_size() > 1 else None
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 17), nn.Tanh(), nn.Linear(17, 4)).double()
    data = [(torch.randn(12, 6, dtype=torch.float64), torch.arange(12) % 4)]
    loss = nn.CrossEntropyLoss()
    shared = data if group is None else hesspec.shard_data(data, group)
    operator = hesspec.Hessian(model, loss, shared, group=group)
    given = {"steps": 30, "probes": probes, "basis": basis}
    # Room for 24 vectors, or slices of them.
    rows, mine = (
        {"memory": 24 * 8 * length} if basis == "restarted" else {}
        for length in (operator.shape[0], -(-operator.shape[0] // dist.get_world_size()))
    )
    begun = []

    def step(done: int, _: int | None) -> None:
        begun.append(done)
        if done == stop:
            raise StopError

    found = {"finished": True}
    try:
        result = hesspec.spectrum(operator, **given, **mine, on_step=step, snapshot=folder, every=0)
        alone = hesspec.spectrum(hesspec.Hessian(model, loss, data), **given, **rows)
        scale = np.abs(alone.ritz_values).max()
        found["error"] = float(np.abs(result.ritz_values - alone.ritz_values).max() / scale)
        found["sketches"] = float(np.abs(result.eigenvector_sketches - alone.eigenvector_sketches).max())
        found["matvecs"] = abs(result.matvecs - alone.matvecs)
    except StopError:
        found["finished"] = False
    except (hesspec.RankError, OSError, ValueError) as error:
        kind = next(kind for kind in (hesspec.RankError, OSError, ValueError) if isinstance(error, kind))
        found = {"finished": False, "error": f"{kind.__name__}: {error}"}
    print(json.dumps({**found, "first": begun[0] if begun else None}))  # noqa: T201
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
