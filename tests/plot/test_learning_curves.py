"""Loss and error against epoch, as far as the records go."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from numpy.testing import assert_allclose

from hesspec.plot import epochs_of, plot_learning_curves, rate_changes

RATES = [0.0, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001]
RECORDS = [
    {
        "epoch": epoch,
        "train_loss": 2 / (1 + epoch),
        "test_loss": 2.2 / (1 + epoch),
        "train_error": 0.9 / (1 + epoch),
        "test_error": 0.95 / (1 + epoch),
        "learning_rate": rate,
    }
    for epoch, rate in enumerate(RATES)
]


def curves(axes):
    return [line for line in axes.get_lines() if len(line.get_xdata()) == len(RECORDS)]


def test_loss_and_error_of_both_splits_are_drawn_against_the_epoch():
    loss, error = plot_learning_curves(RECORDS).axes
    for axes, name in ((loss, "loss"), (error, "error")):
        for line, split in zip(curves(axes), ("train", "test"), strict=True):
            assert_allclose(line.get_xdata(), range(7))
            assert_allclose(line.get_ydata(), [record[f"{split}_{name}"] for record in RECORDS])
    assert (loss.get_yscale(), error.get_yscale()) == ("log", "linear")
    assert (loss.get_xlabel(), loss.get_ylabel(), error.get_ylabel()) == ("epoch", "mean loss  (nats)", "error")


def test_the_changes_of_the_learning_rate_are_marked_and_named():
    assert rate_changes(RECORDS) == [(3, 0.01), (5, 0.001)]  # 0 before the first epoch is no rate
    figure = plot_learning_curves(RECORDS)
    for axes in figure.axes:
        assert [line.get_xdata()[0] for line in axes.get_lines() if line not in curves(axes)] == [3, 5]
    assert "learning rate 0.01 after epoch 3, 0.001 after epoch 5" in [
        text.get_text() for text in figure.legends[0].get_texts()
    ]


def test_a_rate_that_always_changes_has_no_lines():
    records = [{"train_loss": 1.0, "learning_rate": 0.9**epoch} for epoch in range(12)]
    assert rate_changes(records) == []
    assert len(plot_learning_curves(records).axes[0].get_lines()) == 2


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([{"epoch": 0.0, "train_loss": 2.0, "train_error": 0.5}], id="one epoch"),
        pytest.param([{"train_loss": None}, {"train_loss": 1.0}], id="missing numbers"),
        pytest.param([{"train_loss": 1.0}, {"train_loss": 0.0}], id="loss of zero"),
        pytest.param([{}, {}], id="nothing known"),
    ],
)
def test_records_are_drawn_as_far_as_they_go(records):
    figure = plot_learning_curves(records, title="A network")
    FigureCanvasAgg(figure).draw()
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    assert min(sizes) >= 9


def test_a_loss_of_zero_has_a_linear_axis():
    assert plot_learning_curves([{"train_loss": 1.0}, {"train_loss": 0.0}]).axes[0].get_yscale() == "linear"


def test_epochs_without_numbers_are_counted():
    assert epochs_of([{"epoch": 5.0}, {"epoch": None}]) == [1, 2]
    assert np.array_equal(epochs_of(RECORDS), range(7))


def test_no_record_is_an_error():
    with pytest.raises(ValueError, match="There is nothing to plot"):
        plot_learning_curves([])
