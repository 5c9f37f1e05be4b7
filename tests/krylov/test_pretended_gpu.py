"""Spectra on a pretended GPU: no tensor on the wrong device, the same numbers, and few waits for it."""

import pytest
import torch
from pretended_gpu import GPU, on_gpu, pretended_gpu

import hesspec
from hesspec.krylov.basis import KrylovBasis
from hesspec.krylov.storage import STORAGES
from hesspec.krylov.vectors import CHUNK, Space

MATRIX = torch.diag(torch.cat([torch.linspace(-0.1, 0.1, 300), torch.tensor([5.0, 9.0])]))
STEPS = 32
# Of a step in the steady state: of the recurrence's two inner products and norms, of what reorthogonalisation removed
# and of the two numbers after it, one each; of the vector's sketch.
WAITS = 5
# Of a vector that is stored in half precision: its largest entry and its 4-norm, once as stored and once as used.
HALF = 2


def found(matrix, **options):
    result = hesspec.spectrum(matrix, steps=STEPS, seed=0, **options)
    return result.nodes, result.weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"basis": "half"},
        {"offload": "host"},
        {"basis": "half", "offload": "disk"},
        {"basis": "restarted", "memory": 40_000},
        {"probes": 2},
    ],
)
def test_a_spectrum_is_that_of_the_cpu(options, dtype):
    matrix = MATRIX.to(dtype)
    expected = found(matrix, **options)
    with pretended_gpu():
        here = found(on_gpu(matrix), **options)
    # Inner products are summed in another order.
    for one, other in zip(here, expected, strict=True):
        assert one == pytest.approx(other, abs=1e3 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("basis", "allowed"), [("full", WAITS), ("half", WAITS + HALF)])
def test_waits_of_a_step_are_few(basis, allowed):
    counts = []
    with pretended_gpu() as waits:
        matrix = on_gpu(MATRIX)
        for steps in (STEPS, 2 * STEPS):
            waits.clear()
            hesspec.spectrum(matrix, steps=steps, seed=0, basis=basis)
            counts.append(waits.total())
    assert counts[1] - counts[0] <= allowed * STEPS


def test_long_vectors_are_orthogonalised_in_few_operations():
    # Three chunks and a rest; the float64 sums are those of the CPU.
    size, rows = 3 * CHUNK + 77, 20
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(size, rows, generator=generator, dtype=torch.float64))[0].T.float()
    given = torch.randn(size, generator=generator)
    with pretended_gpu() as waits:
        removed = []
        for device in ("cpu", GPU):
            basis = KrylovBasis(Space(size), dtype=torch.float32, device=torch.device(device))
            for vector in vectors:
                basis.append(vector.clone() if device == "cpu" else on_gpu(vector.clone()))
            w = given.clone() if device == "cpu" else on_gpu(given.clone())
            waits.clear()
            waits.kernels = 0
            removed.append(basis.orthogonalise(w, length=float(given.norm())))
            assert float((vectors.double() @ w.cpu().double()).abs().max()) < 1e-4
    # A rounding error of products of a unit vector with this one, summed in another order within chunks.
    apart = torch.finfo(torch.float32).eps * float(given.norm())
    assert removed[1].numpy() == pytest.approx(removed[0].numpy(), abs=apart)
    assert waits.total() <= 3
    # Two blocks, a pass to find components and one to remove them; a call for each chunk would be twice as many.
    assert waits.kernels <= 60


@pytest.mark.parametrize("storage", ["full on host", "half on host", "full on disk"])
def test_long_vectors_are_orthogonalised_against_a_basis_elsewhere(storage, monkeypatch):
    # Three pieces, the last of which is shorter; each is several chunks and a rest.
    piece = 2 * CHUNK + 31
    monkeypatch.setattr("hesspec.krylov.basis.PIECE", piece)
    size, rows = 2 * piece + 77, 20
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(size, rows, generator=generator, dtype=torch.float64))[0].T.float()
    given = torch.randn(size, generator=generator)
    with pretended_gpu():
        basis = KrylovBasis(Space(size), dtype=torch.float32, device=GPU, storage=STORAGES[storage])
        for vector in vectors:
            basis.append(on_gpu(vector.clone()))
        w = on_gpu(given.clone())
        basis.orthogonalise(w, length=float(given.norm()))
        # A stored half has the error of float16.
        tolerance = 1e-3 if basis.rounded else 1e-6
        assert float((vectors.double() @ w.cpu().double()).abs().max()) <= tolerance * float(given.norm())
        assert float((w.cpu() - (given - vectors.T @ (vectors @ given))).norm()) <= tolerance * float(given.norm())
        combined = basis.subspace(torch.eye(rows, 3))
        assert float((combined[2].cpu() - vectors[2]).norm()) <= tolerance
