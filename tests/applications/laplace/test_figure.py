"""Evidence as a file and as a figure; predictions of classes compared."""

import numpy as np
import pytest
import torch
from saved_results import check_refused, check_saved
from torch import nn

import hesspec
from hesspec import language, laplace

PROBABILITIES = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.0, 1.0]])


def table():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    data = [(torch.randn(9, 3, dtype=torch.float64), torch.arange(9) % 2)]
    spectrum = hesspec.spectrum(hesspec.GaussNewton(model, nn.CrossEntropyLoss(), data))
    return laplace.MarginalLikelihood(spectrum, squared_norm=2.0).table()


def test_evidence_is_saved_and_read(tmp_path):
    found = table()
    assert found.prior_precision.size == 51
    assert (np.diff(found.effective_parameters) < 0).all()
    check_saved(found, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("prior_precision", -1.0, "not positive and ascending"),
        ("log_evidence", 1e9, "not all inside their intervals"),
        ("effective_parameters", np.nan, "not all finite"),
    ],
)
def test_impossible_values_are_refused(name, value, words):
    found = table()
    getattr(found, name)[3] = value
    check_refused(found, words)


def test_figure_shows_both_curves_with_their_bands():
    found = table()
    left, right = found.plot().axes
    assert left.lines[0].get_ydata() == pytest.approx(found.log_evidence)
    assert right.lines[0].get_ydata() == pytest.approx(found.effective_parameters)
    assert left.lines[1].get_xdata()[0] == found.best
    assert len(left.collections) == 1


def test_band_is_two_standard_deviations_in_the_order_of_the_inputs():
    x, mean, variance = np.array([1.0, 0.0, 2.0]), np.array([5.0, 4.0, 6.0]), np.array([5.0, 10.0, 2.0])
    axes = laplace.plot_band(x, mean, variance, noise=1.0, points=(x, mean)).axes[0]
    assert axes.lines[0].get_ydata() == pytest.approx([4, 5, 6])
    targets, function = (band.get_paths()[0].vertices[:, 1] for band in axes.collections)
    assert targets.max() == pytest.approx(4 + 2 * np.sqrt(10))
    assert function.max() == pytest.approx(4 + 2 * 3)


def test_calibration_of_known_predictions():
    found = laplace.compare_predictions({"one": PROBABILITIES}, [0, 1, 1, 1])
    seen = [6, 9]
    assert np.flatnonzero(found.counts[0]).tolist() == seen
    assert np.isnan(np.delete(found.predicted[0], seen)).all()
    assert found.predicted[0, seen] == pytest.approx([0.6, (0.9 + 0.9 + 1.0) / 3])
    assert found.observed[0, seen] == pytest.approx([1.0, 2 / 3])
    assert found.counts[0, seen] == pytest.approx([1, 3])
    assert found.ece[0] == pytest.approx((0.4 + 3 * abs(2 / 3 - 2.8 / 3)) / 4)


def test_calibration_is_that_of_a_single_prediction():
    rng = np.random.default_rng(0)
    probabilities, targets = rng.dirichlet(np.full(5, 0.3), 200), rng.integers(5, size=200)
    found = laplace.compare_predictions({"one": probabilities}, targets, bins=7)
    alone = language.calibration(probabilities, targets, bins=7, equal_counts=False)
    seen = found.counts[0] > 0
    assert found.ece[0] == alone.ece
    assert found.accuracy[0] == pytest.approx(alone.mean_outcome)
    assert (found.predicted[0, seen] == alone.predicted).all()
    assert (found.observed[0, seen] == alone.observed).all()


def test_comparison_is_saved_read_and_drawn(tmp_path):
    other = np.array([[0.5, 0.5], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7]])
    attributes = {"prior_precision": 2.0}
    found = laplace.compare_predictions({"one": PROBABILITIES, "two": other}, [0, 1, 1, 1], attributes=attributes)
    assert found.accuracy == pytest.approx([0.75, 1.0])
    likelihood = -np.log([0.9, 0.1, 0.6, 1.0]).mean()
    assert found.negative_log_likelihood == pytest.approx([likelihood, -np.log([0.5, 0.8, 0.9, 0.7]).mean()])
    assert found.counts.sum(axis=1) == pytest.approx([4, 4])
    assert found.summary() == {"samples": "4", "prior precision": "2"}
    check_saved(found, tmp_path)
    assert found.names.tolist() == ["one", "two"]
    assert "two" in repr(found)
    axes = found.plot().axes[0]
    assert len(axes.get_legend_handles_labels()[1]) == 2
    check_refused(found, "accuracy is above 1", accuracy=np.array([1.5, 1.0]))


def test_predictions_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="at least one sample"):
        laplace.compare_predictions({}, [0])
    with pytest.raises(ValueError, match="'one' have shape .* but there are 3 targets"):
        laplace.compare_predictions({"one": PROBABILITIES}, [0, 1, 1])
