"""The sharpness dimension: known answers, its bracket against dense truths, momentum and weight decay, bad input."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

import hesspec
from hesspec.applications.stability.exponents import LinearStep

stability = hesspec.stability
dimension = stability.sharpness_dimension
LN2 = math.log(2)


def by_definition(exponents):
    """Definition 4.2 of arXiv 2604.19740, sum by sum."""
    z = sorted(exponents, reverse=True)
    if z[0] < 0:
        return 0.0
    j, total = 0, 0.0
    while j < len(z) and total + z[j] >= 0:
        total += z[j]
        j += 1
    return float(j) if j == len(z) else j + total / abs(z[j])


@pytest.mark.parametrize(
    ("eigenvalues", "expected"),
    [
        # ln of 1.5, .8, .5, .1: two whole directions and (ln 1.5 + ln .8) / ln 2 of the third.
        ((25, 2, 5, 9), 2 + math.log(1.2) / LN2),
        ((-5, 2, 5, 9), 2 + math.log(1.2) / LN2),
        ((2, 5, 9), 0.0),
        ((25, -5, 30), 3.0),
        ((25, 0, 0, 5, 9), 3 + math.log(1.5) / LN2),
        ((0, 0, 0), 3.0),
        ((0, 5), 1.0),
        # The second direction vanishes in one step.
        ((25, 10), 1.0),
        ((10, 10), 0.0),
    ],
)
def test_known_answers(eigenvalues, expected):
    found = dimension(np.array(eigenvalues, float), 0.1)
    assert found.value == pytest.approx(expected, abs=1e-14)
    assert found.low == found.value == found.high
    assert found.transition_index == int(expected)
    assert found.dimension == len(eigenvalues)


def test_minibatches_ordered_and_pooled():
    spectra = [1 - np.array([1.5, 0.5]), 1 - np.array([0.8, 0.1])]
    first, second = (math.log(1.5) + math.log(0.8)) / 2, (LN2 * -1 + math.log(0.1)) / 2
    assert dimension(spectra, 1.0).value == pytest.approx(1 - first / second, abs=1e-14)
    assert dimension(spectra, 1.0).value == pytest.approx(1.060860, abs=1e-6)
    # ln 1.5, ln .8, -ln 2, ln .1, of half a direction each.
    left = math.log(1.5) + math.log(0.8)
    assert dimension(spectra, 1.0, combine="pooled").value == pytest.approx((2 + left / LN2) / 2, abs=1e-14)
    assert dimension(spectra, 1.0, combine="pooled").value == pytest.approx(1.131517, abs=1e-6)


@pytest.mark.parametrize(("top", "expected"), [(4.0, 0.945163), (2.0, 0.0), (2.5, 0.448286)])
def test_uniform_spectra(top, expected):
    # Midpoints of p intervals: the sum differs from the integral by less than 1/p.
    p = 100_000
    eigenvalues = (np.arange(p) + 0.5) / p * top / 0.3
    assert dimension(eigenvalues, 0.3).fraction == pytest.approx(expected, abs=1e-5)


def test_chaotic_map_with_the_supremum_over_its_attractor():
    # D = diag(-4 x, c) with |x| <= 1 and c = .1.
    assert dimension([-3.0, 0.9], 1.0).value == pytest.approx(1 + math.log(4) / math.log(10), abs=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_definition_and_is_monotone(seed):
    generator = np.random.default_rng(seed)
    eigenvalues = generator.normal(size=40) * generator.choice([1.0, 10.0], size=40)
    found = dimension(eigenvalues, 0.15)
    assert found.value == pytest.approx(by_definition(np.log(np.abs(1 - 0.15 * eigenvalues))), rel=1e-12)
    further = np.where(eigenvalues < found.learning_rate**-1, eigenvalues - 0.1, eigenvalues + 0.1)
    assert dimension(further, 0.15).value >= found.value


@pytest.mark.parametrize("seed", range(20))
def test_pooled_is_never_below_ordered(seed):
    generator = np.random.default_rng(seed)
    spectra = [generator.normal(size=12) * generator.uniform(1, 20) for _ in range(4)]
    ordered, pooled = (dimension(spectra, 0.2, combine=combine).value for combine in ("ordered", "pooled"))
    assert pooled >= ordered - 1e-12


@pytest.mark.parametrize("combine", ["ordered", "pooled"])
def test_copies_of_one_spectrum_change_nothing(combine):
    eigenvalues = np.random.default_rng(0).normal(size=30) * 8
    once, thrice = dimension(eigenvalues, 0.1), dimension([eigenvalues] * 3, 0.1, combine=combine)
    assert thrice.value == pytest.approx(once.value, rel=1e-13)
    assert (thrice.spectra, thrice.sharp_directions) == (3, once.sharp_directions)


def test_where_expansion_comes_from():
    found = dimension([30.0, 25.0, -5.0, 0.0, 3.0], 0.1)
    assert (found.sharp_directions, found.negative_directions) == (2, 1)
    assert found.sharp_expansion == pytest.approx(LN2 + math.log(1.5), rel=1e-14)
    assert found.negative_expansion == pytest.approx(math.log(1.5), rel=1e-14)
    assert found.sharp_share == pytest.approx((LN2 + math.log(1.5)) / (LN2 + 2 * math.log(1.5)))
    assert found.largest == pytest.approx(LN2)
    assert math.isnan(dimension([1.0], 0.1).sharp_share)


# Momentum and weight decay ------------------------------------------------------------------------------------------


def step_matrix(eigenvalue, rate, momentum, decay, *, decoupled):
    """A step of (w_t, w_{t-1}), found by taking it."""

    def step(now, before):
        kept = 1 - rate * decay if decoupled else 1.0
        velocity = (kept * before - now) / rate
        gradient = eigenvalue * now + (0.0 if decoupled else decay * now)
        return kept * now - rate * (momentum * velocity + gradient)

    return np.array([[step(1.0, 0.0), step(0.0, 1.0)], [1.0, 0.0]])


@pytest.mark.parametrize("momentum", [0.5, 0.9])
@pytest.mark.parametrize(("decay", "decoupled"), [(0.0, False), (0.2, False), (0.2, True)])
def test_momentum_and_weight_decay_against_the_roots_of_the_step(momentum, decay, decoupled):
    eigenvalues = np.random.default_rng(1).normal(size=40) * 4
    roots = [np.linalg.eigvals(step_matrix(each, 0.7, momentum, decay, decoupled=decoupled)) for each in eigenvalues]
    found = dimension(eigenvalues, 0.7, momentum=momentum, weight_decay=decay, decoupled=decoupled)
    assert found.dimension == 80
    # A double root is known to sqrt(eps) from a matrix's entries.
    assert found.value == pytest.approx(by_definition(np.log(np.abs(np.concatenate(roots)))), rel=1e-7)
    largest = max(np.abs(root).max() for root in roots)
    assert found.largest == pytest.approx(math.log(largest), rel=1e-7)
    assert found.sharp_directions + found.negative_directions == sum(np.abs(root).max() > 1 for root in roots)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_thresholds_are_where_exponents_are_zero(momentum, decoupled):
    step = LinearStep(0.3, momentum, 0.1, decoupled)
    values = np.array([step.lower_threshold, step.threshold])
    scale = 0.3 * np.abs(values).max()
    assert np.abs(step.leading(values)).max() <= 8 * np.finfo(float).eps * scale / (1 - momentum)
    inside = np.linspace(*values, 99)[1:-1]
    assert (step.leading(inside) < 0).all()
    assert (step.leading(values + np.array([-1e-6, 1e-6])) > 0).all()
    assert step.threshold == pytest.approx(
        (2 - 0.03) * (1 + momentum) / 0.3 if decoupled else 2 * (1 + momentum) / 0.3 - 0.1
    )


def test_zero_eigenvalues_count_as_dimensions_with_momentum():
    # The root is 1 exactly, not up to rounding, which would decide between all and nothing.
    assert dimension(np.zeros(7), 0.1, momentum=0.9).value == 7
    assert dimension([0.0, 1.0], 0.1, momentum=0.7).value == 1


def test_without_momentum_both_kinds_of_weight_decay_shift_the_spectrum():
    eigenvalues = np.array([25.0, -5.0, 2.0, 9.0])
    shifted = dimension(eigenvalues + 0.5, 0.1)
    for decoupled in (False, True):
        found = dimension(eigenvalues, 0.1, weight_decay=0.5, decoupled=decoupled)
        assert found.value == pytest.approx(shifted.value, rel=1e-14)
        assert found.sharp_directions == shifted.sharp_directions


# From measured spectra --------------------------------------------------------------------------------------------


def operators():
    """Spectra of all kinds, with learning rates at the edge of stability, beyond it, and far below."""
    generator = np.random.default_rng(3)
    for p in (6, 40, 150):
        bulk = generator.normal(size=p) * 0.05
        tail = generator.pareto(1.5, size=p) * 0.02
        outliers = np.linspace(1, 3, max(p // 30, 1))
        few = np.where(generator.random(p) < 0.2, generator.normal(size=p), 0.0)
        for eigenvalues in (
            np.concatenate([bulk, outliers]),
            np.concatenate([tail, outliers]),
            np.concatenate([few, outliers]),
            generator.uniform(0, 3, size=p),
            generator.choice([-0.1, 0.0, 1.0], size=p),
        ):
            for rate in (2 / 2.8, 2 / 1.5, 0.1):
                yield eigenvalues, rate


@pytest.mark.parametrize(("dtype", "momentum"), [(torch.float64, 0.0), (torch.float32, 0.0), (torch.float64, 0.9)])
def test_bracket_holds_the_dense_truth(dtype, momentum):
    missed = cases = 0
    for index, (eigenvalues, rate) in enumerate(operators()):
        rotation = np.linalg.qr(np.random.default_rng(index).normal(size=(len(eigenvalues),) * 2))[0]
        dense = torch.tensor((rotation * eigenvalues) @ rotation.T).to(dtype)
        dense = (dense + dense.T) / 2
        truth = dimension(np.linalg.eigvalsh(dense.double().numpy()), rate, momentum=momentum)
        spectrum = hesspec.spectrum(dense, steps=20, seed=index)
        found = dimension(spectrum, rate, momentum=momentum)
        assert found.low <= found.value <= found.high
        slack = 1e-9 * truth.dimension
        missed += not found.low - slack <= truth.value <= found.high + slack
        lowest, highest = found.largest_bracket
        missed += not lowest - 1e-9 <= truth.largest <= highest + 1e-9
        cases += 1
    # 5% of them at most, as often as 99% of all series of independent ones would stay within.
    assert missed <= scipy.stats.binom.ppf(0.99, cases, 0.05)


def test_an_exact_spectrum_gives_the_exact_dimension():
    eigenvalues = np.random.default_rng(0).normal(size=60) * 4
    spectrum = hesspec.spectrum(torch.diag(torch.tensor(eigenvalues)), steps=60)
    assert spectrum.exact
    truth, found = dimension(eigenvalues, 0.3), dimension(spectrum, 0.3)
    assert found.low <= truth.value <= found.high
    assert found.high - found.low < 1e-9
    assert found.sharp_directions == pytest.approx(truth.sharp_directions, abs=1e-9)


def test_bracket_narrows_with_steps():
    eigenvalues = np.concatenate([np.random.default_rng(0).normal(size=800) * 0.05, np.linspace(1, 4, 10)])
    operator = torch.diag(torch.tensor(eigenvalues))
    widths = []
    for steps in (16, 48, 144):
        found = dimension(hesspec.spectrum(operator, steps=steps), 0.8)
        widths.append(found.high - found.low)
    assert widths[0] > widths[1] > widths[2]


@pytest.mark.parametrize("combine", ["ordered", "pooled"])
def test_several_measured_spectra(combine):
    generator = np.random.default_rng(5)
    dense = [np.concatenate([generator.normal(size=200) * 0.1, generator.uniform(1, 4, size=5)]) for _ in range(4)]
    measured = [
        hesspec.spectrum(torch.diag(torch.tensor(each)), steps=40, seed=seed) for seed, each in enumerate(dense)
    ]
    truth, found = (dimension(spectra, 0.7, combine=combine) for spectra in (dense, measured))
    assert found.low <= truth.value <= found.high
    assert found.spectra == 4
    mixed = dimension([measured[0], dense[1]], 0.7, combine=combine)
    assert mixed.low <= dimension(dense[:2], 0.7, combine=combine).value <= mixed.high


def test_density_of_exponents_integrates_to_the_bulk():
    eigenvalues = np.concatenate([np.random.default_rng(0).normal(size=500) * 0.05, [3.0, 4.0]])
    spectrum = hesspec.spectrum(torch.diag(torch.tensor(eigenvalues)), steps=40)
    # 1/eta in the middle of the bulk's support, at its edge, and far beyond it.
    for rate in (20.0, 5.0, 0.5):
        found = hesspec.stability.exponent_density(spectrum, rate)
        mass = float(np.trapezoid(found["density"], found["exponent"]))
        drawn = spectrum.density()
        grid = drawn["eigenvalue"].to_numpy()
        apart = np.abs(1 - rate * grid) >= np.exp(float(found["exponent"][0]))
        expected = float(np.trapezoid(np.where(apart, drawn["density"], 0), grid))
        assert mass == pytest.approx(expected, rel=0.02)
    np.testing.assert_allclose(found["exponent_of_resolved"], np.log(np.abs(1 - 0.5 * spectrum.eigenvalues)))


def test_a_spectrum_whose_eigenvalues_are_all_resolved_has_a_density():
    spectrum = hesspec.spectrum(torch.diag(torch.tensor([1.0, 3.0, 5.0, -1.0]).double()), steps=4)
    found = stability.exponent_density(spectrum, 0.5)
    assert np.isfinite(found["density"]).all()
    assert 0 < float(np.trapezoid(found["density"], found["exponent"])) <= 1 + 1e-3
    assert sorted(found["exponent_of_resolved"].to_numpy()) == pytest.approx(np.log([0.5, 0.5, 1.5, 1.5]), abs=1e-9)


# Bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spectra", "options", "message"),
    [
        ([1.0], {"learning_rate": 0.0}, "learning_rate is 0.0"),
        ([1.0], {"learning_rate": -0.1}, "learning_rate is -0.1"),
        ([1.0], {"learning_rate": math.nan}, "learning_rate is nan"),
        ([1.0], {"learning_rate": 0.1, "momentum": 1.0}, "momentum is 1.0"),
        ([1.0], {"learning_rate": 0.1, "weight_decay": -1.0}, "weight_decay is -1.0"),
        ([1.0], {"learning_rate": 0.1, "weight_decay": 20.0, "decoupled": True}, "in one step"),
        ([1.0], {"learning_rate": 0.1, "combine": "mean"}, '"ordered" or "pooled"'),
        ([], {"learning_rate": 0.1}, "There are no spectra"),
        ([[1.0, 2.0], [1.0]], {"learning_rate": 0.1}, "dimensions 1, 2; only spectra of one network"),
        (np.eye(2), {"learning_rate": 0.1}, r"shape \(p,\)"),
        ([[1.0, math.inf]], {"learning_rate": 0.1}, "not all finite"),
        (["a"], {"learning_rate": 0.1}, "neither a Spectrum nor an array"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(spectra, options, message):
    with pytest.raises(ValueError, match=message):
        dimension(spectra, **options)
