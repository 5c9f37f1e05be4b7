"""Which resolved eigenvalues are outliers, and with which p-value."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from random_operators import Diagonal

import hesspec
from hesspec.spectra.outliers import LEVEL, NEIGHBOURS, run_p_value, spacing_p_values


def measured(values, steps=64, seed=0):
    return hesspec.spectrum(
        Diagonal(np.asarray(values, float), torch.float64), steps=min(steps, len(values)), seed=seed
    )


def semicircle(p):
    """Quantiles of Wigner's law, with edges -2 and 2."""
    return 2 * scipy.stats.semicircular.ppf((np.arange(p) + 0.5) / p)


BULKS = {
    "semicircle": semicircle,
    "uniform": lambda p: np.linspace(-1, 1, p),
    "positive": lambda p: np.linspace(0.01, 1, p) ** 2,
    "negative": lambda p: -(np.linspace(0.01, 1, p) ** 2),
    "normal": lambda p: scipy.stats.norm.ppf((np.arange(p) + 0.5) / p),
    "power law": lambda p: np.arange(1, p + 1.0) ** -1.0,
    "steep power law": lambda p: np.arange(1, p + 1.0) ** -2.0,
    "two-sided power law": lambda p: np.arange(1, p + 1.0) ** -1.0 * np.where(np.arange(p) % 2, 1, -1),
}


@pytest.mark.parametrize("p", [300, 3000])
@pytest.mark.parametrize("name", BULKS)
def test_a_bulk_alone_has_no_outliers(name, p):
    spectrum = measured(BULKS[name](p))
    assert not spectrum.is_outlier.any()
    assert (spectrum.outlier_p_values > LEVEL).all()


@pytest.mark.parametrize(
    "spikes", [(5.0,), (-5.0,), (4.0, 4.5, -4.2), tuple(np.linspace(4, 9, 10)), (9, -4, 8.5, -4.4)]
)
def test_spikes_twice_beyond_the_edge_are_found_and_nothing_else(spikes):
    found = measured([*semicircle(1000), *spikes]).outliers
    assert np.sort(found) == pytest.approx(np.sort(spikes))


def test_a_hundred_spikes_of_either_sign_are_found():
    signs = np.where(np.arange(100) % 2, 1, -1)
    found = measured([*semicircle(1000), *signs * np.linspace(4, 9, 100)], steps=400).outliers
    assert found.size == 100
    assert np.abs(found).min() == pytest.approx(4)


def test_both_signs_are_judged_by_one_rule():
    # A power law on the positive side alone; eigenvalues of less than its largest stick out on the negative one.
    values = np.concatenate([40 / np.arange(1, 1000), -np.array([6.0, 5.9, 5.6]), -np.linspace(0.01, 0.4, 1000)])
    spectrum = measured(values, steps=200)
    assert (
        not spectrum.is_outlier[spectrum.eigenvalues < 0].any()
        or spectrum.is_outlier[np.abs(spectrum.eigenvalues) > 6].all()
    )
    assert (np.diff(spectrum.outlier_p_values) >= 0).all()


@pytest.mark.parametrize("name", ["semicircle", "power law", "two-sided power law"])
def test_p_values_grow_inwards(name):
    spectrum = measured([*BULKS[name](1000), 5.0, -4.6])
    assert (np.diff(spectrum.outlier_p_values) >= 0).all()
    assert ((spectrum.outlier_p_values >= 0) & (spectrum.outlier_p_values <= 1)).all()


@pytest.mark.parametrize("expected", [(), (9, 10)])
@pytest.mark.parametrize("index", [0.3, 1.0, 2.0])
@pytest.mark.few(2)
def test_false_alarms_of_independent_draws_from_a_power_law_keep_the_level(expected, index):
    # Their normalised log-spacings are independent exponential variables: the worst case, and the level is exact.
    rng, draws = np.random.default_rng(0), 400
    alarms = 0
    for _ in range(draws):
        sizes = np.sort((1 - rng.random(400)) ** -index)[::-1]
        alarms += (spacing_p_values(sizes, np.zeros(400), np.ones(400), expected)[:200] <= LEVEL).any()
    # Beyond this a binomial variable of that chance is once in a thousand times.
    assert alarms <= scipy.stats.binom.isf(1e-3, draws, LEVEL)
    assert alarms > 0


def test_a_single_spacing_has_the_p_value_of_an_f_variable():
    sizes = np.exp(-np.cumsum(np.append(0.0, 0.5 / np.arange(1, 60))))
    sizes[0] *= np.e
    # E_1 = 1.5, the others 0.5; the first has half of the level.
    expected = 2 * scipy.stats.f.sf(3, 2, 2 * NEIGHBOURS)
    assert spacing_p_values(sizes, np.zeros(60), np.ones(60))[0] == pytest.approx(expected)


def test_error_bounds_narrow_a_gap():
    sizes = np.append(3.0, np.linspace(1, 0.5, 50))
    exact, rough = (spacing_p_values(sizes, np.full(51, bound), np.ones(51))[0] for bound in (0.0, 0.5))
    assert exact < rough
    assert spacing_p_values(sizes, np.full(51, 1.0), np.ones(51))[0] == 1


def test_a_gap_at_the_number_of_classes_needs_less_evidence():
    sizes = np.append(np.linspace(9, 2.6, 9), 1.9 / np.arange(1, 100) ** 0.5)
    unknown, known = (spacing_p_values(sizes, np.zeros(108), np.ones(108), e)[8] for e in ((), (9, 10)))
    assert known < unknown


def test_eigenvalues_beyond_the_mirrored_edge_of_a_hessian_are_found_together():
    bulk = 4 * np.arange(1, 1500) ** -0.5
    values = np.concatenate([[9, 8, 7, 6, 5.5, 5, 4.6, 4.3, 4.1], bulk, -bulk])
    ordered = values[np.argsort(-np.abs(values), kind="stable")]
    run, p_value = run_p_value(ordered, np.zeros(ordered.size), np.ones(ordered.size))
    assert run == 9
    # Nine tosses of a coin, of which 100 other tosses were half and half.
    assert 2**-9 < p_value < 2 * 2**-9
    spectrum = measured(values, steps=200)
    assert not spectrum.is_outlier.any()
    for matrix, count in (("Hessian", 9), ("Residual", 0)):
        labelled = replace(spectrum, attributes={"matrix": matrix, "classes": 10})
        assert labelled.outliers.size == count


def test_a_matrix_without_negative_eigenvalues_has_no_mirrored_edge():
    assert run_p_value(np.array([3.0, 2, 1]), np.zeros(3), np.ones(3)) == (0, 1.0)


def test_spikes_on_a_multiple_of_the_identity_or_on_nothing_are_outliers():
    for bulk in (0.0, 1.0):
        spectrum = measured([9.0, -7, 5, *np.full(500, bulk)])
        assert spectrum.outliers == pytest.approx([9, -7, 5])


@pytest.mark.parametrize("p", [2, 3, 4, 10])
def test_a_handful_of_eigenvalues_has_no_bulk_to_judge_by(p):
    assert not measured(2.0 ** np.arange(p)).is_outlier.any()


def test_a_level_of_ones_own():
    spectrum = measured([*semicircle(1000), 5.0])
    assert (spectrum.outlier_p_values <= 1e-30).sum() == 0
    assert (spectrum.outlier_p_values <= 1).all()


@pytest.mark.parametrize("p", [1000, 10_000])
def test_bulk_edges_are_quantiles_that_no_label_moves(p):
    bulk = semicircle(p)
    with_gap, without = measured([*bulk, 5, 6, 7]), measured([*bulk, 2.02, 2.03, 2.04])
    assert with_gap.outliers.size == 3
    for spectrum in (with_gap, without):
        for edge, share in zip(spectrum.bulk_edge_estimates, (0.005, 0.995), strict=True):
            assert edge.lower <= np.quantile(bulk, share) <= edge.upper
            assert edge.lower <= edge.value <= edge.upper
        assert spectrum.bulk_edges == pytest.approx(np.quantile(bulk, [0.005, 0.995]), abs=0.1)


def test_bulk_edges_of_a_positive_matrix_are_not_negative():
    values = np.concatenate([np.full(250, -1e-12), np.linspace(0.1, 1, 50)])
    spectrum = measured(values, steps=20)
    assert spectrum.bulk_edges[0] < 0
    positive = replace(spectrum, attributes={"positive_semidefinite": True})
    assert positive.is_positive
    low, high = positive.bulk_edge_estimates
    assert (low.value, low.lower) == (0, 0)
    assert high.value == spectrum.bulk_edges[1]
