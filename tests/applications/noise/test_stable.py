"""Stable noise: its characteristic function, logarithmic moments and special cases."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

import hesspec

stable_noise = hesspec.noise.stable_noise
COUNT = 200_000
ALPHAS = [0.5, 0.9, 1.0, 1.2, 1.5, 1.8, 1.99, 2.0]


def draw(alpha, shape=COUNT, seed=0, **how):
    return stable_noise(alpha, shape, torch.Generator().manual_seed(seed), **how)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_characteristic_function(alpha):
    draws = draw(alpha)
    for w in (0.2, 1.0, 2.5):
        expected = math.exp(-(w**alpha))
        # cos^2 x = (1 + cos 2x) / 2.
        deviation = math.sqrt((1 + math.exp(-((2 * w) ** alpha))) / 2 - expected**2)
        assert abs(float((w * draws).cos().mean()) - expected) < 4.5 * deviation / math.sqrt(COUNT)
        assert abs(float((w * draws).sin().mean())) < 4.5 / math.sqrt(2 * COUNT)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_logarithmic_moments(alpha):
    logs = draw(alpha, seed=1).abs().log().numpy()
    mean, variance = np.euler_gamma * (1 / alpha - 1), math.pi**2 / 6 * (1 / alpha**2 + 0.5)
    assert abs(logs.mean() - mean) < 4.5 * math.sqrt(variance / COUNT)
    fourth = ((logs - logs.mean()) ** 4).mean()
    assert abs(logs.var() - variance) < 4.5 * math.sqrt((fourth - variance**2) / COUNT)


@pytest.mark.parametrize(("alpha", "law"), [(1.0, scipy.stats.cauchy()), (2.0, scipy.stats.norm(scale=math.sqrt(2)))])
def test_special_cases(alpha, law):
    assert scipy.stats.kstest(draw(alpha, 20_000).numpy(), law.cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [1.2, 1.5, 1.8])
def test_tails_have_the_rate_of_the_levy_measure(alpha):
    x = 30.0
    expected = 2 * math.gamma(alpha) * math.sin(math.pi * alpha / 2) / math.pi * x**-alpha
    share = float((draw(alpha, 10 * COUNT).abs() > x).double().mean())
    # The next term of the tail is of relative order x^-alpha.
    assert abs(share / expected - 1) < 4.5 / math.sqrt(10 * COUNT * expected) + 3 * x**-alpha


def test_shapes_dtypes_and_seeds():
    assert draw(1.5, (3, 4)).shape == (3, 4)
    assert draw(1.5, 5).dtype == torch.float64
    single = draw(1.5, 5, dtype=torch.float32)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, draw(1.5, 5).float(), rtol=0, atol=0)
    assert not torch.equal(draw(1.5, 5), draw(1.5, 5, seed=1))
    torch.manual_seed(3)
    first = stable_noise(0.7, 4)
    torch.manual_seed(3)
    assert torch.equal(first, stable_noise(0.7, 4))


def test_extremely_heavy_tails_are_never_nan():
    draws = draw(0.01)
    assert not draws.isnan().any()
    assert draws.isinf().any()


@pytest.mark.parametrize("alpha", [0, -1.0, 2.0001, math.nan, math.inf, True, "1.5"])
def test_alpha_outside_of_its_range(alpha):
    with pytest.raises(ValueError, match=r"alpha is .*; the tail index must be in \(0, 2\]"):
        stable_noise(alpha, 3)


def test_dtype_of_integers():
    with pytest.raises(ValueError, match="must be a floating-point dtype"):
        stable_noise(1.5, 3, dtype=torch.int64)
