"""Effective data by inversion of the curve from scratch."""

from __future__ import annotations

import math

import numpy as np
import pytest

import hesspec
from hesspec.applications.transfer.effective import scratch_curve

# L(N, D) in the form of Kaplan et al. (arXiv 2001.08361), with alpha_N = 0.076 and alpha_D = 0.095.
ALPHA_N, ALPHA_D, N_C, D_C = 0.076, 0.095, 8.8e13, 5.4e13
SIZES = np.array([10, 19, 37, 71, 136.0])


def loss(data, count=1e7):
    return ((N_C / count) ** (ALPHA_N / ALPHA_D) + D_C / np.asarray(data)) ** ALPHA_D


def enough(count=1e7):
    """D(N), where the loss is L(N, infinity) / 0.99, in closed form."""
    limit = (N_C / count) ** ALPHA_N
    return D_C / ((limit / 0.99) ** (1 / ALPHA_D) - (N_C / count) ** (ALPHA_N / ALPHA_D))


def test_the_curve_of_a_published_law_is_inverted() -> None:
    limit = (N_C / 1e7) ** ALPHA_N
    assert enough() == pytest.approx(1.346404277e9, rel=1e-9)
    assert loss(enough()) == pytest.approx(limit / 0.99, rel=1e-12)
    sizes = np.geomspace(1e4, 1e11, 29)
    for value in (loss(3.3e5), loss(2e7), limit / 0.99):
        exact = D_C / (value ** (1 / ALPHA_D) - (N_C / 1e7) ** (ALPHA_N / ALPHA_D))
        found = hesspec.effective_data(sizes, loss(sizes), value)
        # Linear interpolation of these points is off by 1.4%; cubics by less.
        assert found.value == pytest.approx(exact, rel=3e-3)
        assert (found.lower, found.upper) == (0, math.inf)


def test_without_pre_training_nothing_is_transferred() -> None:
    noise = np.exp(0.01 * np.random.default_rng(0).normal(size=(5, 3)))
    values = (3 / SIZES)[:, None] * noise
    for index, size in enumerate(SIZES):
        found = hesspec.effective_data(SIZES, values, values[index])
        assert found.value - size == pytest.approx(0, abs=1e-12 * size)
        assert found.lower <= size <= found.upper


def test_a_fine_tuned_network_that_is_worse_has_less_effective_data() -> None:
    found = hesspec.effective_data(SIZES, 3 / SIZES, 3 / 20)
    assert found.value == pytest.approx(20, rel=1e-12)
    assert found.value - 37 < 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("power", [-0.7, 1.3])
def test_a_power_law_is_inverted_exactly_whether_it_rises_or_falls(power: float, dtype: type) -> None:
    values = (2 * SIZES**power).astype(dtype)
    order = np.random.default_rng(0).permutation(5)
    found = hesspec.effective_data(SIZES[order], values[order], 2 * 50.0**power)
    assert found.value == pytest.approx(50, rel=1e-12 if dtype is np.float64 else 1e-6)


def test_intervals_hold_the_true_size_as_often_as_they_say() -> None:
    # Two seeds from scratch at five sizes, two fine-tuned. They are conservative between sizes, hence no upper limit.
    # Of 400 draws, 95% are 380 with a standard deviation of 4.4; two of these are allowed.
    held, unbounded = 0, 0
    for seed in range(400):
        noise = np.exp(0.1 * np.random.default_rng(seed).normal(size=(6, 2)))
        found = hesspec.effective_data(SIZES, (3 / SIZES)[:, None] * noise[:5], 3 / 50 * noise[5])
        held += found.lower <= 50 <= found.upper
        unbounded += not math.isfinite(found.upper)
    assert held >= 380 - 9
    assert unbounded < 20


def test_the_interval_is_wide_where_the_curve_is_flat() -> None:
    noise = np.exp(np.array([[1], [-1]]) * 0.004).T
    steep = np.array([1, 0.8, 0.6, 0.4, 0.2])[:, None] * noise
    flat = np.array([1, 0.52, 0.51, 0.5, 0.2])[:, None] * noise
    first, second = (hesspec.effective_data(SIZES, values, 0.51) for values in (steep, flat))
    assert math.log(second.upper / second.lower) > 4 * math.log(first.upper / first.lower)


def test_means_out_of_order_within_the_noise_are_pooled() -> None:
    values = np.array([[1.0, 1.1], [0.7, 0.79], [0.72, 0.8], [0.5, 0.52], [0.3, 0.33]])
    curve = scratch_curve(SIZES, values)
    assert curve.pooled.tolist() == [0, 1, 1, 0, 0]
    assert curve.log_values[1] == curve.log_values[2]
    level = math.exp(curve.log_values[1])
    found = hesspec.effective_data(SIZES, values, level)
    assert found.value == pytest.approx(math.sqrt(19 * 37), rel=1e-12)
    assert found.lower < 19
    assert found.upper > 37
    below = hesspec.effective_data(SIZES, values, level * 0.999).value
    assert below == pytest.approx(37, rel=0.05)


def test_missing_seeds_are_left_out() -> None:
    values = np.stack([3 / SIZES, 3.1 / SIZES], axis=1)
    values[2, 1] = np.nan
    values[4] = np.nan
    found = hesspec.effective_data(SIZES, values, [3 / 30, np.nan])
    assert 25 < found.lower < found.value < found.upper < 40


@pytest.mark.parametrize(
    ("values", "value", "message"),
    [
        (3 / SIZES, 0.01, r"more than the largest size of the curve, where it is 0.02206 at 136; .* more data"),
        (3 / SIZES, 1.0, "less than the smallest"),
        (3 / SIZES, -1.0, "to invert must be positive numbers"),
        (3 / SIZES, [np.nan], "missing"),
        (np.array([5, 4, 4.5, 2, 1.0]), 3.0, "not monotone.*one seed only"),
        (np.array([[5, 5.01], [4, 4.01], [4.5, 4.51], [2, 2.01], [1, 1.01]]), 3.0, "not monotone.*more than seeds"),
        (np.ones(5), 1.0, "flat"),
        (np.array([5, 4, 0, 2, 1.0]), 3.0, "values must be positive and finite.*contain 0"),
        (np.ones(4), 1.0, r"sizes has shape \(5,\) and values \(4,\)"),
        (np.array([5, 4, np.nan, np.nan, np.nan]), 3.0, "2 different sizes"),
    ],
)
def test_what_cannot_be_inverted_is_refused(values, value, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hesspec.effective_data(SIZES, values, value)
