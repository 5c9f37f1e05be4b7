"""Calibration against the numbers of the definitions, exact laws and brute force; temperatures."""

import numpy as np
import pytest
import torch
from saved_results import check_refused, check_saved

import hesspec
from hesspec import language
from hesspec.measure.calibration import binned, wilson_interval

LOGITS, OUTCOMES = np.array([2.0, -1.0, 0.0, 3.0]), np.array([1, 0, 1, 0])


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def ten_groups():
    """10 groups of 10 predictions at .05, .15, ..., .95 with 1, 2, ..., 10 right ones."""
    outcomes = [[1] * (right + 1) + [0] * (9 - right) for right in range(10)]
    return np.repeat(np.arange(10) / 10 + 0.05, 10), np.concatenate(outcomes)


def test_errors_of_ten_groups_are_those_of_the_definitions():
    found = language.calibration(*ten_groups())
    assert found.ece == pytest.approx(0.05, abs=1e-15)
    assert found.rms == pytest.approx(0.05, abs=1e-15)
    assert found.brier == pytest.approx(0.1675, abs=1e-15)
    np.testing.assert_allclose(found.predicted, np.arange(10) / 10 + 0.05)
    np.testing.assert_allclose(found.observed, np.arange(1, 11) / 10)
    assert found.bias == pytest.approx(-0.05)


def test_a_constant_of_one_half_is_calibrated_and_useless():
    for outcomes in ([1] * 10 + [0] * 10, [0] * 10 + [1] * 10, [0, 1] * 10):
        found = language.calibration(np.full(20, 0.5), outcomes)
        assert (found.ece, found.rms, found.brier, found.auroc, found.consistency) == (0, 0, 0.25, 0.5, 1)


def test_brier_score_and_its_expectation_of_four_logits():
    found = language.calibration(torch.sigmoid(torch.tensor(LOGITS)), torch.tensor(OUTCOMES), bins=4)
    assert found.brier == pytest.approx(0.3109840729596614, rel=1e-15)
    assert found.variance == pytest.approx(0.1491955445939751, rel=1e-15)
    assert found.consistency == pytest.approx(2.0844058970124215, rel=1e-14)
    assert found.bias == pytest.approx(0.1505781565425777, rel=1e-13)


def test_shares_are_the_outcomes_that_they_count():
    rng = np.random.default_rng(0)
    given, counts = rng.random(40).round(1), rng.integers(0, 31, 40)
    shares = language.calibration(given, counts / 30, bins=5)
    hard = np.concatenate([[1] * k + [0] * (30 - k) for k in counts])
    copies = language.calibration(np.repeat(given, 30), hard, bins=5)
    for name in ("ece", "rms", "brier", "variance", "auroc", "bias"):
        assert getattr(shares, name) == pytest.approx(getattr(copies, name), rel=1e-12), name
    # A question counts once in errors and intervals.
    assert shares.samples == 40
    assert shares.brier_error > 3 * copies.brier_error
    assert (shares.high - shares.low > copies.high - copies.low).all()


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(1)
    given, outcomes = rng.integers(0, 8, 60) / 8, rng.integers(0, 2, 60)
    ones, zeros = given[outcomes == 1], given[outcomes == 0]
    wins = (ones[:, None] > zeros).mean() + 0.5 * (ones[:, None] == zeros).mean()
    assert language.calibration(given, outcomes).auroc == pytest.approx(wins, rel=1e-14)


def test_bins_do_not_depend_on_the_order_of_the_data():
    rng = np.random.default_rng(2)
    given, outcomes = rng.integers(0, 5, 53) / 5, rng.integers(0, 2, 53).astype(float)
    first = binned(given, outcomes, 7, equal_counts=True)
    for _ in range(5):
        order = rng.permutation(53)
        for one, other in zip(first, binned(given[order], outcomes[order], 7, equal_counts=True), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)
    assert first.counts.tolist() == [8, 8, 8, 8, 7, 7, 7]
    widths = binned(given, outcomes, 5, equal_counts=False)
    assert widths.counts.sum() == 53
    np.testing.assert_allclose(widths.predicted, np.arange(5) / 5)


@pytest.mark.parametrize("levels", [None, 3])
def test_chance_ece_is_the_mean_ece_of_calibrated_predictions(levels):
    rng = np.random.default_rng(3)
    given = rng.uniform(0.2, 0.8, 200) if levels is None else rng.choice([0.3, 0.5, 0.8], 200)
    drawn = [language.calibration(given, rng.random(200) < given) for _ in range(600)]
    mean, error = np.mean([found.ece for found in drawn]), np.std([found.ece for found in drawn]) / 600**0.5
    # The normal approximation of means of 20 outcomes is off by about 1%.
    assert abs(mean - drawn[0].chance_ece) < 4 * error + 0.01 * mean


def test_wilson_intervals_solve_their_equation_and_hold():
    counts, share = np.array([10]), np.array([0.3])
    low, high = wilson_interval(share, counts)
    for end in (low, high):
        assert abs(end - share) == pytest.approx(1.959963984540054 * np.sqrt(end * (1 - end) / 10), rel=1e-12)
    assert wilson_interval(np.array([0.0, 1.0]), np.array([5, 5]))[0].tolist()[0] == 0
    rng = np.random.default_rng(4)
    for probability in (0.05, 0.4):
        low, high = wilson_interval(rng.binomial(50, probability, 4_000) / 50, np.full(4_000, 50))
        # The coverage of Wilson's interval with n = 50 is between 0.92 and 0.98 at these probabilities.
        assert 0.92 < ((low <= probability) & (probability <= high)).mean() < 0.985


def test_multiple_choice_takes_the_top_prediction_or_all():
    probabilities = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    top = language.calibration(probabilities, [0, 2, 2], bins=1)
    assert (top.samples, top.mean_outcome) == (3, pytest.approx(2 / 3))
    assert top.mean_probability == pytest.approx(0.6)
    every = language.calibration(probabilities, [0, 2, 2], bins=3, top=False)
    assert (every.samples, every.mean_outcome, every.mean_probability) == (
        9,
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
    )


@pytest.mark.parametrize(
    ("probabilities", "outcomes", "options", "words"),
    [
        ([0.5, 1.2], [0, 1], {}, r"probabilities\[1\] is 1.2; .* torch.sigmoid"),
        ([0.5, np.nan], [0, 1], {}, "NaN or infinity"),
        ([0.5, 0.5], [0, 2], {}, r"outcomes\[1\] is 2; .* 0 or 1, or a share"),
        ([0.5, 0.5], [0, 1, 1], {}, r"shape \(2,\) and outcomes \(3,\)"),
        ([0.5, 0.5], [0, 1], {"bins": 3}, "bins is 3; .* predictions, 2"),
        ([], [], {"bins": 1}, "must be"),
        ([[0.5, 0.2]], [0], {"bins": 1}, "question 0 sum to 0.7"),
        ([[0.5, 0.5]], [2], {"bins": 1}, "index from 0 to 1"),
        ([[0.5, 0.5]], [[0, 1]], {"bins": 1}, "indices"),
        (["a"], [0], {}, "real numbers"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(probabilities, outcomes, options, words):
    with pytest.raises(ValueError, match=words):
        language.calibration(np.array(probabilities), np.array(outcomes), **options)


def test_auroc_of_equal_outcomes_is_refused_and_the_rest_is_known():
    found = language.calibration([0.7, 0.9], [1, 1], bins=2)
    with pytest.raises(ValueError, match="All 2 outcomes are 1; AUROC"):
        _ = found.auroc
    assert "undefined: all outcomes are 1" in str(found)
    assert found.ece == pytest.approx(0.2)


def test_a_result_is_saved_shown_and_drawn(tmp_path):
    found = language.calibration(*ten_groups())
    check_saved(found, tmp_path)
    assert "0.1000 expected if calibrated" in str(found)
    axes = found.plot().axes[0]
    np.testing.assert_allclose(axes.get_lines()[1].get_ydata(), found.observed)
    assert "ECE 0.050" in axes.get_title(loc="left")
    found.plot(axes, color="black", label="again")
    assert axes.get_legend_handles_labels()[1] == ["again"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"low": np.ones(10)}, "outside of their intervals"),
        ({"counts": np.ones(10, dtype=np.int64)}, "do not have its 100"),
        ({"ordered_pairs": 1e9}, "more ordered pairs"),
        ({"ece": -1.0}, "at least 0"),
    ],
)
def test_impossible_values_are_not_read(change, words):
    check_refused(language.calibration(*ten_groups()), words, **change)


def test_temperature_is_where_the_derivative_vanishes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    classes = torch.multinomial((logits / 0.7).softmax(1), 1, generator=generator).squeeze(1)
    found = language.fit_temperature(logits, classes)
    inverse = torch.tensor(1 / found.value, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(inverse * logits, classes)
    (slope,) = torch.autograd.grad(loss, inverse)
    assert abs(float(slope)) < 1e-12
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    assert found.loss <= found.loss_before
    soft = language.fit_temperature(logits, torch.nn.functional.one_hot(classes, 5).double())
    assert soft.value == pytest.approx(found.value, rel=1e-10)
    both = language.fit_temperature(torch.stack([0 * logits[:, 0], logits[:, 0]], 1), (classes == 0).long())
    one = language.fit_temperature(logits[:, 0], (classes == 0).long())
    assert (one.value, one.error) == pytest.approx((both.value, both.error), rel=1e-9)


def test_error_of_the_temperature_is_its_spread():
    found = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(500, generator=generator, dtype=torch.float64)
        outcomes = torch.bernoulli(torch.sigmoid(logits), generator=generator)
        found.append(language.fit_temperature(2.5 * logits, outcomes))
    values, errors = np.array([(each.value, each.error) for each in found]).T
    # The relative error of a standard deviation from 200 values is 5%; and T is slightly skewed.
    assert values.std() == pytest.approx(errors.mean(), rel=0.15)
    assert abs(values.mean() - 2.5) < 0.1
    assert 0.9 < (np.abs(values - 2.5) < 1.96 * errors).mean() < 0.99


def test_curvature_in_the_logit_at_a_temperature():
    share = sigmoid(LOGITS / 2.5)
    expected = float((share * (1 - share)).mean()) / 2.5**2
    assert expected == pytest.approx(0.03528259531634517, rel=1e-14)

    class Tempered(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2.5

    model = Tempered(1, 1).double()
    model.load_state_dict({"weight": torch.ones(1, 1), "bias": torch.zeros(1)})
    data = [(torch.tensor(LOGITS)[:, None], torch.tensor(OUTCOMES)[:, None].double())]
    newton = hesspec.GaussNewton(model, torch.nn.BCEWithLogitsLoss(), data, params="bias")
    assert float(newton @ torch.ones(1, dtype=torch.float64)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("logits", "targets", "words"),
    [
        ([1.0, -2.0], [1, 0], "held-out data in which some predictions are wrong"),
        ([1.0, -2.0], [0, 1], "do not predict the targets"),
        ([1.0, -2.0], [0, 3], r"targets\[1\] is 3"),
        ([1.0, 2.0], [0], "must be"),
        ([[1.0, 2.0], [0.0, 1.0]], [0, 2], "index from 0 to 1"),
    ],
)
def test_temperatures_that_do_not_exist_are_refused(logits, targets, words):
    with pytest.raises(ValueError, match=words):
        language.fit_temperature(np.array(logits), np.array(targets))
