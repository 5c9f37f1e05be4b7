"""tr F / tr G against dense matrices, expectations over labels, and the laws of the interval."""

import numpy as np
import pytest
import torch
from saved_results import check_refused, check_saved
from torch import nn

import hesspec
from hesspec import language

BCE, CE = nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()


def classifier(outputs=3, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).to(dtype)


def inputs(count=9, dtype=torch.float64):
    return torch.randn(count, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))


def traces(model, loss_fn, data):
    made = (kind(model, loss_fn, data) for kind in (hesspec.SecondMoment, hesspec.GaussNewton))
    return [float((operator @ torch.eye(operator.shape[0], dtype=operator.dtype)).trace()) for operator in made]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("loss_fn", "targets"),
    [
        (CE, torch.tensor([0, 2, 1, 1, 0, 2, 2, 0, 1])),
        (nn.CrossEntropyLoss(reduction="sum"), torch.tensor([0, 2, 1, 1, 0, 2, 2, 0, 1])),
        (nn.CrossEntropyLoss(ignore_index=0), torch.tensor([0, 2, 1, 1, 0, 2, 2, 0, 1])),
        (BCE, torch.tensor([[0.0], [1], [1], [0], [1], [1], [0], [0], [1]])),
    ],
)
def test_traces_are_those_of_the_dense_matrices(loss_fn, targets, dtype):
    model, x = classifier(1 if loss_fn is BCE else 3, dtype), inputs(dtype=dtype)
    targets = targets.to(dtype) if loss_fn is BCE else targets
    data = [(x[:5], targets[:5]), (x[5:], targets[5:])]
    found = language.label_consistency(model, loss_fn, data)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert (found.second_moment, found.gauss_newton) == pytest.approx(traces(model, loss_fn, data), rel=tolerance)
    assert found.block_gauss_newton.sum() == pytest.approx(found.gauss_newton, rel=1e-12)
    assert found.block_second_moment.sum() == pytest.approx(found.second_moment, rel=1e-12)
    assert found.ratio == pytest.approx(found.second_moment / found.gauss_newton, rel=1e-12)
    assert found.low < found.ratio < found.high
    assert found.blocks.tolist() == [name for name, _ in model.named_parameters()]


def test_bias_of_one_logit_has_the_ratio_of_the_page():
    model = nn.Linear(1, 1).double()
    model.load_state_dict({"weight": torch.ones(1, 1), "bias": torch.zeros(1)})
    data = [(torch.tensor([[2.0], [-1], [0], [3]]).double(), torch.tensor([[1.0], [0], [1], [0]]).double())]
    found = language.label_consistency(model, BCE, data, params="bias")
    assert found.second_moment == pytest.approx(0.3109840729596614, rel=1e-14)
    assert found.gauss_newton == pytest.approx(0.1491955445939751, rel=1e-14)
    assert found.ratio == pytest.approx(2.0844058970124215, rel=1e-14)


def test_labels_of_the_model_itself_have_the_ratio_one():
    model, x = classifier(), inputs()
    found = language.label_consistency(model, CE, [(x, model(x).softmax(1).detach())])
    assert (found.ratio, found.low, found.high) == pytest.approx((1, 1, 1), abs=1e-12)
    np.testing.assert_allclose(found.block_ratio, 1, rtol=1e-12)
    one = classifier(1)
    assert language.label_consistency(one, BCE, [(x, torch.sigmoid(one(x)).detach())]).ratio == pytest.approx(1)


def test_difference_of_the_traces_of_one_logit_is_its_formula():
    model, x = classifier(1), inputs(5)
    shares = torch.tensor([0.1, 0.9, 0.4, 0.0, 1.0], dtype=torch.float64)
    expected = 0.0
    for row, t in zip(x, shares, strict=True):
        logit = model(row)
        gradient = torch.autograd.grad(logit, list(model.parameters()))
        p = torch.sigmoid(logit.detach())
        expected += float((t - p) * (1 - 2 * p) * sum(part.square().sum() for part in gradient)) / 5
    found = language.label_consistency(model, BCE, [(x, shares[:, None])])
    assert found.second_moment - found.gauss_newton == pytest.approx(expected, rel=1e-10)


def test_shares_are_the_labels_that_they_count_but_one_sample():
    model, x = classifier(1), inputs(4)
    counts = torch.tensor([3, 10, 0, 7])
    soft = language.label_consistency(model, BCE, [(x, counts.double()[:, None] / 10)])
    hard = torch.cat([torch.arange(10) < count for count in counts]).double()[:, None]
    copies = language.label_consistency(model, BCE, [(x.repeat_interleave(10, 0), hard)])
    assert soft.second_moment == pytest.approx(copies.second_moment, rel=1e-12)
    assert (soft.samples, copies.samples) == (4, 40)
    assert copies.high - copies.low < soft.high - soft.low
    classes = language.label_consistency(classifier(), CE, [(x, torch.eye(3).double()[[0, 1, 2, 0]])])
    indices = language.label_consistency(classifier(), CE, [(x, torch.tensor([0, 1, 2, 0]))])
    assert classes.second_moment == pytest.approx(indices.second_moment, rel=1e-12)


def test_interval_contains_one_for_calibrated_labels_as_often_as_it_says():
    model, generator = classifier(1), torch.Generator().manual_seed(5)
    x = inputs(200)
    share = torch.sigmoid(model(x)).detach()
    held = []
    for _ in range(60):
        labels = torch.bernoulli(share, generator=generator)
        found = language.label_consistency(model, BCE, [(x, labels)], params="2.*")
        held.append(found.low <= 1 <= found.high)
    # 95% of 60 with a standard deviation of 2.8%.
    assert np.mean(held) > 0.85
    certain = classifier(1)
    with torch.no_grad():
        certain[2].weight.mul_(8)
    wrong = language.label_consistency(certain, BCE, [(x, torch.bernoulli(share, generator=generator))])
    assert wrong.low > 1


class Branching(nn.Linear):
    """Not a function that can be vectorised."""

    def forward(self, x):
        return super().forward(x) if x.sum() > -1e9 else x


def test_models_that_cannot_be_vectorised_are_taken_sample_by_sample():
    x, y = inputs(4), torch.tensor([0, 1, 1, 0])
    torch.manual_seed(0)
    plain = nn.Linear(3, 2).double()
    other = Branching(3, 2).double()
    other.load_state_dict(plain.state_dict())
    one, two = (language.label_consistency(model, CE, [(x, y)]) for model in (plain, other))
    np.testing.assert_allclose(one.block_second_moment, two.block_second_moment, rtol=1e-12)
    np.testing.assert_allclose(one.block_gauss_newton, two.block_gauss_newton, rtol=1e-12)


def test_a_result_is_saved_shown_and_drawn(tmp_path):
    found = language.label_consistency(classifier(), CE, [(inputs(), torch.arange(9) % 3)])
    check_saved(found, tmp_path)
    assert "tr F / tr G" in str(found)
    axes = found.plot().axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == found.blocks.tolist()
    found.plot(axes)
    check_refused(found, "outside of its interval", ratio=found.high + 1)


@pytest.mark.parametrize(
    ("loss_fn", "targets", "words"),
    [
        (nn.MSELoss(), torch.zeros(9, 3).double(), "takes torch.nn.CrossEntropyLoss or BCEWithLogitsLoss"),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), torch.arange(9) % 3, "has weight="),
        (nn.CrossEntropyLoss(label_smoothing=0.1), torch.arange(9) % 3, "label_smoothing=0.1"),
        (BCE, torch.zeros(9, 3).double(), "one logit"),
    ],
)
def test_losses_that_are_no_likelihood_of_one_label_are_refused(loss_fn, targets, words):
    with pytest.raises(ValueError, match=words):
        language.label_consistency(classifier(), loss_fn, [(inputs(), targets)])


def test_coupled_samples_single_ones_and_zero_gradients_are_refused():
    model = nn.Sequential(nn.Linear(3, 2), nn.Softmax(0)).double()
    with pytest.raises(ValueError, match="couple samples"):
        language.label_consistency(model, CE, [(inputs(), torch.arange(9) % 2)])
    with pytest.raises(ValueError, match="one labelled sample"):
        language.label_consistency(classifier(), CE, [(inputs(1), torch.tensor([0]))])
    still = nn.Linear(3, 2, bias=False).double()
    with pytest.raises(ValueError, match="gradients of all samples are zero"):
        language.label_consistency(still, CE, [(torch.zeros(4, 3).double(), torch.arange(4) % 2)])
