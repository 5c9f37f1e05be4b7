"""Runs that are interrupted in each of their phases, and snapshots as somebody else could have written them."""

import json
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file

import hesspec
from hesspec.krylov import snapshot_files
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.snapshot import STATE, Snapshot
from hesspec.krylov.vectors import Space

SIZE = 60
RESTARTED = {"steps": SIZE, "basis": "restarted"}
# Options of `spectrum`, and a product in which the run is interrupted.
RUNS = {
    "full": ({"steps": 14}, 6),
    "full on host": ({"steps": 14, "basis": "full", "offload": "host"}, 6),
    "half on disk": ({"steps": 14, "basis": "half", "offload": "disk"}, 6),
    "several probes": ({"steps": 20, "basis": "half", "probes": 3}, 26),
    "restarts": (RESTARTED, 20),
    "bulk": (RESTARTED, 30),
    "probes after restarts": ({**RESTARTED, "probes": 2}, 50),
}
PHASES = ("first", "first", "first", "others", "restart", "bulk", "others")


class StopError(Exception):
    """The end of a run before its time."""


def stop_at(product):
    def stop(done, _):
        if done == product:
            raise StopError

    return stop


def options(run, dtype):
    """Of `spectrum`, with room for a basis of 16 vectors where it is restarted."""
    given = RUNS[run][0]
    return {**given, "memory": 24 * dtype.itemsize * SIZE} if given.get("basis") == "restarted" else given


def operator(dtype=torch.float32):
    """A dense matrix, of whose eigenvalues more and more are resolved."""
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    values = 9 * torch.logspace(0, -2, SIZE, dtype=torch.float64)
    values[1::2] *= -1
    found = (q * values) @ q.T
    return ((found + found.T) / 2).to(dtype)


def interrupt(folder: Path, run="full", dtype=torch.float32):
    """Leave the snapshot of a run that was interrupted."""
    product = RUNS[run][1]
    try:
        hesspec.spectrum(operator(dtype), **options(run, dtype), snapshot=folder, every=0, on_step=stop_at(product))
    except StopError:
        return
    raise AssertionError(f"the run {run!r} has ended before product {product}")


def resume(folder: Path, run="full", dtype=torch.float32):
    """The spectrum from a snapshot."""
    return hesspec.spectrum(operator(dtype), **options(run, dtype), snapshot=folder, every="1h")


def content(folder: Path):
    """Record and arrays of the state of a snapshot."""
    with safetensors.safe_open(folder / STATE, "pt") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return json.loads(file.metadata()["hesspec"]), arrays


def forge(folder: Path, record, arrays):
    """Write a state of this content, with the digest that belongs to it."""
    text = record if isinstance(record, str) else json.dumps(record)
    digest = snapshot_files._content_digest(text, arrays)
    save_file(arrays, folder / STATE, {"hesspec": text, "digest": digest})


def state(folder: Path, identity, dtype=torch.float32):
    """What a run of this identity is given of the snapshot in a folder."""
    space, device = Space(SIZE), torch.device("cpu")
    with Snapshot(folder, "1h", space, dtype=dtype, device=device, identity=identity) as snapshot:
        return snapshot.read()


def same(one, other):
    """Whether two states are the same, bit for bit."""
    if isinstance(one, KrylovBasis):
        rows = all(torch.equal(one.kept_row(i), other.kept_row(i)) for i in range(len(one)))
        return same(one.state(), other.state()) and rows
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.flags.f_contiguous == other.flags.f_contiguous and np.array_equal(one, other)
    return type(one) is type(other) and one == other
