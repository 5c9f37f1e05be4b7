"""Products on a pretended device and on the CPU: `python device_products.py KIND=CASE;...`, which prints JSON.

One row for each product: what it is of, its difference from the CPU's relative to the largest entry, and what the host
did with the device meanwhile.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from cases import CASES, MATRICES, Case, Recurrent, batches
from pretended_device import DEVICE, counts, on_device, put
from torch import Tensor, nn

import hesspec

MODES = ("traced", "double backward", "double backward in place", "differences")
PARTS = tuple(f"GaussNewton{part}" for part in ("Class", "Cross", "Within", "Same"))
MOMENTS = ("SecondMoment", "LikelihoodResidual")


def recurrent() -> Case:
    """A network whose operations are others than on a CPU."""
    torch.manual_seed(0)
    return Case(Recurrent().eval(), nn.MSELoss(), batches((3, 3), lambda size: torch.randn(size, 2), (4, 4, 4)))


NETWORKS = {**CASES, "recurrent": recurrent}


def both(matrix: str, name: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, Any]:
    """The operator on the CPU and on the device."""
    case, other = (NETWORKS[name]().to(dtype) for _ in range(2))
    kind = getattr(hesspec, matrix)
    here = kind(case.model, case.loss, case.data, **case.options, **options)
    loss = put(other.loss) if isinstance(other.loss, nn.Module) else other.loss
    return here, kind(put(other.model), loss, on_device(other.data), **other.options, **options)


def row(what: str, here: Any, there: Any, vectors: Tensor) -> dict[str, Any]:
    """Compare products; the second one on the device is counted."""
    expected, given = here @ vectors, on_device(vectors)
    there @ given
    counts.clear()
    found = there @ given
    waits, kernels = dict(+counts.waits), counts.kernels
    assert found.device == DEVICE
    apart = float((found.cpu() - expected).abs().max() / expected.abs().max())
    modes = [operator.attributes.get("mode") for operator in (here, there)]
    return {"what": what, "apart": apart, "waits": waits, "kernels": kernels, "modes": modes}


def vectors_of(operator: Any, columns: int = 1) -> Tensor:
    """Random vectors."""
    shape = (operator.shape[0], columns)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(operator.dtype)


def products(names: list[str], matrices: tuple[str, ...], modes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of all these products."""
    rows = []
    for name in names:
        for matrix in matrices:
            for mode in modes if name != "recurrent" else modes[1:]:
                here, there = both(matrix, name, mode=mode)
                rows.append(row(f"{name}, {matrix}, {mode}", here, there, vectors_of(here)))
    return rows


def others() -> list[dict[str, Any]]:
    """Several vectors, parts of batches, lower precision, blocks, and scaled operators."""
    here, there = both("Hessian", "cnn", mode="traced")
    rows = [row("five vectors", here, there, vectors_of(here, 5))]
    here, there = both("Hessian", "cnn", mode="traced", memory=40_000)
    rows.append(row("streamed", here, there, vectors_of(here)))
    here, there = both("Hessian", "mlp", torch.float32, mode="traced", precision="bfloat16")
    rows.append(row("bfloat16", here, there, vectors_of(here)))
    here, there = both("GaussNewton", "mlp")
    diagonal = torch.linspace(1, 2, here.shape[0], dtype=torch.float64)
    scaled = hesspec.Preconditioned(here, diagonal), hesspec.Preconditioned(there, on_device(diagonal))
    rows.append(row("preconditioned", *scaled, vectors_of(here)))
    return rows


def spectra() -> list[dict[str, Any]]:
    """Spectra with each basis, one of which resumes from a snapshot, and damped systems."""
    here, there = both("Hessian", "mlp", mode="traced")
    expected, rows = hesspec.spectrum(here, steps=20, seed=0), []

    def stop(step: int, _: int | None) -> None:
        if step >= 10:
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        resumed = {"snapshot": Path(folder) / "snapshot", "every": 1e-3}
        try:
            hesspec.spectrum(there, steps=20, seed=0, on_step=stop, **resumed)
        except KeyboardInterrupt:
            assert resumed["snapshot"].exists()
        for options in ({"basis": "half"}, {"offload": "disk"}, {"trace": 0.2}, resumed):
            found = hesspec.spectrum(there, steps=20, seed=0, **options)
            apart = float(abs(found.nodes - expected.nodes).max() / expected.norm)
            rows.append({"what": f"spectrum, {', '.join(options)}", "apart": apart})
    counted = []
    for steps in (10, 20):
        counts.clear()
        found = hesspec.spectrum(there, steps=steps, seed=0)
        counted.append(counts.waits.total())
    apart = float(abs(found.nodes - expected.nodes).max() / expected.norm)
    rows.append({"what": "ten steps", "apart": apart, "waits": {"of any kind": counted[1] - counted[0]}})
    rhs = vectors_of(here)[:, 0]
    solutions = [hesspec.solve(each, b, damping=5.0) for each, b in ((here, rhs), (there, on_device(rhs)))]
    one, other = (solution.solution.cpu() for solution in solutions)
    rows.append({"what": "solve", "apart": float((one - other).norm() / one.norm())})
    return rows


def by_default() -> list[dict[str, Any]]:
    """Spectra, traces and systems on the CPU and on the device, where tensors are made on the latter by default."""
    here, there = both("Hessian", "mlp", mode="traced")
    rhs, settings = vectors_of(here)[:, 0], {"steps": 12, "seed": 0, "probes": 2, "trace": 0.3}
    expected, solved = hesspec.spectrum(here, **settings), hesspec.solve(here, rhs, damping=50.0).solution
    here, _ = both("Hessian", "mlp", mode="traced")
    torch.set_default_device(DEVICE)
    rows = []
    for operator, vector in ((here, rhs), (there, on_device(rhs))):
        found = hesspec.spectrum(operator, **settings)
        apart = float(abs(found.nodes - expected.nodes).max() / expected.norm)
        rows.append({"what": f"{operator.device} by default, spectrum", "apart": apart})
        solution = hesspec.solve(operator, vector, damping=50.0).solution.cpu()
        rows.append({"what": f"{operator.device} by default, solve", "apart": float((solution - solved).norm())})
    torch.set_default_device(None)
    return rows


KINDS = {
    "few": lambda names: products(names, ("Hessian",), MODES),
    "products": lambda names: products(names, MATRICES, MODES),
    "parts": lambda names: products(names, PARTS, ("traced", "double backward")),
    "moments": lambda names: products(names, MOMENTS, ("auto",)),
    "others": lambda _: others(),
    "spectra": lambda _: spectra(),
    "default": lambda _: by_default(),
}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    asked = [argument.partition("=") for argument in sys.argv[1:]]
    sys.stdout.write(json.dumps([row for kind, _, names in asked for row in KINDS[kind](names.split(";"))]))
