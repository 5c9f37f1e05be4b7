"""Simulated exit times against closed forms, step by step against a plain loop, and censoring."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import hesspec

noise = hesspec.noise
first_exit_times = noise.first_exit_times


def line(curvature, dimension=1, dtype=torch.float64):
    return curvature * torch.eye(dimension, dtype=dtype)


# With n runs the mean of exponential times has a relative standard error of 1/sqrt(n).
RUNS = 2_000
ERROR = 1 / math.sqrt(RUNS)


@pytest.mark.parametrize(
    ("alpha", "rate"),
    [
        (1.2, 0.05),
        (1.2, 0.5),
        (1.5, 0.5),
        pytest.param(1.8, 0.5, marks=pytest.mark.long),
        pytest.param(1.5, 0.05, marks=pytest.mark.long),
        pytest.param(1.8, 0.05, marks=pytest.mark.long),
    ],
)
def test_stable_noise_leaves_by_jumps_at_any_step_size(alpha, rate):
    found = first_exit_times(
        line(1.0), 1.0, learning_rate=rate, alpha=alpha, scale=0.03, runs=RUNS, max_steps=1_000_000
    )
    assert found.censored == 0
    # The limit is that of small noise; at this scale times were within 3% of it.
    assert abs(found.mean / found.expected - 1) < 4 * ERROR + 0.03
    # The relative variance of n exponential times has a standard error of sqrt(8/n).
    assert abs(found.variation**2 - 1) < 4 * math.sqrt(8) * ERROR
    assert scipy.stats.kstest(found.times / found.mean, scipy.stats.expon.cdf).pvalue > 0.001


def test_time_under_stable_noise_does_not_depend_on_the_curvature():
    means = [
        first_exit_times(
            line(curvature), 1.0, learning_rate=0.4, alpha=1.5, scale=0.03, runs=RUNS, max_steps=100_000, seed=seed
        ).mean
        for seed, curvature in enumerate((0.5, 4.0))
    ]
    assert max(means) / min(means) - 1 < 4 * math.sqrt(2) * ERROR + 0.03


def test_slope_against_the_radius_is_alpha():
    radii = (0.5, 1.0, 2.0)
    means = [
        first_exit_times(line(1.0), a, learning_rate=0.5, alpha=1.5, scale=0.03, runs=RUNS, seed=seed).mean
        for seed, a in enumerate(radii)
    ]
    slope = math.log(means[2] / means[0]) / math.log(4)
    assert abs(slope - 1.5) < 4 * math.sqrt(2) * ERROR / math.log(4) + 0.03


def test_ten_dimensions_are_left_ten_times_as_fast():
    found = first_exit_times(line(1.0, 10), 1.0, learning_rate=0.5, alpha=1.5, scale=0.05, runs=RUNS)
    # At this scale 9% below the limit: ten components share the way to the boundary.
    assert abs(found.mean / found.expected - 0.91) < 4 * ERROR + 0.03
    assert abs(found.variation**2 - 1) < 4 * math.sqrt(8) * ERROR


@pytest.mark.parametrize(
    ("rate", "scale", "dimension"),
    [(0.01, 0.5, 1), (0.01, 0.35, 1), (0.1, 0.3, 1), (0.1, 0.5, 3), (0.02, 0.35, 2)],
)
def test_gaussian_noise_against_the_formula_for_steps(rate, scale, dimension):
    found = first_exit_times(
        line(1.0, dimension), 1.0, learning_rate=rate, alpha=2, scale=scale, runs=RUNS, max_steps=1_000_000, seed=1
    )
    law = noise.mean_exit_time(2, scale, 1.0, dimension, curvature=1.0, learning_rate=rate)
    assert abs(found.mean / law - 1) < 4 * ERROR + 0.5 * rate
    # Without the correction for steps the formula is too low.
    assert found.mean > 1.1 * noise.mean_exit_time(2, scale, 1.0, dimension, curvature=1.0)


def test_gaussian_part_of_the_noise():
    stable = first_exit_times(line(1.0), 1.0, learning_rate=0.1, alpha=2, scale=0.5, runs=RUNS)
    gaussian = first_exit_times(line(1.0), 1.0, learning_rate=0.1, gaussian=0.5 * math.sqrt(2), runs=RUNS)
    assert gaussian.times.tolist() == stable.times.tolist()
    both = first_exit_times(line(1.0), 1.0, learning_rate=0.1, alpha=1.5, scale=0.05, gaussian=0.4, runs=RUNS)
    alone = noise.mean_exit_time(2, 0.4 / math.sqrt(2), 1.0, curvature=1.0, learning_rate=0.1)
    assert both.mean < min(alone, noise.mean_exit_time(1.5, 0.05, 1.0))
    assert math.isnan(both.expected)


# The simulation itself ------------------------------------------------------------------------------------------------


def slope_of(points):
    return points**3 + points.roll(1, dims=1)


def test_agrees_with_a_plain_loop():
    runs, steps, rate, alpha, scale, radius = 60, 50, 0.1, 1.4, 0.2, 1.2
    centre = torch.tensor([0.3, -0.2], dtype=torch.float64)
    found = first_exit_times(
        slope_of,
        radius,
        learning_rate=rate,
        alpha=alpha,
        scale=scale,
        minimum=centre,
        runs=runs,
        max_steps=steps,
        seed=4,
    )
    jumps = noise.stable_noise(alpha, (steps, runs, 2), torch.Generator().manual_seed(4)) * scale * rate ** (1 / alpha)
    for run in range(runs):
        w, exit_at = centre.clone(), None
        for step in range(steps):
            w = w - rate * slope_of(w[None])[0] + jumps[step, run]
            if (w - centre).norm() > radius:
                exit_at = step + 1
                break
        assert found.exited[run] == (exit_at is not None)
        assert found.steps[run] == (exit_at or steps)
    assert 0 < found.censored < runs


def test_a_matrix_is_its_gradient():
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    centre = torch.zeros(2, dtype=torch.float64)
    how = {"learning_rate": 0.2, "alpha": 1.5, "scale": 0.1, "runs": 300}
    by_matrix = first_exit_times(matrix, 1.0, **how)
    by_function = first_exit_times(lambda points: points @ matrix, 1.0, minimum=centre, **how)
    np.testing.assert_array_equal(by_matrix.steps, by_function.steps)
    # The place of the minimum does not matter for a quadratic.
    moved = first_exit_times(matrix, 1.0, minimum=centre + 1e12, **how)
    np.testing.assert_array_equal(by_matrix.steps, moved.steps)


def test_quadratic_of_a_measured_hessian():
    torch.manual_seed(0)
    model, data = nn.Linear(4, 3), [(torch.randn(40, 4), torch.randint(3, (40,)))]
    hessian = hesspec.Hessian(model, nn.CrossEntropyLoss(), data)
    dense = hessian @ torch.eye(15)
    how = {"learning_rate": 0.5, "alpha": 1.5, "scale": 0.05, "runs": 50, "max_steps": 200}
    found, exact = first_exit_times(hessian, 1.0, **how), first_exit_times(dense, 1.0, **how)
    # A run within rounding of the boundary may exit a step apart; none of these does.
    np.testing.assert_array_equal(found.steps, exact.steps)
    assert found.dimension == 15
    assert found.attributes["gradient"] == "Hessian"


def test_float32_points_exit_at_the_same_time():
    how = {"learning_rate": 0.2, "alpha": 1.5, "scale": 0.1, "runs": 500}
    double, single = (first_exit_times(line(1.0, 2, dtype), 1.0, **how) for dtype in (torch.float64, torch.float32))
    assert (double.steps == single.steps).mean() > 0.99


def test_seeds():
    how = {"learning_rate": 0.2, "alpha": 1.5, "scale": 0.1, "runs": 50}
    first, again, other = (first_exit_times(line(1.0), 1.0, seed=seed, **how) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.steps, again.steps)
    assert (first.steps != other.steps).any()


def test_jumps_beyond_all_numbers_are_exits():
    found = first_exit_times(line(1.0), 1.0, learning_rate=0.1, alpha=0.01, scale=1e-30, runs=500, max_steps=100)
    assert found.exits > 100


# Censoring ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [200, 1_000, 4_000])
def test_censored_runs_do_not_bias_the_mean(steps):
    found = first_exit_times(line(1.0), 1.0, learning_rate=0.5, alpha=1.5, scale=0.03, runs=RUNS, max_steps=steps)
    assert found.censored > 0
    assert abs(found.mean / found.expected - 1) < 4 / math.sqrt(found.exits) + 0.03
    assert found.interval[0] < found.mean < found.interval[1]
    assert found.standard_error == pytest.approx(found.mean / math.sqrt(found.exits))
    assert math.isnan(found.variation)
    share = math.exp(-found.horizon / found.expected)
    assert abs(found.censored / RUNS - share) < 4 * math.sqrt(share * (1 - share) / RUNS) + 0.03
    times, inside = found.survival()
    assert inside[-1] == pytest.approx(found.censored / RUNS, abs=1e-12)
    assert times[-1] <= found.horizon
    assert found.quantile(0.999) == math.inf
    assert "if times are exponential" in repr(found)
    assert (f"more than {found.horizon:.4g}" in repr(found)) == (inside[-1] > 0.1)


def test_intervals_hold_as_often_as_they_say():
    generator = np.random.default_rng(0)
    held, count = 0, 400
    for _ in range(count):
        times = np.ceil(generator.exponential(1_000.0, size=40)).astype(np.int64)
        found = noise.ExitTimes(
            steps=np.minimum(times, 400),
            exited=(times <= 400).astype(np.int64),
            max_steps=400,
            dimension=1,
            radius=1.0,
            learning_rate=0.5,
            alpha=1.5,
            scale=0.1,
            gaussian=0.0,
        )
        held += found.interval[0] <= 500 <= found.interval[1]
    # The lowest of 400 that a coverage of 95% gives with a probability of 99.9%.
    assert held >= scipy.stats.binom.ppf(0.001, count, 0.95)


def test_no_exit_at_all_gives_a_lower_bound():
    found = first_exit_times(line(1.0), 1.0, learning_rate=0.1, alpha=2, scale=0.05, runs=100, max_steps=300)
    assert found.exits == 0
    assert found.mean == math.inf
    assert math.isnan(found.standard_error)
    low, high = found.interval
    # exp(-total / low) = 0.025: no exit within the time of all runs.
    assert low == pytest.approx(100 * 30 / -math.log(0.025))
    assert high == math.inf
    assert "inf" in repr(found)


def test_one_run_has_no_standard_error():
    found = first_exit_times(line(1.0), 1.0, learning_rate=0.5, alpha=1.5, scale=0.2, runs=1, max_steps=100_000)
    assert math.isnan(found.standard_error)
    assert found.mean == found.times[0]


# Bad input ------------------------------------------------------------------------------------------------------------

GIVEN = {"learning_rate": 0.1, "alpha": 1.5, "scale": 0.1}
CENTRE = torch.zeros(2)


@pytest.mark.parametrize(
    ("gradient", "changes", "message"),
    [
        (line(1.0), {"alpha": 0}, "alpha is 0; the tail index"),
        (line(1.0), {"alpha": 2.1}, r"alpha is 2\.1"),
        (line(1.0), {"radius": 0}, "radius is 0; it must be a positive finite number"),
        (line(1.0), {"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        (line(1.0), {"scale": -1.0}, r"scale is -1\.0"),
        (line(1.0), {"gaussian": math.nan}, "gaussian is nan"),
        (line(1.0), {"scale": 0}, "There is no noise"),
        (line(1.0), {"runs": 0}, "runs is 0; it must be a positive integer"),
        (line(1.0), {"max_steps": 1.5}, r"max_steps is 1\.5"),
        (line(1.0), {"seed": "a"}, "seed is 'a'"),
        (line(1.0), {"minimum": CENTRE}, r"minimum has 2 entries, but the Hessian has shape \(1, 1\)"),
        (torch.ones(2, 3), {}, r"shape \(2, 3\)"),
        (lambda points: points, {}, "needs minimum="),
        (lambda points: points, {"minimum": [0.0, 0.0]}, "but it is not one"),
        (lambda points: points, {"minimum": torch.zeros(2, 2)}, r"but it has shape \(2, 2\)"),
        (lambda points: points, {"minimum": torch.zeros(2, dtype=torch.int64)}, "torch.int64"),
        (lambda points: points.sum(1), {"minimum": CENTRE}, r"has shape \(1000,\); it must have the same shape"),
        (lambda points: None, {"minimum": CENTRE}, "has type NoneType"),
        (3.0, {}, "gradient is a float; pass a function"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(gradient, changes, message):
    given = {"radius": 1.0, **GIVEN, **changes}
    with pytest.raises(ValueError, match=message):
        first_exit_times(gradient, given.pop("radius"), **given)


def test_a_gradient_that_is_not_finite():
    with pytest.raises(hesspec.NonFiniteError, match="NaN or infinity in step 1"):
        first_exit_times(lambda points: points * math.nan, 1.0, minimum=CENTRE, **GIVEN)
