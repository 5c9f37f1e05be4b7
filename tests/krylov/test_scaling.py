"""Operators of any scale: what is stated of 2^e A is what is stated of A, times 2^e, down to the last bit."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from random_operators import SPECTRA, Diagonal, operator_of, paired

import hesspec
from hesspec.krylov.scaling import Scaled, smallest_number
from hesspec.krylov.xtrace import xtrace

CPU = torch.device("cpu")
PRECISIONS = [torch.float32, torch.float64]
# Largest powers of two at which neither the operators here nor eps of their products leave the normal numbers.
POWERS = {torch.float32: (-90, -40, 40, 120), torch.float64: (-900, -400, 400, 1010)}
KINDS = ["spiked", "few values", "graded", "near pair", "normal"]
# In units of eigenvalues.
SCALING = ("eigenvalues", "error_bounds", "bulk_nodes", "ritz_values", "ritz_bounds", "norm", "rounding")


def dense(kind, dtype, p=40):
    values = SPECTRA[kind](p, np.random.default_rng(3))
    return operator_of(values, dense=True, dtype=dtype, scale=1.0, seed=3).matrix


RUNS = [(dtype, power) for dtype in PRECISIONS for power in POWERS[dtype]]


@pytest.mark.parametrize(("dtype", "power"), RUNS)
@pytest.mark.parametrize(
    "options", [{}, {"probes": 3}, {"basis": "half", "probes": 2}, {"basis": "restarted"}], ids=str
)
@pytest.mark.few(12)
def test_a_spectrum_scales(dtype, power, options):
    for kind in KINDS:
        matrix = dense(kind, dtype)
        if "restarted" in options.values():
            options = {**options, "memory": 40 * dtype.itemsize * 16}
        plain, scaled = (hesspec.spectrum(m, steps=12, **options) for m in (matrix, matrix * 2.0**power))
        for field in dataclasses.fields(plain):
            one, other = getattr(plain, field.name), getattr(scaled, field.name)
            if field.name in SCALING:
                # What products lose to underflow is added, and is far below eps of the norm.
                np.testing.assert_allclose(other, np.ldexp(one, power), rtol=1e-7 if "bound" in field.name else 0)
            elif field.name != "attributes":
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("dtype", "power"), RUNS)
@pytest.mark.parametrize("kind", KINDS)
def test_so_does_all_that_follows_from_it(kind, dtype, power):
    matrix = dense(kind, dtype)
    plain, scaled = (hesspec.spectrum(m, steps=12) for m in (matrix, matrix * 2.0**power))
    for name in ("trace", "trace_standard_error", "wasserstein_bound"):
        assert getattr(scaled, name) == pytest.approx(np.ldexp(getattr(plain, name), power), rel=1e-7)
    for name in ("effective_rank", "kolmogorov_smirnov_bound", "num_negative"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-12)
    assert (scaled.is_outlier == plain.is_outlier).all()
    x = plain.nodes[::3]
    for name in ("lower", "upper", "operator_lower", "operator_upper"):
        one, other = plain.cdf_bracket(x)[name], scaled.cdf_bracket(np.ldexp(x, power))[name]
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(plain.cdf(x).cdf, scaled.cdf(np.ldexp(x, power)).cdf)
    one, other = plain.density(), scaled.density()
    np.testing.assert_allclose(np.ldexp(other.eigenvalue, -power), one.eigenvalue)
    for name in ("density", "standard_error"):
        scale = float(one.density.max())
        np.testing.assert_allclose(np.ldexp(other[name], power), one[name], rtol=1e-9, atol=1e-12 * scale)
    one, other = plain.log_density(), scaled.log_density()
    np.testing.assert_allclose(other.log10_magnitude - power * np.log10(2), one.log10_magnitude, atol=1e-9)
    for name in ("density", "positive", "negative", "standard_error"):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-6, atol=1e-12)
    # A text for each number, none of which is infinite or not a number.
    assert not {"inf", "nan"} & set(repr(scaled).replace("[", " ").replace(",", " ").split())


@pytest.mark.parametrize(("dtype", "power"), RUNS)
@pytest.mark.parametrize("basis", ["full", "restarted"])
def test_so_do_eigenpairs(basis, dtype, power):
    matrix = dense("spiked", dtype)
    options = {"count": 4, "steps": 16, "basis": basis}
    if basis == "restarted":
        options["memory"] = 40 * dtype.itemsize * 16
    plain, scaled = (hesspec.eigenpairs(m, **options) for m in (matrix, matrix * 2.0**power))
    np.testing.assert_array_equal(scaled.values, np.ldexp(plain.values, power))
    np.testing.assert_allclose(scaled.residuals, np.ldexp(plain.residuals, power), rtol=1e-7)
    np.testing.assert_allclose(scaled.vector_errors, plain.vector_errors, rtol=1e-6)
    assert torch.equal(scaled.vectors, plain.vectors)


@pytest.mark.parametrize(("dtype", "power"), RUNS)
@pytest.mark.parametrize("matvecs", [4, 16, 80])
def test_so_do_traces(matvecs, dtype, power):
    matrix = dense("normal", dtype)
    plain, scaled = (xtrace(m, matvecs) for m in (matrix, matrix * 2.0**power))
    assert scaled == (np.ldexp(plain.value, power), np.ldexp(plain.standard_error, power), plain.matvecs)


# The ends of the range ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [1e-305, 1e-310, 1e-320])
def test_bounds_hold_where_eigenvalues_are_subnormal(norm):
    values = norm * np.random.default_rng(0).standard_normal(60)
    for steps in (10, 60):
        spectrum = hesspec.spectrum(Diagonal(values, torch.float64), steps=steps)
        assert paired(spectrum.eigenvalues / 5e-324, spectrum.error_bounds / 5e-324, values / 5e-324)
        # p times half of the smallest number, at least.
        assert spectrum.rounding >= 60 * 2.5e-324


def test_an_operator_that_is_zero_up_to_underflow_is_zero():
    assert hesspec.spectrum(Diagonal(np.full(60, 5e-324), torch.float64)).norm == 0


def test_eigenvalues_beyond_float64_are_an_error_that_says_what_to_do():
    # All entries are a hundredth of the largest number, and the norm is 1,000 times as much.
    matrix = torch.full((1000, 1000), 1.7e306, dtype=torch.float64)
    with pytest.raises(hesspec.NonFiniteError, match=r"exceed the largest float64, 1.8e\+308.* divided by 1024"):
        hesspec.spectrum(matrix, steps=5)
    assert hesspec.spectrum(matrix / 1024, steps=5).norm == pytest.approx(1.7e306 / 1024 * 1000)
    with pytest.raises(hesspec.NonFiniteError, match=r"trace of the operator exceeds the largest float64"):
        # Products with test vectors, of entries up to 5, are finite.
        xtrace(torch.diag(torch.full((1000,), 1e307, dtype=torch.float64)))


def test_sums_and_powers_beyond_float64_are_infinite():
    spectrum = hesspec.spectrum(Diagonal(np.full(1000, 1e307), torch.float64))
    assert spectrum.trace == np.inf
    assert spectrum.moment(2) == np.inf
    assert hesspec.spectrum(Diagonal(np.full(1000, 1e-200), torch.float64)).moment(2) == 0


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_nothing_warns(scale):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spectrum = hesspec.spectrum(dense("graded", torch.float64) * scale, steps=8)
        repr(spectrum)
        spectrum.density()
        spectrum.log_density()
        spectrum.cdf()
        spectrum.moment(3)


# The scaled operator --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_operators_of_ordinary_norms_are_left_unchanged(dtype):
    vector, matrix = torch.ones(3, dtype=dtype), torch.eye(3, dtype=dtype) * 1e-4

    class Given:
        shape, device = (3, 3), CPU

        def __matmul__(self, vectors):
            return matrix

    Given.dtype = dtype
    operator = Scaled(Given())
    assert (operator @ vector).data_ptr() == matrix.data_ptr()
    assert operator.exponent == 0


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_an_exponent_is_chosen_by_the_first_product_that_is_not_zero(dtype):
    matrix = torch.diag(torch.tensor([0.0, 1e-30 if dtype == torch.float32 else 1e-200], dtype=dtype))
    operator, unit = Scaled(matrix), torch.eye(2, dtype=dtype)
    assert not (operator @ unit[0]).any()
    assert operator.exponent is None
    assert 0.5 <= float((operator @ unit[1])[1]) < 1
    product = operator @ unit
    assert operator.restore(product.double().numpy())[1, 1] == float(matrix[1, 1])


def test_the_smallest_number_is_that_of_the_arithmetic():
    assert smallest_number(torch.float64, CPU) == 5e-324
    assert smallest_number(torch.float32, CPU) == np.finfo(np.float32).smallest_subnormal
    if torch.set_flush_denormal(True):
        try:
            assert smallest_number(torch.float32, CPU) == np.finfo(np.float32).tiny
        finally:
            torch.set_flush_denormal(False)
