"""Whether what is right on a CPU is right on the card: products, spectra, snapshots, memory."""

from __future__ import annotations

import copy
import multiprocessing
import os
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import nn
from torch._subclasses.fake_tensor import is_fake
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import hesspec
from _tables import ROOT
from gpu_parts import Given
from gpu_parts.networks import eigenvalues, small

sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from cases import CASES, MATRICES, dense

TITLE = "Correctness"
NOTE = (
    "Products with Hess, G and H of every case of the operators' tests, as whole matrices, against plain reverse mode "
    "twice in float64 on the CPU, relative to the largest of the three; then spectra against exact eigenvalues. "
    "float32 is in full precision."
)
COLUMNS = ("what", "found", "asked", "right")
# Seconds that are left for the end of the part.
RESERVE = 3.0
# What the operators' own tests ask for.
ASKED = {torch.float64: 1e-10, torch.float32: 2e-5}


def moved(value: Any, device: torch.device) -> Any:
    """Batches, with their tensors on a device."""
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, value)


def of_case(name: str, device: torch.device) -> list[tuple[str, str, str, bool]]:
    """Rows of one case: every matrix, both precisions, traced and by double backward."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    case = CASES[name]().to(torch.float64)
    names = hesspec.Hessian(case.model, case.loss, case.data, **case.options).names
    truth = dense(case, names).matrices
    scale = max(float(matrix.norm()) for matrix in truth.values())
    rows = []
    for dtype, asked in ASKED.items():
        worst, at = 0.0, ""
        for matrix in MATRICES:
            for mode in ("traced", "double backward"):
                mine = CASES[name]().to(dtype)
                loss = mine.loss.to(device) if isinstance(mine.loss, nn.Module) else mine.loss
                # Verification would take another way where this one is wrong.
                operator = getattr(hesspec, matrix)(
                    mine.model.to(device), loss, moved(mine.data, device), mode=mode, verify=False, **mine.options
                )
                found = operator @ torch.eye(operator.shape[0], dtype=dtype, device=device)
                error = float((found.double().cpu() - truth[matrix]).norm()) / scale
                if not error <= worst:
                    worst, at = error, f"{matrix}, {operator.attributes['mode']}"
        right = worst <= asked
        rows.append((f"{name}, {str(dtype).removeprefix('torch.')}", f"{worst:.1e} ({at})", f"{asked:.0e}", right))
    return rows


def products(given: Given) -> None:
    """All cases, in several processes, as tracing takes the time of one core."""
    names = list(CASES)[: 2 if given.quick else None]
    workers = max(1, min(8, (os.cpu_count() or 1) // 2))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(of_case, name, given.device): name for name in names}
        done = 0
        try:
            for future in as_completed(futures, timeout=max(given.left - RESERVE, 0.0)):
                done += 1
                with given.step(futures[future]):
                    for row in future.result():
                        given.keep(*row, failed=not row[-1])
        except TimeoutError:
            given.keep("products", f"{done} of {len(names)} cases: no time was left", failed=True)
            for worker in multiprocessing.active_children():
                worker.kill()


BASES = {
    "full basis": {},
    "half basis": {"basis": "half"},
    "basis on the host": {"offload": "host"},
    "basis on disk": {"offload": "disk"},
    "restarted basis": {"basis": "restarted", "memory": 90_000},
}


def spectra(given: Given) -> None:
    """Bounds against exact eigenvalues, for every matrix, precision and basis."""
    for matrix in MATRICES:
        truth = eigenvalues(matrix)
        for dtype in ASKED:
            model, data = small(given.device, dtype)
            operator = getattr(hesspec, matrix)(model, nn.CrossEntropyLoss(), data)
            for name, basis in BASES.items():
                label = f"{matrix}, {str(dtype).removeprefix('torch.')}, {name}"
                with given.step(label):
                    found = hesspec.spectrum(operator, steps=40, seed=0, **basis)
                    nearest = np.abs(truth[None] - found.eigenvalues[:, None]).min(1)
                    distance = wasserstein_distance(found.nodes, truth, found.weights)
                    share = float((nearest / (found.error_bounds + found.rounding)).max(initial=0.0))
                    right = share <= 1 and distance <= found.wasserstein_bound + found.rounding
                    text = f"error over bound {share:.2f}; W1 {distance:.1e} of {found.wasserstein_bound:.1e}"
                    given.keep(label, text, "<= 1", right, failed=not right)


def resumed(given: Given) -> None:
    """A run that stops at a snapshot and resumes, against one that does not."""
    loss = nn.CrossEntropyLoss()

    def stop(step: int, _: int | None) -> None:
        if step >= 25:
            raise KeyboardInterrupt

    model, data = small(given.device, torch.float32)
    whole = hesspec.spectrum(hesspec.Hessian(model, loss, data), steps=40, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "snapshot"
        with suppress(KeyboardInterrupt):
            mine = hesspec.Hessian(copy.deepcopy(model), loss, data)
            hesspec.spectrum(mine, steps=40, seed=0, snapshot=place, every=1e-3, on_step=stop)
        again = hesspec.spectrum(hesspec.Hessian(model, loss, data), steps=40, seed=0, snapshot=place, every=1e-3)
    same = bool(np.array_equal(whole.nodes, again.nodes) and np.array_equal(whole.weights, again.weights))
    text = "the same bits" if same else "other bits"
    given.keep("stopped and resumed from a snapshot", text, "the same", same, failed=not same)


class OutOfMemory(TorchDispatchMode):
    """Stand-in for a card whose memory runs out: results larger than a number of bytes are refused."""

    def __init__(self, largest: int) -> None:
        super().__init__()
        self._largest = largest

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and refuse a result that is too large."""
        found = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(found):
            if isinstance(leaf, torch.Tensor) and leaf.numel() * leaf.itemsize > self._largest and not is_fake(leaf):
                raise torch.OutOfMemoryError(f"{leaf.numel() * leaf.itemsize:,} bytes")
        return found


def out_of_memory(given: Given) -> None:
    """Products in what little memory an operator is given, and with less than it believes there is."""
    loss = nn.CrossEntropyLoss()
    model, data = small(given.device, torch.float64)
    vector = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64, device=given.device)
    kept = hesspec.Hessian(model, loss, data)
    product = kept @ vector
    streamed = hesspec.Hessian(model, loss, data, memory=2_000_000)
    error = float((streamed @ vector - product).norm() / product.norm())
    given.keep("streamed within 2 MB", f"{error:.1e}", "1e-10", error <= 1e-10, failed=error > 1e-10)
    if given.device.type != "cuda":
        # Less than activations of a batch take, and more than its images: batches are split in halves.
        operator = hesspec.Hessian(model, loss, data)
        with OutOfMemory(100_000):
            error = float((operator @ vector - product).norm() / product.norm())
        given.keep("memory that runs out, pretended", f"{error:.1e}", "1e-10", error <= 1e-10, failed=error > 1e-10)
        return
    free, total = torch.cuda.mem_get_info(given.device)
    inputs = torch.randn(4096 if not given.quick else 64, 3, 32, 32, device=given.device)
    targets = torch.arange(len(inputs), device=given.device) % 10
    torch.manual_seed(0)
    large = nn.Sequential(
        *(layer for i in range(6) for layer in (nn.Conv2d(64 if i else 3, 64, 3, padding=1), nn.ReLU())),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).to(given.device)  # fmt: skip
    vector = torch.randn(sum(p.numel() for p in large.parameters()), device=given.device)
    expected = hesspec.Hessian(large, loss, [(inputs, targets)]) @ vector
    operator = hesspec.Hessian(large, loss, [(inputs, targets)])
    # Taken after the operator has looked at what is free: its first product runs out.
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(given.device)
    hog = torch.empty(max(free - 2 * 2**30, 0), dtype=torch.uint8, device=given.device)
    found = operator @ vector
    del hog
    error = float((found - expected).norm() / expected.norm())
    label = f"memory taken by others, 2 of {total / 2**30:.0f} GiB left"
    given.keep(label, f"{error:.1e}", "1e-4", error <= 1e-4, failed=error > 1e-4)


def run(given: Given) -> None:
    """Measure."""
    spectra(given)
    with given.step("snapshot"):
        resumed(given)
    with given.step("memory"):
        out_of_memory(given)
    # Last, as it takes what time there is.
    products(given)
