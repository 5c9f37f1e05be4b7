"""The trace to a wanted relative error: reached where it can be, within its interval, and stored."""

import numpy as np
import pytest
import torch

import hesspec
from hesspec.krylov.xtrace import FIRST, LAST, xtrace_to


def matrix(values, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    return ((vectors * torch.as_tensor(values)) @ vectors.T).to(dtype)


def values(p, seed=0):
    """A few large eigenvalues and a two-sided bulk."""
    bulk = np.random.default_rng(seed).normal(0.05, 0.1, p - 5)
    return np.concatenate([bulk, [3.0, 4.0, 5.0, 6.0, 7.0]])


class Counted:
    """Operator that counts its products."""

    def __init__(self, matrix):
        self.matrix, self.products = matrix, 0
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, vectors):
        self.products += 1 if vectors.dim() == 1 else vectors.shape[1]
        return self.matrix @ vectors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", [0.1, 0.03])
def test_it_is_reached_and_the_truth_is_inside(wanted, dtype):
    """With the interval at 95% and 20 seeds, at most 4 misses (0.3% of Binomial(20, 0.05) are more)."""
    truth = values(800)
    operator, misses = matrix(truth, 0, dtype), 0
    for seed in range(20):
        found = xtrace_to(operator, wanted, seed=seed)
        assert 2 * found.standard_error <= wanted * abs(found.value)
        misses += abs(found.value - truth.sum()) > 2 * found.standard_error
    assert misses <= 4


def test_it_takes_no_more_products_than_its_attempts():
    operator = Counted(matrix(values(600), 0))
    found = xtrace_to(operator, 0.05)
    assert operator.products == found.matvecs
    # Attempts of 16, 32, ... products.
    assert found.matvecs in {2**power * FIRST - FIRST for power in range(1, 8)}
    assert found.matvecs > xtrace_to(operator, 0.3).matvecs


def test_a_small_operator_is_traced_exactly():
    truth = values(60)
    found = xtrace_to(matrix(truth, 0), 1e-9)
    assert found.value == pytest.approx(truth.sum(), rel=1e-12)
    assert found.matvecs == 16 + 32 + 60


def test_a_trace_of_zero_ends_at_the_most_products():
    truth = np.concatenate([np.linspace(0.1, 1, 400), -np.linspace(0.1, 1, 400)])
    found = xtrace_to(matrix(truth, 0), 0.02, most=64)
    assert found.matvecs == 16 + 32 + 64
    assert abs(found.value) <= 2 * found.standard_error


@pytest.mark.parametrize("wanted", [0, 1, -0.1, 2.0])
def test_an_error_that_is_none_is_refused(wanted):
    for function in (lambda: xtrace_to(torch.eye(9), wanted), lambda: hesspec.spectrum(torch.eye(9), trace=wanted)):
        with pytest.raises(ValueError, match="between 0 and 1, such as 0.02"):
            function()


def test_it_is_part_of_the_spectrum(tmp_path):
    truth = values(800)
    plain = hesspec.spectrum(matrix(truth, 0), steps=40)
    spectrum = hesspec.spectrum(matrix(truth, 0), steps=40, trace=0.02)
    assert 2 * plain.trace_standard_error > 0.02 * abs(plain.trace)
    assert 2 * spectrum.trace_standard_error <= 0.02 * abs(spectrum.trace)
    # How often the truth is inside two standard errors is asked above; four hold for this seed.
    assert abs(spectrum.trace - truth.sum()) <= 4 * spectrum.trace_standard_error
    assert spectrum.trace == xtrace_to(matrix(truth, 0), 0.02, seed=0).value
    assert spectrum.xtrace_matvecs > 0
    assert spectrum.matvecs == plain.matvecs
    np.testing.assert_array_equal(spectrum.ritz_values, plain.ritz_values)
    spectrum.save(tmp_path / "a.nc")
    again = hesspec.load(tmp_path / "a.nc")
    names = ("trace", "trace_standard_error", "xtrace_matvecs")
    assert [getattr(again, name) for name in names] == [getattr(spectrum, name) for name in names]


def test_no_products_are_spent_on_a_trace_that_is_known():
    assert hesspec.spectrum(matrix(values(60), 0), steps=60, trace=0.01).xtrace_matvecs == 0
    assert hesspec.spectrum(matrix(values(800), 0), steps=40, trace=0.9).xtrace_matvecs == 0


def test_an_error_that_is_not_reached_is_a_warning_and_stays_in_the_result():
    truth = np.concatenate([np.linspace(0.1, 1, 1000), -np.linspace(0.1, 1, 1000)])
    with pytest.warns(UserWarning, match="eigenvalues nearly cancel"):
        spectrum = hesspec.spectrum(torch.diag(torch.as_tensor(truth)), steps=20, trace=0.02)
    assert spectrum.xtrace_matvecs == sum(2**power for power in range(4, 10)) == 2 * LAST - FIRST
    assert spectrum.attributes["wanted_trace_error"] == 0.02
    assert abs(spectrum.trace) <= 2 * spectrum.trace_standard_error


def test_vectors_that_do_not_fit_are_refused():
    with pytest.raises(MemoryError, match="increase memory=, or leave out trace="):
        hesspec.spectrum(torch.diag(torch.as_tensor(values(800))), steps=2, trace=0.001, memory=20_000)
