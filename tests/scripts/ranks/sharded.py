"""Spectra of models that FSDP2 has sharded, and of the same models on one process."""

import functools
import json
import sys
import warnings

import numpy as np
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import hesspec


def mlp() -> tuple[nn.Module, list[nn.Module], list[object]]:
    model = nn.Sequential(nn.Linear(5, 11), nn.Tanh(), nn.Linear(11, 7), nn.Tanh(), nn.Linear(7, 3))
    data = [(torch.randn(n, 5, dtype=torch.float64), torch.arange(n) % 3) for n in (8, 8, 5)]
    return model, [model[0], model[2], model[4]], data


def gpt2() -> tuple[nn.Module, list[nn.Module], list[object]]:
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=8, vocab_size=23)
    model = transformers.GPT2LMHeadModel(config)
    batches = [torch.randint(23, (2, 8)) for _ in range(3)]
    return model, list(model.transformer.h), [({"input_ids": x}, x) for x in batches]


class NextToken(nn.Module):
    reduction = "mean"

    def forward(self, outputs: object, targets: torch.Tensor) -> torch.Tensor:
        logits = getattr(outputs, "logits", outputs)
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


def problem(name: str) -> tuple[nn.Module, list[nn.Module], nn.Module, list[object]]:
    torch.manual_seed(0)
    model, layers, data = {"mlp": mlp, "gpt2": gpt2}[name]()
    return model.eval().to(torch.float64), layers, nn.CrossEntropyLoss() if name == "mlp" else NextToken(), data


@functools.cache
def exact_spectrum(name: str) -> hesspec.Spectrum:
    model, _, loss, data = problem(name)
    return hesspec.spectrum(hesspec.Hessian(model, loss, data), steps=100_000 if name == "mlp" else 80)


def compare(name: str, dtype: torch.dtype) -> dict[str, float]:
    steps, exact, group = 24, exact_spectrum(name), dist.group.WORLD
    model, layers, loss, data = problem(name)
    model = model.to(dtype)
    wrapped = DistributedDataParallel(model)
    shared = hesspec.spectrum(hesspec.Hessian(wrapped, loss, hesspec.shard_data(data, group), group=group), steps=8)
    alone = hesspec.spectrum(hesspec.Hessian(model, loss, data), steps=8)
    wrapping = float(np.abs(shared.ritz_values - alone.ritz_values).max() / np.abs(alone.ritz_values).max())
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    before = [value.to_local().clone() for value in model.parameters()]
    refused = ""
    try:
        hesspec.Hessian(model, loss, hesspec.shard_data(data, group), group=group)
    except ValueError as error:
        refused = str(error)
    operator = hesspec.CentralDifferenceHessian(model, loss, hesspec.shard_data(data, group))
    found = hesspec.spectrum(operator, steps=steps)
    after = [value.to_local() for value in model.parameters()]
    # The true eigenvalue of each resolved one, in order: the k largest in absolute value of either sign.
    distances = [float(np.abs(exact.eigenvalues - value).min()) for value in found.eigenvalues]
    return {
        "resolved": int(found.eigenvalues.size),
        "excess": float(np.max(np.array(distances) / found.error_bounds, initial=0.0)),
        "relative error": float(distances[0] / abs(exact.eigenvalues[0])),
        "relative bound": float(found.error_bounds[0] / abs(exact.eigenvalues[0])),
        "wrapping": wrapping,
        "unchanged": all(torch.equal(a, b) for a, b in zip(before, after, strict=True)),
        "refused": "hesspec.CentralDifferenceHessian" in refused,
        "displacement": operator.step,
        "matvecs": found.matvecs,
    }


def with_ignored_targets() -> float:
    """Error of a product where the last rank has nothing but ignored targets, relative to the exact product."""
    torch.manual_seed(0)
    model, _, _ = mlp()
    model = model.eval().double()
    ranks, loss = dist.get_world_size(), nn.CrossEntropyLoss()
    targets = [torch.arange(4) % 3, *(torch.arange(4) % 3 for _ in range(ranks - 2)), torch.full((4,), -100)]
    data = [(torch.randn(4, 5, dtype=torch.float64), y) for y in targets]
    vector = torch.randn(sum(value.numel() for value in model.parameters()), dtype=torch.float64)
    exact = hesspec.Hessian(model, loss, data) @ vector
    fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    operator = hesspec.CentralDifferenceHessian(model, loss, hesspec.shard_data(data, dist.group.WORLD))
    begin, end = operator.ranks.part(len(vector))
    found = operator @ vector[begin:end]
    return float((found - exact[begin:end]).norm() / exact.norm())


def main() -> None:
    dist.init_process_group("gloo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {
            f"{name}, {dtype}": compare(name, getattr(torch, dtype))
            for name in sys.argv[1:]
            for dtype in ("float64", "float32")
        }
        ignored = with_ignored_targets()
    print(json.dumps({"cases": found, "ignored": ignored}))  # noqa: T201
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
