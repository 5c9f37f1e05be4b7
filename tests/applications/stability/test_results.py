"""Results of stability: files, impossible values, summaries and figures."""

import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from saved_results import check_refused, check_saved
from torch import nn

import hesspec

stability = hesspec.stability


@cache
def dimension():
    eigenvalues = np.concatenate([np.random.default_rng(0).normal(size=300) * 0.05, np.linspace(1, 3, 6)])
    return stability.sharpness_dimension(hesspec.spectrum(torch.diag(torch.tensor(eigenvalues)), steps=40), 0.8)


def exact_dimension():
    return stability.sharpness_dimension([25.0, 10.0, -5.0], 0.1, momentum=0.0)


def exponents():
    return stability.lyapunov_exponents([torch.diag(torch.tensor([1.5, 0.8, 0.0]))] * 20, count=3, discard=5)


@cache
def run(optimizer=torch.optim.SGD):
    torch.manual_seed(0)
    model, loss_fn = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), nn.MSELoss()
    inputs, targets = torch.randn(20, 3), torch.randn(20, 1)
    trainer = optimizer(model.parameters(), lr=0.05)
    monitor = stability.monitor(model, loss_fn, [(inputs, targets)], trainer, every=2)
    for step in range(7):
        trainer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        trainer.step()
        monitor(step)
    return monitor.result()


def adaptive_run():
    return run(torch.optim.Adam)


ALL = pytest.mark.parametrize("make", [dimension, exact_dimension, exponents, run, adaptive_run])


@ALL
def test_a_file_gives_back_every_field(make, tmp_path):
    check_saved(make(), tmp_path)


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (dimension, {"low": 400.0}, "outside of its bracket"),
        (dimension, {"learning_rate": 0.0}, "learning rate is 0"),
        (
            dimension,
            {"exponents": np.array([0.1, 0.2]), "counts": np.ones(2)},
            "not finite numbers in decreasing order",
        ),
        (exponents, {"dimension": 2}, "3 exponents, but a space of dimension 2"),
        (run, {"sharpness": np.full(4, np.nan)}, "sharpness are not all finite"),
        (run, {"preconditioned": np.array([1.0, np.nan, 1.0, 1.0])}, "missing at some steps"),
        (run, {"products": np.array([1, 1, -1, 1])}, "products are not all at least zero"),
    ],
)
def test_impossible_values_are_refused(make, changes, message):
    check_refused(make(), message, **changes)


def test_results_are_read_without_pytorch(tmp_path):
    dimension().save(tmp_path / "result.nc")
    code = (
        "import sys, hesspec\n"
        "found = hesspec.load(sys.argv[1])\n"
        "found.plot(), hesspec.stability.sharpness_dimension(found.exponents, 0.1)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "result.nc"], check=True)  # noqa: S603 - this very Python


def test_summaries_say_what_was_found():
    assert "of 306" in repr(dimension())
    assert "15 (discarded before: 5)" in repr(exponents())
    assert "SGD" in repr(run())
    assert "a measurement" in repr(run())


def test_figure_of_a_dimension_shows_it_with_its_bracket():
    found = dimension()
    left, right = found.plot().axes
    (point,) = (line for line in right.lines if line.get_marker() == "o")
    assert point.get_xdata()[0] == found.value
    assert any(list(line.get_xdata()) == [found.low, found.high] for line in right.lines)
    # The sum of exponents is zero at the dimension.
    curve = right.lines[0]
    assert np.interp(found.value, curve.get_xdata(), curve.get_ydata()) == pytest.approx(0, abs=0.02)
    assert left.get_xlim() == right.get_xlim() == (0, found.dimension)
    assert exact_dimension().plot().axes


def test_figure_of_exponents_ends_at_them():
    found = exponents()
    (axes,) = found.plot().axes
    assert [line.get_ydata()[-1] for line in axes.lines[:2]] == pytest.approx(list(found.exponents[:2]))


@pytest.mark.parametrize(("make", "panels"), [(run, 2), (adaptive_run, 3)])
def test_figure_of_a_run_has_its_threshold(make, panels):
    found = make()
    axes = found.plot().axes
    assert len(axes) == panels
    deciding = axes[panels - 2]
    drawn = {line.get_label(): line.get_ydata() for line in deciding.lines}
    np.testing.assert_array_equal(drawn["threshold"], found.thresholds)


def test_a_run_without_measurements():
    model = nn.Linear(2, 1)
    data = [(torch.ones(3, 2), torch.ones(3, 1))]
    monitor = stability.monitor(model, nn.MSELoss(), data, torch.optim.SGD(model.parameters(), lr=0.1))
    assert monitor.result().steps.size == 0
    assert "measurements" in repr(monitor.result())
    with pytest.raises(ValueError, match="no measurements to plot yet"):
        monitor.plot()
