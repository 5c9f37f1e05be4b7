"""Closed forms: mean exit times and the step-size condition, against known answers, integrals and each other."""

import math

import numpy as np
import pytest
import scipy.integrate

import hesspec

mean_exit_time, step_size_limit = hesspec.noise.mean_exit_time, hesspec.noise.step_size_limit


@pytest.mark.parametrize(
    ("alpha", "expected"), [(1.2, 1.798834), (1.5, math.sqrt(2 * math.pi)), (1.8, 5.457690), (1.0, math.pi / 2)]
)
def test_constants_of_the_limit(alpha, expected):
    assert mean_exit_time(alpha, 1.0, 1.0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.3, 1.2, 1.7])
def test_other_form_of_the_constant_and_scaling(alpha):
    c = 1 / (2 * math.gamma(1 - alpha) * math.cos(math.pi * alpha / 2))
    assert mean_exit_time(alpha, 0.02, 3.0, 7) == pytest.approx(3**alpha / (2 * 7 * c * 0.02**alpha), rel=1e-12)
    assert mean_exit_time(alpha, 0.02, 3.0, 7, curvature=5.0, learning_rate=0.1) == mean_exit_time(alpha, 0.02, 3.0, 7)


@pytest.mark.parametrize(("curvature", "expected"), [(0.5, 18.62), (1.0, 108.62), (2.0, 9367), (4.0, 2.16e8)])
def test_gaussian_noise(curvature, expected):
    assert mean_exit_time(2, 0.3, 1.0, curvature=curvature) == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize("dimension", [1, 2, 3, 10])
@pytest.mark.parametrize(("curvature", "scale"), [(0.0, 0.4), (1.0, 0.4), (3.0, 0.5), (1.0, 5.0)])
def test_gaussian_noise_against_the_double_integral(dimension, curvature, scale):
    s2, a = 2 * scale**2, 1.3

    def inner(x):
        return scipy.integrate.quad(lambda y: (y / x) ** (dimension - 1) * math.exp(-curvature * y**2 / s2), 0, x)[0]

    whole = scipy.integrate.quad(lambda x: math.exp(curvature * x**2 / s2) * inner(x), 1e-12, a)[0]
    assert mean_exit_time(2, scale, a, dimension, curvature=curvature) == pytest.approx(2 / s2 * whole, rel=1e-7)


def test_gaussian_time_is_exponential_in_the_barrier_and_may_exceed_all_numbers():
    # For a high barrier T the time is sqrt(pi) / (2 curvature) exp(T) / sqrt(T) (1 + 1/(2 T) + ...).
    barrier = 400.0
    scale = math.sqrt(1 / (2 * barrier))
    leading = math.log(math.sqrt(math.pi) / 2 / math.sqrt(barrier)) + barrier
    assert math.log(mean_exit_time(2, scale, 1.0, curvature=1.0)) == pytest.approx(leading, abs=2 / barrier)
    assert mean_exit_time(2, 0.01, 1.0, curvature=1.0) == math.inf
    assert mean_exit_time(2, 1e-9, 1.0, curvature=1.0) == math.inf


def test_steps_of_any_length_without_a_force():
    # A walk without a force exits at (radius + overshoot)^2 / s^2.
    assert mean_exit_time(2, 0.5, 1.0, curvature=0.0, learning_rate=0.1) == pytest.approx(
        (1 + 0.5825971579 * math.sqrt(0.05)) ** 2 / 0.5, rel=1e-9
    )


def test_small_steps_are_the_limit_in_continuous_time():
    exact = mean_exit_time(2, 0.3, 1.0, curvature=1.0)
    ratios = [mean_exit_time(2, 0.3, 1.0, curvature=1.0, learning_rate=eta) / exact - 1 for eta in (1e-6, 1e-8)]
    # The error is of order sqrt(eta).
    assert ratios[0] / ratios[1] == pytest.approx(10, rel=0.02)
    assert ratios[1] < 1e-3


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 1, 1), {}, "alpha is 0; the tail index"),
        ((2.5, 1, 1), {}, r"alpha is 2\.5"),
        ((1.5, 0, 1), {}, "scale is 0; it must be a positive finite number"),
        ((1.5, 1, -1), {}, "radius is -1"),
        ((1.5, 1, math.inf), {}, "radius is inf"),
        ((1.5, 1, 1, 0), {}, "dimension is 0; it must be a positive integer"),
        ((2, 1, 1), {}, "depends on the curvature; pass curvature="),
        ((2, 1, 1), {"curvature": -1.0}, r"curvature is -1\.0; it must be a nonnegative"),
        ((2, 1, 1), {"curvature": 1.0, "learning_rate": 0}, "learning_rate is 0"),
        ((2, 1, 1), {"curvature": 2.0, "learning_rate": 0.5}, "learning_rate times curvature is 1"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        mean_exit_time(*arguments, **options)


# The step-size condition ----------------------------------------------------------------------------------------------

GIVEN = {"gamma": 0.6, "alpha": 1.5, "lipschitz": 1, "dissipativity": 1, "time": 1, "delta": 0.1}


def test_step_size_condition():
    found = step_size_limit(**GIVEN, constants=(1, 1, 1, 1))
    expected = [1, 1, 7.781e-5, 1.209e-2, 1.330e-3, 1.462e-4]
    np.testing.assert_allclose(list(found.terms.values()), expected, rtol=5e-4)
    assert found.value == min(found.terms.values())
    assert "because of K1" in repr(found)
    larger = step_size_limit(**{**GIVEN, "lipschitz": 2}, constants=(1, 1, 1, 1e6))
    assert larger.terms["m/M^2"] == 0.25
    assert larger.terms["K4"] == pytest.approx(found.terms["K4"] * 1e6 ** (-1 / 0.6), rel=1e-12)
    assert "because of K4" in repr(larger)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 0.5}, "gamma is 0.5; the condition holds for 1/2 < gamma"),
        ({"gamma": 0.72}, r"= 0\.7071"),
        ({"alpha": 1.1, "gamma": 0.6}, r"= 0\.55"),
        ({"alpha": 1.0}, "which no gamma satisfies for alpha = 1"),
        ({"alpha": 3}, "alpha is 3"),
        ({"delta": 1.0}, "delta is 1.0; it is an error of probabilities"),
        ({"time": 0}, "time is 0"),
        ({"lipschitz": math.nan}, "lipschitz is nan"),
        ({"constants": (1, 1, 1)}, "There are 3 constants"),
        ({"constants": (1, 0, 1, 1)}, "K2 is 0"),
    ],
)
def test_impossible_conditions(changes, message):
    with pytest.raises(ValueError, match=message):
        step_size_limit(**{**GIVEN, "constants": (1, 1, 1, 1), **changes})
