"""NumPy arrays, sparse matrices and linear operators of SciPy, and operators of curvlinops, in both directions."""

import importlib

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import nn

import hesspec
from hesspec.integrations import to_curvlinops

SIZE = 30


@pytest.fixture
def dense():
    random = np.random.default_rng(0)
    matrix = random.standard_normal((SIZE, SIZE)) * (random.random((SIZE, SIZE)) < 0.3)
    return matrix + matrix.T


def read_only(matrix):
    matrix = matrix.copy()
    matrix.flags.writeable = False
    return matrix


KINDS = {
    "array": lambda matrix: matrix,
    "columns first": np.asfortranarray,
    "read-only": read_only,
    "csr array": scipy.sparse.csr_array,
    "csc matrix": scipy.sparse.csc_matrix,
    "coo array": scipy.sparse.coo_array,
    "linear operator": scipy.sparse.linalg.aslinearoperator,
    "product": lambda matrix: scipy.sparse.linalg.LinearOperator(matrix.shape, matvec=lambda v: matrix @ v),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_whole_spectrum_is_that_of_the_dense_matrix(dense, kind, dtype):
    matrix = dense.astype(dtype)
    found = hesspec.spectrum(KINDS[kind](matrix), steps=SIZE, progress=False)
    exact = np.linalg.eigvalsh(dense)
    assert np.abs(np.sort(found.eigenvalues) - exact).max() <= 1e2 * np.finfo(dtype).eps * np.abs(exact).max()
    assert found.attributes["dtype"] == np.dtype(dtype).name


def test_all_measurements_take_them(dense):
    matrix, rhs = scipy.sparse.csr_array(dense), np.linspace(-1, 1, SIZE)
    pairs = hesspec.eigenpairs(matrix, count=2, steps=SIZE, progress=False)
    values, vectors = np.linalg.eigh(dense)
    largest = np.argsort(-np.abs(values))[:2]
    assert pairs.values == pytest.approx(values[largest])
    assert np.abs(vectors[:, largest].T @ pairs.vectors.numpy()) == pytest.approx(np.eye(2), abs=1e-6)
    solved = hesspec.solve(matrix, torch.from_numpy(rhs), damping=30.0, tolerance=1e-12)
    assert solved.solution.numpy() == pytest.approx(np.linalg.solve(dense + 30 * np.eye(SIZE), rhs))
    assert hesspec.diagonal(matrix, probes=4000, seed=0).values.numpy() == pytest.approx(np.diag(dense), abs=0.5)
    assert hesspec.spectrum(matrix, steps=SIZE, trace=0.01, progress=False).trace == pytest.approx(np.trace(dense))
    assert hesspec.spectrum(matrix, steps=4, probes=3, progress=False).probes == 3


def test_snapshots_know_the_content_of_sparse_matrices(dense, tmp_path):
    hesspec.spectrum(scipy.sparse.csr_array(dense), steps=5, snapshot=tmp_path / "a", every=0.0, progress=False)
    with pytest.raises(ValueError, match="matrix's content"):
        hesspec.spectrum(scipy.sparse.csr_array(2 * dense), steps=5, snapshot=tmp_path / "a", progress=False)


@pytest.mark.parametrize("convert", [np.asarray, scipy.sparse.csr_array, scipy.sparse.linalg.aslinearoperator])
def test_integers_and_half_precision_become_float64(convert):
    for dtype in (np.int64, np.bool_) if convert is scipy.sparse.csr_array else (np.int64, np.float16, np.bool_):
        found = hesspec.spectrum(convert(np.diag([0, 1, 1]).astype(dtype)), progress=False)
        assert (found.attributes["dtype"], found.norm) == ("float64", 1.0)


@pytest.mark.parametrize("convert", [np.asarray, scipy.sparse.csr_array, scipy.sparse.linalg.aslinearoperator])
def test_what_has_no_spectrum_is_refused(convert):
    with pytest.raises(ValueError, match=r"of complex128; spectra are measured of real symmetric operators"):
        hesspec.spectrum(convert(np.eye(3, dtype=complex)))
    with pytest.raises(ValueError, match=r"has shape \(3, 4\); a spectrum needs \(p, p\)"):
        hesspec.spectrum(convert(np.ones((3, 4))))
    random = np.random.default_rng(0).standard_normal((20, 20))
    with pytest.raises(hesspec.NotSymmetricError, match="not symmetric"):
        hesspec.spectrum(convert(random), steps=5, progress=False)


def test_arrays_of_other_things_are_refused():
    with pytest.raises(ValueError, match="NumPy array of object; spectra are measured in float32 or float64"):
        hesspec.spectrum(np.array([[None]]))


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = [(torch.randn(12, 3, dtype=torch.float64), torch.randint(2, (12,)))]
    return model, nn.CrossEntropyLoss(), data


def test_operators_work_in_scipy(problem):
    hessian = hesspec.Hessian(*problem)
    dense = (hessian @ torch.eye(hessian.shape[0], dtype=torch.float64)).numpy()
    linear = hessian.to_scipy()
    largest = scipy.sparse.linalg.eigsh(linear, k=2, which="LM", v0=np.ones(len(dense)), return_eigenvectors=False)
    exact = np.linalg.eigvalsh(dense)
    assert np.sort(np.abs(largest)) == pytest.approx(np.sort(np.abs(exact))[-2:])
    again = hesspec.spectrum(linear + scipy.sparse.linalg.aslinearoperator(np.eye(len(dense))), progress=False)
    assert again.trace == pytest.approx(np.trace(dense) + len(dense))


# Its dependency linear_operator decorates with torch.jit.script, which PyTorch deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_operators_work_in_curvlinops_and_come_from_it(problem):
    curvlinops = importlib.import_module("curvlinops")
    model, loss, data = problem
    hessian = hesspec.Hessian(*problem)
    dense = hessian @ torch.eye(hessian.shape[0], dtype=torch.float64)
    theirs = to_curvlinops(hessian)
    assert isinstance(theirs, importlib.import_module("curvlinops._torch_base").PyTorchLinearOperator)
    assert (theirs.dtype, theirs.shape) == (torch.float64, hessian.shape)
    for vectors in (torch.ones(len(dense), dtype=torch.float64), torch.eye(len(dense), dtype=torch.float64)[:, :3]):
        torch.testing.assert_close(theirs @ vectors, dense @ vectors)
        torch.testing.assert_close(theirs.adjoint() @ vectors, dense @ vectors)
    named = [torch.ones_like(parameter) for parameter in model.parameters()]
    found = theirs @ named
    assert [part.shape for part in found] == [part.shape for part in named]
    torch.testing.assert_close(torch.cat([part.flatten() for part in found]), dense.sum(1))
    # Their algebra and estimators work on it, and ours on theirs.
    trace = curvlinops.xtrace(theirs + 2.0 * theirs, num_matvecs=10)
    assert float(trace) == pytest.approx(3 * float(dense.trace()), rel=0.2)
    peer = curvlinops.HessianLinearOperator(model, loss, list(model.parameters()), data)
    spectrum = hesspec.spectrum(peer, progress=False)
    assert np.sort(spectrum.nodes)[-1] == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]))
    assert to_curvlinops(torch.diag(torch.arange(3.0))) @ [torch.ones(3)] == [pytest.approx(torch.arange(3.0))]
