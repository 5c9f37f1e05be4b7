"""What `hesspec.spectrum` takes as an operator and as arguments, and what it says of anything else."""

import importlib
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import hesspec
from hesspec.krylov.xtrace import xtrace


def symmetric(p, dtype=torch.float64):
    full = torch.randn(p, p, dtype=dtype)
    return full + full.T


def assert_same_spectrum(spectrum, truth):
    assert spectrum.exact
    order = np.argsort(spectrum.eigenvalues)
    assert (np.abs(spectrum.eigenvalues[order] - np.sort(truth)) <= spectrum.error_bounds[order]).all()


# Operators -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_dense_tensor(dtype):
    matrix = symmetric(30, dtype)
    spectrum = hesspec.spectrum(matrix, steps=30)
    assert_same_spectrum(spectrum, np.linalg.eigh(matrix.double().numpy())[0])
    assert spectrum.attributes["dtype"] == str(dtype).removeprefix("torch.")


def test_a_view_of_a_tensor():
    wide = symmetric(60)
    matrix = wide[::2, ::2]
    assert_same_spectrum(hesspec.spectrum(matrix, steps=30), np.linalg.eigh(matrix.numpy())[0])


# Its dependency linear_operator decorates with torch.jit.script, which PyTorch deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
@pytest.mark.parametrize("name", ["HessianLinearOperator", "GGNLinearOperator"])
def test_an_operator_of_curvlinops(name):
    curvlinops = importlib.import_module("curvlinops")
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = [(torch.randn(n, 3, dtype=torch.float64), torch.randint(2, (n,))) for n in (5, 4)]
    operator = getattr(curvlinops, name)(model, nn.CrossEntropyLoss(), list(model.parameters()), data)
    dense = operator @ torch.eye(operator.shape[0], dtype=torch.float64)
    spectrum = hesspec.spectrum(operator, steps=operator.shape[0])
    assert_same_spectrum_with_multiplicities(spectrum, dense.numpy())


def assert_same_spectrum_with_multiplicities(spectrum, dense):
    truth = np.linalg.eigh((dense + dense.T) / 2)[0]
    copies = np.rint(spectrum.eigenvalue_weights * len(truth)).astype(int)
    values, bounds = np.repeat(spectrum.eigenvalues, copies), np.repeat(spectrum.error_bounds, copies)
    order = np.argsort(values)
    assert spectrum.exact
    # The dense matrix's own rounding is that of one more product.
    assert (np.abs(values[order] - truth) <= 2 * bounds[order]).all()


class RankOne:
    """u u^T: the least that an operator has to have."""

    def __init__(self, u):
        self.u, self.shape, self.dtype, self.device = u, (len(u), len(u)), u.dtype, u.device

    def __matmul__(self, vector):
        """u (u·v)."""
        return self.u * (self.u @ vector)


def test_a_class_of_the_users_own():
    spectrum = hesspec.spectrum(RankOne(torch.tensor([3.0, 0.0, 4.0, 0.0, 12.0])), steps=5)
    assert spectrum.eigenvalues[0] == pytest.approx(169)
    assert spectrum.trace == pytest.approx(169)
    assert spectrum.effective_rank == pytest.approx(1)


def test_what_an_operator_says_of_itself_is_kept():
    operator = RankOne(torch.ones(3))
    operator.attributes = {"matrix": "u u^T", "seed": "overwritten"}
    attributes = hesspec.spectrum(operator, steps=3, seed=5).attributes
    assert attributes["matrix"] == "u u^T"
    assert attributes["seed"] == 5
    assert {"seconds", "dtype", "device", "created", "hesspec", "torch", "threads", "machine"} <= set(attributes)


@pytest.mark.parametrize("name", ["shape", "dtype", "device"])
def test_an_operator_without_an_attribute_is_refused_naming_it(name):
    operator = RankOne(torch.ones(3))
    delattr(operator, name)
    with pytest.raises(ValueError, match=f"A RankOne has no {name};"):
        hesspec.spectrum(operator)


def test_an_operator_without_a_product_is_refused():
    class Nothing:
        shape, dtype, device = (3, 3), torch.float32, torch.device("cpu")

    with pytest.raises(ValueError, match="A Nothing has no __matmul__; an operator needs shape, dtype, device and @"):
        hesspec.spectrum(Nothing())


@pytest.mark.parametrize("shape", [(3, 4), (9,), (2, 2, 2), (0, 0)])
def test_anything_but_a_square_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match=f"has shape \\({', '.join(map(str, shape))}"):
        hesspec.spectrum(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.complex64])
def test_dtypes_without_enough_digits_are_refused(dtype):
    with pytest.raises(ValueError, match=rf"a Tensor, is {dtype}; spectra are measured in"):
        hesspec.spectrum(torch.zeros(3, 3, dtype=dtype))


def test_a_tensor_that_requires_a_gradient_is_refused():
    with pytest.raises(ValueError, match=r"requires a gradient; pass operator.detach\(\)"):
        hesspec.spectrum(torch.eye(3, requires_grad=True))


def test_a_matrix_that_is_not_symmetric_is_refused():
    with pytest.raises(hesspec.NotSymmetricError, match="not symmetric"):
        hesspec.spectrum(torch.randn(20, 20), steps=5)


# Arguments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, -1, 2.5, 64.0, "all", None, True])
def test_bad_steps_are_refused_with_their_value(steps):
    with pytest.raises(ValueError, match=f"steps is {steps!r}; it must be a positive integer or 'auto'"):
        hesspec.spectrum(torch.eye(3), steps=steps)


@pytest.mark.parametrize("probes", [0, -2, 1.5, "auto", None, True])
def test_bad_probes_are_refused_with_their_value(probes):
    with pytest.raises(ValueError, match=f"probes is {probes!r}; it must be a positive integer"):
        hesspec.spectrum(torch.eye(3), probes=probes)


@pytest.mark.parametrize("tolerance", [0, -0.1, float("nan")])
def test_bad_tolerances_are_refused_with_their_value(tolerance):
    with pytest.raises(ValueError, match=f"tolerance is {tolerance!r}; it must be positive"):
        hesspec.spectrum(torch.eye(3), tolerance=tolerance)


@pytest.mark.parametrize("seed", [1.0, "0", None, True, 2**64, -(2**63) - 1])
@pytest.mark.parametrize(
    "measure",
    [hesspec.spectrum, partial(hesspec.eigenpairs, count=1), xtrace],
    ids=["spectrum", "eigenpairs", "xtrace"],
)
def test_bad_seeds_are_refused_with_their_value(measure, seed):
    with pytest.raises(ValueError, match=f"seed is {seed!r}; it must be an integer from -9"):
        measure(torch.eye(8), seed=seed)


@pytest.mark.parametrize("seed", [0, -1, 2**64 - 1, np.int64(3), np.uint64(2**64 - 1)])
def test_seeds_that_generators_take_are_taken(seed):
    assert hesspec.spectrum(torch.eye(8), seed=seed).norm == pytest.approx(1)


def test_true_is_not_a_number_of_anything():
    for measure, name in [(hesspec.eigenpairs, "count"), (xtrace, "matvecs")]:
        with pytest.raises(ValueError, match=f"{name} is True; it must be a"):
            measure(torch.eye(8), **{name: True})


def test_whole_numbers_of_numpy_are_whole_numbers():
    spectrum = hesspec.spectrum(symmetric(20), steps=np.int64(6), probes=np.int32(2))
    assert (spectrum.steps, spectrum.probes, spectrum.matvecs) == (6, 2, 13)


def test_nothing_but_the_products_is_asked_of_an_operator():
    products = []

    class Counting(RankOne):
        def __matmul__(self, vector):
            products.append(vector.clone())
            return torch.diag(torch.arange(40.0)) @ vector

    hesspec.spectrum(Counting(torch.ones(40)), steps=7, probes=3)
    # The last one is the first again.
    assert [tuple(vectors.shape) for vectors in products] == [(40,)] * 7 + [(40, 2)] * 7 + [(40,)]
    for vectors in products:
        torch.testing.assert_close(vectors.norm(dim=0), torch.ones(vectors.shape[1:]), atol=1e-5, rtol=0)


def test_progress_is_told_after_every_step():
    calls = []
    hesspec.spectrum(symmetric(20), steps=4, probes=2, on_step=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 8) for n in range(1, 9)]
    calls.clear()
    hesspec.spectrum(torch.eye(20), steps="auto", on_step=lambda done, total: calls.append((done, total)))
    assert calls == [(1, None), (2, None), (3, None)]


def test_an_interrupted_run_raises_what_interrupted_it():
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hesspec.spectrum(symmetric(20), steps=10, on_step=stop)


def test_a_basis_beyond_the_memory_is_refused_before_the_first_product():
    operator = RankOne(torch.ones(1000, dtype=torch.float64))
    operator.product = pytest.fail
    with pytest.raises(MemoryError, match=r"64 vectors of 1,000 numbers.*take fewer steps \(at most 10\)"):
        hesspec.spectrum(operator, steps=64, basis="full", memory=10 * 8 * 1000)


def test_auto_stays_within_the_memory():
    matrix = torch.diag(torch.linspace(-1, 1, 500).double())
    spectrum = hesspec.spectrum(matrix, steps="auto", tolerance=1e-9, memory=20 * 8 * 500)
    assert (spectrum.steps, spectrum.attributes["basis"]) == (40, "half")
    assert spectrum.stopped == "the basis reached the memory that it may fill"
