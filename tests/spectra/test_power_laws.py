import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

import hesspec
from hesspec.spectra.power_law import PowerLaw, earned_power_law, fit_power_law, what_is_hidden
from hesspec.spectra.spectrum import Spectrum
from hesspec.spectra.tails import MIN_POINTS, _Exponential, fit_tail

DTYPES = [torch.float32, torch.float64]


def pareto(exponent, size, seed):
    """Draws from the density (exponent - 1) x^-exponent on [1, infinity)."""
    return np.random.default_rng(seed).pareto(exponent - 1, size) + 1


def measured(values, dtype=torch.float64, **settings):
    return hesspec.spectrum(torch.diag(torch.tensor(values, dtype=dtype)), **({"steps": 64} | settings))


# Numbers against sample size ---------------------------------------------------------------------------------------


def test_an_exact_law_is_found_exactly():
    x = np.array([10.0, 13, 19, 26, 37])
    law = fit_power_law(x, 3 * x**-0.7)
    assert law.exponent == pytest.approx(-0.7, abs=1e-14)
    assert law.prefactor == pytest.approx(3, rel=1e-13)
    assert (law.lower, law.upper) == pytest.approx((-0.7, -0.7), abs=1e-13)
    assert law.r_squared == pytest.approx(1)
    assert law.points == 5


def test_interval_is_that_of_linear_regression():
    rng = np.random.default_rng(0)
    x = rng.uniform(1, 100, 12)
    y = 2 * x**-1.2 * np.exp(0.3 * rng.standard_normal(12))
    expected = scipy.stats.linregress(np.log(x), np.log(y))
    law = fit_power_law(x, y, confidence=0.9)
    half = scipy.stats.t.ppf(0.95, 10) * expected.stderr
    assert (law.lower, law.exponent, law.upper) == pytest.approx(
        (expected.slope - half, expected.slope, expected.slope + half), rel=1e-12
    )
    assert law.prefactor == pytest.approx(np.exp(expected.intercept), rel=1e-12)
    assert law.r_squared == pytest.approx(expected.rvalue**2, rel=1e-12)


def test_pairs_without_a_logarithm_are_left_out():
    law = fit_power_law([1, 2, 4, 8, 0, -1, 5, np.inf, 3], [1, 4, 16, 64, 1, 1, -1, 1, np.nan])
    assert law.points == 4
    assert law.exponent == pytest.approx(2)


def test_constant_numbers_have_exponent_zero():
    law = fit_power_law([1, 2, 3], [0.1, 0.1, 0.1])
    assert (law.exponent, law.lower, law.upper, law.r_squared) == (0, 0, 0, 1)


def test_a_prefactor_beyond_floating_point_is_infinite():
    assert fit_power_law([1e-300, 1.1e-300, 1.21e-300], [1, 1.1**-40, 1.1**-80]).prefactor == 0
    assert fit_power_law([1e300, 1.1e300, 1.21e300], [1, 1.1**-40, 1.1**-80]).prefactor == np.inf


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 2, 3], [1, 2], r"shape \(3,\) and y \(2,\)"),
        ([[1, 2, 3]], [[1, 2, 3]], r"two one-dimensional arrays of equal length"),
        ([1, 2, 3], [1, 2, -3], "2 of 3 pairs .* at least 3"),
        ([5, 5, 5], [1, 2, 3], "All 3 usable x are 5"),
    ],
)
def test_what_cannot_be_fitted_is_said(x, y, message):
    with pytest.raises(ValueError, match=message):
        fit_power_law(x, y)


# Tails -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exponent", [2, 2.5, 3])
@pytest.mark.few(2)
def test_intervals_hold_as_often_as_they_say(exponent, dtype):
    tails = [fit_tail(measured(pareto(exponent, 400, seed), dtype, steps=48, seed=seed)) for seed in range(20)]
    held = sum(tail.lower <= exponent <= tail.upper for tail in tails)
    # Of 20 at 95%, fewer than 17 hold in 1.6% of cases; these are always the same 20.
    assert held >= 17
    # From n draws the exponent is known to (exponent - 1)/sqrt(n), with three times that variance where a probe weighs
    # them; the bulk is cut off at an edge, and the two other errors are about as large: twice the interval.
    widths = [tail.upper - tail.lower for tail in tails]
    assert np.median(widths) < 2 * 2 * 1.96 * np.sqrt(3 / 400) * (exponent - 1)
    # And the exponents are not off to one side: by their own errors, their median has 1.25/sqrt(20) of one of them.
    error = np.median([tail.exponent for tail in tails]) - exponent
    assert abs(error) < 3 * 1.25 / np.sqrt(20) * np.median(widths) / (2 * 1.96)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exponent", [2, 2.5, 3])
def test_a_power_law_is_told_from_an_exponential_tail(exponent, dtype):
    tail = fit_tail(measured(pareto(exponent, 1500, 0), dtype))
    assert tail.lower <= exponent <= tail.upper
    assert tail.resolved
    assert tail.better_than_exponential
    assert tail.is_power_law
    assert tail.kolmogorov_smirnov < 0.05


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_an_exponential_spectrum_is_no_power_law(seed, dtype):
    tail = fit_tail(measured(np.random.default_rng(seed).exponential(size=1000), dtype))
    assert not tail.better_than_exponential
    assert not tail.is_power_law


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [-1, 0, 1])
@pytest.mark.parametrize("seed", range(2))
def test_a_semicircle_is_no_power_law(seed, sign, dtype):
    # The square-root edges of a Beta(3/2, 3/2) law are the semicircle's.
    values = 4 * np.random.default_rng(seed).beta(1.5, 1.5, 1000) - 2
    tail = fit_tail(measured(values, dtype), sign=sign)
    assert not tail.better_than_exponential
    assert not tail.is_power_law


@pytest.mark.parametrize("seed", range(3))
def test_the_start_of_a_tail_on_a_body_is_found(seed):
    # Half of the eigenvalues are spread evenly below 1, where the tail begins.
    values = np.concatenate([np.random.default_rng(seed).uniform(0, 1, 1000), pareto(2.5, 1000, seed)])
    tail = fit_tail(measured(values))
    assert 0.5 < tail.start < 4
    assert tail.lower <= 2.5 <= tail.upper
    assert tail.is_power_law
    # The law from `start` on holds start^-1.5 / 2 of all eigenvalues.
    assert tail.start < 1 or tail.mass == pytest.approx(tail.start**-1.5 / 2, rel=0.25)


def test_a_given_start_is_taken():
    spectrum = measured(pareto(2.5, 1000, 0))
    tail = fit_tail(spectrum, start=2.0)
    assert tail.start == 2
    assert tail.start_error == 0
    assert tail.lower <= 2.5 <= tail.upper
    assert tail.nodes == np.sum((spectrum.nodes >= 2) & (spectrum.nodes <= tail.top))


def test_eigenvalues_of_an_exact_spectrum_are_draws_of_weight_one():
    values = np.sort(pareto(2.5, 150, 1))
    spectrum = measured(values, steps=200)
    assert spectrum.exact
    tail = fit_tail(spectrum, start=1.5)
    inside = values[(values > 1.5) & (values < tail.top * (1 - 1e-9))]
    logs, length = np.log(inside / 1.5), np.log(tail.top / 1.5)
    rate = tail.exponent - 1
    # The likelihood equation of the truncated Pareto law (Aban, Meerschaert and Panorska 2006).
    assert 1 / rate - length / np.expm1(rate * length) == pytest.approx(logs.mean(), rel=1e-10)
    assert tail.mass == pytest.approx(inside.size / 150)
    assert tail.quadrature_error == 0
    # Observed information: the second derivative of the log-likelihood is that of its normaliser.
    information = 1 / rate**2 - (length / 2 / np.sinh(rate * length / 2)) ** 2
    assert tail.sampling_error == pytest.approx(logs.std() / np.sqrt(inside.size) / information, rel=1e-6)


def test_the_negative_tail_is_the_positive_one_of_minus_the_operator():
    values = np.concatenate([pareto(2.5, 500, 0), -pareto(3, 500, 1)])
    positive, negative = fit_tail(measured(values), sign=1), fit_tail(measured(-values), sign=-1)
    assert positive.exponent == pytest.approx(negative.exponent, rel=1e-6)
    assert positive.start == pytest.approx(negative.start, rel=1e-6)


def quadrature(nodes, weights, p=28_000_000):
    """A spectrum of which nothing is resolved: these nodes, and one near zero that has the rest of the weight."""
    weights = np.array([1 - np.sum(weights), *weights])
    nodes = np.array([1e-7, *nodes])
    nothing = np.empty(0)
    return Spectrum(
        dimension=p,
        eigenvalues=nothing,
        error_bounds=nothing,
        eigenvalue_weights=nothing,
        bulk_nodes=nodes,
        bulk_weights=weights,
        bulk_probe=np.zeros(nodes.size, np.int64),
        ritz_values=nodes,
        ritz_weights=weights,
        ritz_bounds=np.ones(nodes.size),
        ritz_probe=np.zeros(nodes.size, np.int64),
        norm=float(nodes[-1]),
        rounding=0.0,
        probes=1,
        steps=nodes.size,
        matvecs=nodes.size,
        exact=False,
        stopped="all steps done",
    )


@pytest.mark.parametrize("mass", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("exponent", [2.0, 2.5, 3.0])
def test_a_node_that_holds_nearly_everything_is_no_tail(exponent, mass):
    # As of the residual part of a large network in 32 steps: a tail from the node near zero on would fit the steps
    # best, with an exponent of 1/mass over the mean of log(|lambda|/start), 50 to 50,000 here.
    nodes = np.geomspace(1e-3, 1, 31)
    tail = fit_tail(quadrature(nodes, mass * nodes ** (1 - exponent) / np.sum(nodes ** (1 - exponent))))
    assert tail.start >= nodes[0]
    assert tail.mass < mass
    assert tail.resolved
    assert tail.lower <= exponent <= tail.upper
    assert tail.exponent == pytest.approx(exponent, abs=0.1)


def test_a_measure_that_falls_too_fast_from_node_to_node_is_not_resolved():
    # The weights beyond a node are w/(r - 1) where each is 1/r of the one before: less than half of w for r > 3.
    nodes = np.geomspace(1e-3, 1, 31)
    for ratio, resolved in ((2.5, True), (3.5, False)):
        spectrum = quadrature(nodes, 0.1 * ratio ** -np.arange(31.0))
        if resolved:
            # Nodes are a factor of 10^0.1 apart: the density per unit of log|lambda| is |lambda|^-(a - 1).
            assert fit_tail(spectrum).lower <= 1 + np.log10(ratio) / 0.1 <= fit_tail(spectrum).upper
            continue
        with pytest.raises(ValueError, match="positive bulk is not resolved: wherever it may begin, .* more steps"):
            fit_tail(spectrum)
        with pytest.raises(ValueError, match=r"not resolved: at start = 0.001, .* Choose a larger start"):
            fit_tail(spectrum, start=nodes[0])


@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_a_tail_of_few_points_far_from_a_spike_is_said_not_to_be_resolved(sign):
    rng = np.random.default_rng(1)
    values = np.concatenate([1e-6 * rng.standard_normal(3960), rng.standard_normal(40)])
    tail = fit_tail(measured(values, steps=32), sign=sign)
    assert not tail.resolved
    assert not tail.is_power_law


def test_the_slope_of_an_edge_is_no_tail():
    # Semicircle: the density goes to zero at the edge, and a law that begins close to it is as steep as one likes.
    nodes = np.cos(np.pi * np.arange(1, 200) / 200)
    spectrum = quadrature(np.sort(nodes[nodes > 1e-3]), np.sin(np.arccos(np.sort(nodes[nodes > 1e-3]))) ** 2 / 100)
    tail = fit_tail(spectrum, start=0.85)
    assert tail.lower > 5
    assert not tail.resolved
    assert not tail.is_power_law


def test_both_signs_together():
    values = pareto(2.5, 1000, 3) * np.random.default_rng(3).choice([-1, 1], 1000)
    tail = fit_tail(measured(values, probes=4), sign=0)
    assert tail.lower <= 2.5 <= tail.upper
    positive = measured(pareto(2.5, 500, 0))
    assert fit_tail(positive, sign=0) == fit_tail(positive, sign=1)


def test_the_tail_of_both_signs_ends_before_the_first_outlier_of_either():
    values = np.concatenate([pareto(2.5, 500, 0), [-1e6], np.linspace(-0.5, -0.4, 20)])
    spectrum = measured(values)
    assert spectrum.outliers == pytest.approx([-1e6])
    assert 8 < fit_tail(spectrum, sign=1).top < 1e4
    assert fit_tail(spectrum, sign=0).top < 1e4


def test_outliers_are_no_part_of_the_tail():
    values = pareto(2.5, 500, 0)
    spectrum, spiked = measured(values), measured(np.append(values, [1e4, 2e4]))
    assert spiked.outliers[:2] == pytest.approx([2e4, 1e4])
    tail, other = fit_tail(spectrum), fit_tail(spiked)
    assert other.top < 1e4
    assert other.exponent == pytest.approx(tail.exponent, abs=2 * tail.sampling_error)


def test_several_probes_narrow_the_interval():
    # Few of the eigenvalues are resolved: these have no weights of probes.
    values = pareto(2.5, 4000, 1)
    one, four = (fit_tail(measured(values, probes=probes, steps=32), start=1.2) for probes in (1, 4))
    assert four.lower <= 2.5 <= four.upper
    # The variance of unresolved eigenvalues' sampling is (1 + 2/probes)/p: 3 and 1.5.
    assert four.sampling_error / one.sampling_error == pytest.approx(np.sqrt(1.5 / 3), rel=0.1)
    assert four.quadrature_error < one.quadrature_error


def test_the_unit_of_eigenvalues_does_not_matter():
    values = pareto(2.5, 500, 0)
    tail, scaled = fit_tail(measured(values)), fit_tail(measured(values * 2.0**-20))
    assert scaled.exponent == pytest.approx(tail.exponent, rel=1e-6)
    assert scaled.start == pytest.approx(tail.start * 2.0**-20, rel=1e-6)
    assert scaled.against_exponential == pytest.approx(tail.against_exponential, rel=1e-6)


def test_the_density_integrates_to_the_mass():
    tail = fit_tail(measured(pareto(2.5, 500, 0)))
    ends = np.log([tail.start, tail.top])
    mass = scipy.integrate.quad(lambda y: float(tail.density(np.exp(y))) * np.exp(y), *ends)[0]
    assert mass == pytest.approx(tail.mass, rel=1e-6)
    low, high = tail.density([2 * tail.start, 4 * tail.start])
    assert np.log2(low / high) == pytest.approx(tail.exponent)
    assert (tail.density([tail.start / 2, 2 * tail.top, -1.0, 0.0]) == 0).all()


@pytest.mark.parametrize("rate", [-30.0, -1.0, 1e-9, 0.5, 20.0])
def test_the_truncated_exponential_law(rate):
    law = _Exponential(rate, 3.0)
    weight, mean, square, cube = law.moments()
    assert weight == pytest.approx(1)
    for power, moment in ((1, mean), (2, square), (3, cube)):

        def integrand(y, power=power):
            return y**power * float(np.exp(law.log_density(np.array(y))))

        assert moment == pytest.approx(scipy.integrate.quad(integrand, 0, 3, epsabs=1e-12)[0], rel=1e-8)
    assert _Exponential.of_mean(mean, 3.0).rate == pytest.approx(rate, rel=1e-6, abs=1e-7)
    places = np.array([0.0, 0.7, 2.9, 3.0])
    shares = [scipy.integrate.quad(lambda y: np.exp(law.log_density(np.array(y))), 0, end)[0] for end in places]
    assert law.cdf(places) == pytest.approx(shares, abs=1e-8)


def test_extreme_means_are_fitted_too():
    assert _Exponential.of_mean(1e-6, 1.0).rate == pytest.approx(1e6)
    assert _Exponential.of_mean(1 - 1e-6, 1.0).rate == pytest.approx(-1e6)


def test_bad_arguments_are_said():
    spectrum = measured(pareto(2.5, 200, 0))
    with pytest.raises(ValueError, match="sign is 2; it must be 1"):
        fit_tail(spectrum, sign=2)
    with pytest.raises(ValueError, match=r"start is -1.0; a tail begins at a positive"):
        fit_tail(spectrum, start=-1.0)
    with pytest.raises(ValueError, match=r"confidence is 95; it must be between 0 and 1"):
        fit_tail(spectrum, confidence=95)
    with pytest.raises(ValueError, match=r"beyond start = 1e\+09 .* Choose a smaller start"):
        fit_tail(spectrum, start=1e9)


@pytest.mark.parametrize("values", [np.zeros(50), np.ones(50), np.linspace(1, 2, MIN_POINTS - 1)])
def test_too_few_points_are_said(values):
    with pytest.raises(ValueError, match=rf"positive bulk has \d points .* at least {MIN_POINTS}"):
        fit_tail(measured(values))
    with pytest.raises(ValueError, match=r"negative bulk has 0 points"):
        fit_tail(measured(values), sign=-1)


SIZES = [10, 19, 37, 71, 136, 263]


def earned(values, sizes=SIZES, outliers=None):
    return earned_power_law(sizes, values, [9] * len(sizes) if outliers is None else outliers)


def test_a_law_that_the_measurements_support_is_that_of_least_squares():
    values = [3 / n for n in SIZES]
    law = earned(values)
    assert isinstance(law, PowerLaw)
    assert law == fit_power_law(SIZES, values)


@pytest.mark.parametrize("usable", [0, 1, 4, 5])
def test_a_law_takes_five_sizes_with_positive_values(usable):
    values = [1 / n if i < usable else [np.nan, -1.0][i % 2] for i, n in enumerate(SIZES)]
    law = earned(values)
    assert isinstance(law, PowerLaw) == (usable == 5)
    if usable < 5:
        assert law.startswith(f"{usable or 'no'} sample size")


def test_repeated_sizes_are_no_further_sizes():
    sizes = [10, 10, 10, 19, 37, 37]
    assert earned([1 / n for n in sizes], sizes) == "3 sample sizes where 5 are necessary"


def test_a_law_takes_the_same_number_of_outliers_where_it_is_fitted():
    values = [1 / n for n in SIZES]
    assert earned(values, outliers=[9, 9, 9, 8, 9, 9]) == "the number of outliers changes, from 8 to 9"
    values[3] = np.nan
    assert isinstance(earned(values, outliers=[9, 9, 9, 8, 9, 9]), PowerLaw)


@pytest.mark.parametrize("noise", [0.1, 4.0])
def test_an_exponent_must_be_known_within_one(noise):
    values = np.asarray(SIZES, float) ** -0.9 * np.exp(noise * np.array([1, -1, 1, -1, 1, -1]))
    law = earned(values)
    full = fit_power_law(SIZES, values)
    assert isinstance(law, PowerLaw) == (full.upper - full.lower <= 2)
    assert isinstance(law, PowerLaw) == (noise == 0.1)
    if noise == 4.0:
        assert law == f"the exponent is known to ±{(full.upper - full.lower) / 2:.2g} only"


def test_what_is_hidden_is_one_sentence():
    assert what_is_hidden({}) == ""
    reasons = {"largest outlier": "few", "upper edge": "few", "lower edge": "wide"}
    assert what_is_hidden(reasons) == "No power law of largest outlier, upper edge (few); lower edge (wide)."
