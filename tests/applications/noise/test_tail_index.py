"""The tail index: known answers, unbiasedness, standard errors, blocks, zeros, and data that is not stable."""

import math

import numpy as np
import pytest
import torch

import hesspec

tail_index = hesspec.noise.tail_index


def draws(alpha, shape, seed=0):
    return hesspec.noise.stable_noise(alpha, shape, torch.Generator().manual_seed(seed))


def error_of_inverse(alpha, blocks, block):
    """Standard error of 1/alpha, from the variance of log|Y| over blocks."""
    return math.sqrt(math.pi**2 / 6 * (1 / alpha**2 + 0.5) / blocks) / math.log(block)


@pytest.mark.parametrize(("alpha", "error"), [(1.0, 0.007), (1.2, 0.009), (1.5, 0.013), (1.8, 0.017), (2.0, 0.020)])
def test_known_answers(alpha, error):
    found = tail_index(draws(alpha, 1_000_000))
    assert (found.block, found.blocks) == (1_000, 1_000)
    assert alpha**2 * error_of_inverse(alpha, 1_000, 1_000) == pytest.approx(error, abs=5.1e-4)
    # The standard error is known to 1/sqrt(2 blocks) for normal data, and log|Y| has a long tail on one side.
    assert found.standard_error == pytest.approx(error, rel=0.2)
    assert abs(found.alpha - alpha) < 4 * error


@pytest.mark.parametrize("alpha", [1.3, 1.7])
def test_inverse_is_unbiased_and_its_error_is_right(alpha):
    found = tail_index(draws(alpha, (10_000, 400)))
    theory = error_of_inverse(alpha, 100, 100)
    assert abs(found.inverse - 1 / alpha) < 4 * theory / math.sqrt(400)
    assert found.inverse_error == pytest.approx(theory / math.sqrt(400), rel=0.4)
    # The sample deviation of 400 has a relative error of 4%.
    assert found.inverses.std() == pytest.approx(theory, rel=0.15)
    assert np.sqrt((found.inverse_errors**2).mean()) == pytest.approx(found.inverses.std(), rel=0.15)
    within = np.abs(found.inverses - 1 / alpha) < 2 * found.inverse_errors
    assert 0.91 < within.mean() < 0.985


def test_stable_data_has_the_same_alpha_for_all_lengths():
    found = tail_index(draws(1.5, (20_000, 20)), block=100)
    assert found.lengths.tolist() == [2, 4, 8, 16, 32, 64, 100, 128, 256, 512, 1024]
    assert (np.abs(found.alpha_curve - 1.5) < 4 * found.alpha_curve_errors).all()
    assert found.alpha == found.alpha_curve[found.lengths == 100]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scale_and_precision_do_not_matter(dtype):
    values = draws(1.2, (4_000, 3))
    scales = torch.tensor([1e-30, 1.0, 1e30], dtype=torch.float64)
    found, scaled = tail_index(values), tail_index((values * scales).to(dtype))
    np.testing.assert_allclose(scaled.inverses, found.inverses, rtol=1e-5 if dtype == torch.float32 else 1e-12)
    assert tail_index((values * 1e300).numpy()).alpha == pytest.approx(found.alpha, rel=1e-12)


def test_dependent_components_do_not_make_it_more_certain():
    values = draws(1.5, 10_000)
    once, thrice = tail_index(values), tail_index(torch.stack([values] * 3, dim=1))
    assert thrice.alpha == pytest.approx(once.alpha, rel=1e-12)
    assert thrice.standard_error == pytest.approx(once.standard_error, rel=1e-12)


def test_axis_of_batches():
    values = draws(1.5, (2_000, 4)).numpy()
    assert tail_index(values.T, axis=1).alpha == tail_index(values).alpha == tail_index(values.T, axis=-1).alpha
    assert tail_index(values, axis=None).alpha == tail_index(values.reshape(-1)).alpha


@pytest.mark.parametrize(("deviation", "flattened"), [(1.0, 1.57), (2.0, 1.03), (3.0, 0.63)])
def test_flattening_takes_different_scales_for_heavy_tails(deviation, flattened):
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(1_000, 1_000)) * np.exp(deviation * generator.normal(size=1_000))
    by_batches = tail_index(noise)
    assert abs(by_batches.alpha - 2) < 4 * by_batches.standard_error
    assert by_batches.standard_error < 0.05
    # The same scales come back in each row, so the flattened value depends on the 1,000 scales that were drawn.
    assert tail_index(noise, axis=None).alpha == pytest.approx(flattened, abs=0.15)


def test_mixtures_of_finite_variance_depend_on_the_length_of_blocks():
    generator = np.random.default_rng(0)
    mixture = generator.normal(size=(100_000, 10)) * np.exp(generator.normal(size=(100_000, 10)))
    for block, expected in ((10, 1.22), (100, 1.42), (1_000, 1.57)):
        found = tail_index(mixture, block=block)
        # The expected values are rounded and have errors of their own, of 0.01.
        assert abs(found.alpha - expected) < 4 * found.standard_error + 0.02


def test_a_mean_that_is_not_zero_gives_one():
    found = tail_index(np.random.default_rng(0).normal(size=40_000) + 5)
    assert found.alpha == pytest.approx(1, abs=0.01)


# Zeros ----------------------------------------------------------------------------------------------------------------


def test_zeros_are_dropped_and_counted():
    values = draws(1.5, (10_000, 40)).numpy()
    present = np.random.default_rng(0).random(values.shape) < 0.6
    values = values * present
    values[:, 7] = 0
    found = tail_index(values)
    np.testing.assert_array_equal(found.zeros, (values == 0).sum(axis=0))
    assert np.isnan(found.alphas[7])
    assert np.isnan(found.standard_errors[7])
    assert np.isfinite(np.delete(found.alphas, 7)).all()
    assert abs(found.alpha - 1.5) < 4 * found.standard_error
    assert found.standard_error < 0.02
    assert "left out; 1 components are zero" in repr(found)


def test_components_without_values_change_nothing_else():
    values = draws(1.5, (1_000, 3)).numpy()
    more = np.concatenate([values, np.zeros((1_000, 2))], axis=1)
    assert tail_index(more).alpha == tail_index(values).alpha
    assert tail_index(more).standard_error == tail_index(values).standard_error


def test_blocks_that_cancel_are_left_out():
    values = np.array([1.0, -1.0, 2.0, 3.0, 1.0, 5.0])
    found = tail_index(values, block=2)
    growth = [math.log(5) - math.log(6) / 2, math.log(6) - math.log(5) / 2]
    assert found.inverse == pytest.approx(sum(growth) / (2 * math.log(2)), rel=1e-14)


def test_sums_that_do_not_grow_have_no_tail_index():
    found = tail_index(np.tile([1.0, -0.99], 500), block=10)
    assert found.alpha == math.inf


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros(10), {}, "All values of x are zero"),
        (np.ones(3), {}, "x has 3 values"),
        (np.array([1.0, np.nan, 2, 3]), {}, "NaN or infinity"),
        (np.ones((2, 2, 2)), {}, r"x has shape \(2, 2, 2\)"),
        (np.ones(0), {}, r"x has shape \(0,\)"),
        (np.array(["a"] * 5), {}, "must be an array of real numbers"),
        (np.ones(10, complex), {}, "must be an array of real numbers"),
        (np.ones(10), {"block": 1}, "block is 1; it must be an integer of at least 2"),
        (np.ones(10), {"block": 2.5}, r"block is 2\.5"),
        (np.ones(10), {"block": 6}, "There are 10 values, fewer than two blocks of 6"),
        (np.ones(10), {"axis": 1}, "axis is 1, but x has 1 dimensions"),
        (np.ones(10), {"axis": "rows"}, "axis is 'rows'"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(x, options, message):
    with pytest.raises(ValueError, match=message):
        tail_index(x, **options)
