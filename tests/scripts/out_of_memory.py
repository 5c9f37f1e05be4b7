"""A process whose memory runs out while an operator works: `python out_of_memory.py MODE`, run by test_memory.py.

Prints how the operator went on, and the relative error of its products against those with memory enough.
"""

import json
import resource
import sys

import psutil
import torch
from torch import nn

import hesspec
from hesspec.operators.engine import passes


def main(mode: str) -> None:
    passes.trace_pays = lambda *_, **__: (mode == "traced", "forced")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(4, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 3))
    data = [(torch.randn(16_000, 4), torch.randint(3, (16_000,))) for _ in range(3)]

    def operator(batches):
        return hesspec.Hessian(model, nn.CrossEntropyLoss(), batches, memory="100GB")

    tight = operator(data)
    v = torch.randn(tight.shape[0])
    # Whatever PyTorch loads and compiles at the first product is not what memory is to run out for.
    _ = operator([(x[:50], y[:50]) for x, y in data]) @ v
    limits = resource.getrlimit(resource.RLIMIT_AS)
    # A batch takes 180 MB in either mode.
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 150_000_000, limits[1]))
    found = [tight @ v, tight @ v]
    resource.setrlimit(resource.RLIMIT_AS, limits)
    exact = operator(data) @ v
    errors = [float((product - exact).norm() / exact.norm()) for product in found]
    sys.stdout.write(json.dumps({"errors": errors, "risk": tight.risk, **tight.attributes}))


if __name__ == "__main__":
    main(sys.argv[1])
