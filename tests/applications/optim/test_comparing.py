"""Competitor shares and the comparison of steps: known answers, files and figures."""

import math

import numpy as np
import pytest
import torch
from gauss_newton_steps import CURVATURES, dense, problem
from saved_results import check_saved
from torch import nn

from hesspec.applications.optim.comparing import compare_steps
from hesspec.applications.optim.competitors import competitor_share
from hesspec.applications.optim.record import CompetitorShare, StepComparison


def with_probabilities(p):
    """A model that ignores its inputs and returns these probabilities' logits, and data with the true class 0."""
    model = nn.Linear(2, len(p)).double()
    nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.bias.copy_(torch.tensor(p, dtype=torch.float64).log())
    return model, nn.CrossEntropyLoss(), [(torch.randn(6, 2, dtype=torch.float64), torch.zeros(6, dtype=torch.int64))]


# Closed forms: tr G_1 = p_y (1 - p_y) (1 + sum q^2), tr G_2 = (1 - p_y) (1 - sum q^2).
@pytest.mark.parametrize(
    ("p", "first", "second", "participation"),
    [
        ((0.5, 0.25, 0.25), 0.375, 0.25, 2.0),
        ((0.7, 0.2, 0.1), 49 / 150, 2 / 15, 1.8),
        ((0.1,) * 10, 0.1, 0.8, 9.0),
        ((0.6, 0.4), 0.48, 0.0, 1.0),
        # One competitor with nearly all: 1 - sum q^2 = 2e-12, to all digits.
        ((0.5, 0.5 - 5e-13, 5e-13), 0.5, 1e-12, 1.0),
    ],
)
def test_shares_have_their_closed_forms(p, first, second, participation):
    found = competitor_share(*with_probabilities(p))
    # Probabilities of about 5e-13 are known to 1e-4 of themselves as differences from 0.5.
    assert found.true_vs_rest == pytest.approx(first, rel=1e-11)
    assert found.within_competitor == pytest.approx(second, rel=1e-3 if second == 1e-12 else 1e-12, abs=1e-15)
    assert found.share == pytest.approx(second / (first + second), rel=1e-3 if second == 1e-12 else 1e-12, abs=1e-15)
    assert found.participation == pytest.approx(participation, rel=1e-9)
    assert found.loss == pytest.approx(-math.log(p[0]), rel=1e-12)
    assert found.classes.tolist() == [0]
    assert found.class_samples.tolist() == [6]


def test_shares_by_class_add_up_and_ignore_what_the_loss_ignores():
    model, loss, x, y = problem()
    found = competitor_share(model, loss, [(x[:9], y[:9]), (x[9:], y[9:])])
    assert found.classes.tolist() == [0, 1, 2, 3]
    assert found.class_samples.sum() == found.samples == 24
    assert found.participation == pytest.approx(float(found.class_samples @ found.class_participations) / 24)
    assert found.class_shares.min() < found.share < found.class_shares.max()
    probabilities = torch.softmax(model(x), 1).detach()
    total = float((probabilities * (1 - probabilities)).sum() / 24)
    assert found.true_vs_rest + found.within_competitor == pytest.approx(total, rel=1e-12)
    part = competitor_share(model, nn.CrossEntropyLoss(ignore_index=2), [(x, y)])
    assert part.classes.tolist() == [0, 1, 3]
    assert part.samples == 18


def test_saturated_logits_have_shares():
    model, loss, data = with_probabilities((0.5, 0.25, 0.25))
    with torch.no_grad():
        model.bias.copy_(torch.tensor([2000.0, 0.0, 0.0]))
    found = competitor_share(model, loss, data)
    assert (found.share, found.participation, found.loss) == (0.0, 1.0, 0.0)


def test_steps_are_compared_as_dense_ones_are():
    model, loss, x, y = problem()
    matrices, g = dense(model, loss, x, y)
    within = float(torch.linalg.matrix_norm(matrices["full"] - matrices["true-vs-rest"], 2))
    norm = float(torch.linalg.matrix_norm(matrices["full"], 2))
    found = compare_steps(model, loss, [(x, y)], dampings=[1.0, 1e-2, 0.1], tolerance=1e-10)
    assert found.dampings.tolist() == [1e-2, 0.1, 1.0]
    assert found.norm == pytest.approx(norm, rel=1e-6)
    assert found.within_norm == pytest.approx(within, rel=1e-6)
    for index, damping in enumerate(found.dampings):
        identity = damping * torch.eye(len(g), dtype=torch.float64)
        fast, full = (torch.linalg.solve(matrices[name] + identity, g) for name in CURVATURES)
        cosine = float(fast @ full / (fast.norm() * full.norm()))
        assert found.cosines[index] == pytest.approx(cosine, abs=1e-7)
        assert found.relative_errors[index] == pytest.approx(float((fast - full).norm() / full.norm()), rel=1e-5)
    assert (found.relative_errors <= found.bounds).all()
    assert (np.diff(found.relative_errors) < 0).all()
    assert (np.diff(found.cosines) > 0).all()
    default = compare_steps(model, loss, [(x, y)])
    np.testing.assert_allclose(default.dampings / default.norm, np.logspace(-4, 2, 7))
    assert default.share == pytest.approx(competitor_share(model, loss, [(x, y)]).share)


def test_the_share_of_fixed_features_at_equal_logits_is_that_of_the_logits():
    # (C - 2)/(C - 1) of the trace of G in parameter space, too.
    model, x = nn.Linear(7, 10, bias=False).double(), torch.randn(40, 7, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    y = torch.arange(40) % 10
    matrices, _ = dense(model, nn.CrossEntropyLoss(), x, y)
    within = matrices["full"].trace() - matrices["true-vs-rest"].trace()
    assert float(within / matrices["full"].trace()) == pytest.approx(8 / 9, rel=1e-12)
    assert competitor_share(model, nn.CrossEntropyLoss(), [(x, y)]).share == pytest.approx(8 / 9, rel=1e-12)


@pytest.mark.parametrize("kind", [CompetitorShare, StepComparison])
def test_results_are_saved_shown_and_drawn(kind, tmp_path):
    model, loss, x, y = problem()
    data = [(x, y)]
    found = competitor_share(model, loss, data) if kind is CompetitorShare else compare_steps(model, loss, data)
    check_saved(found, tmp_path)
    figure = found.plot()
    assert len(figure.axes) == (1 if kind is CompetitorShare else 2)
    drawn = found.plot(ax=figure.axes[-1])
    assert drawn is figure


def test_bad_arguments_are_refused():
    model, loss, x, y = problem()
    data = [(x, y)]
    for options, message in (
        ({"dampings": []}, "dampings is \\[\\]; it must be a sequence of positive numbers"),
        ({"dampings": [0.0, 1.0]}, "dampings is \\[0.0, 1.0\\]"),
        ({"tolerance": 0}, "tolerance is 0"),
        ({"max_iterations": 1.5}, "max_iterations is 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_steps(model, loss, data, **options)
    with pytest.raises(ValueError, match="label_smoothing=0.2"):
        compare_steps(model, nn.CrossEntropyLoss(label_smoothing=0.2), data)
    with pytest.raises(ValueError, match="The loss is MSELoss"):
        competitor_share(model, nn.MSELoss(), [(x, torch.zeros(24, 4, dtype=torch.float64))])
    with pytest.warns(UserWarning, match="step with damping 1e-06") as told:
        compare_steps(model, loss, data, dampings=[1e-6, 1e6], max_iterations=3)
    assert len(told) == 2
    for name, warning in zip(CURVATURES, told, strict=True):
        assert f"The {name} step with damping 1e-06 has a relative residual" in str(warning.message)
