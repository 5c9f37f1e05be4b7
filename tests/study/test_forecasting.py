"""What a study is expected to take."""

import math
from pathlib import Path

import pytest
from torch import nn

from hesspec.backend.memory import BudgetError
from hesspec.operators import GaussNewton, Hessian
from hesspec.study.datasets import load_dataset
from hesspec.study.forecasting import forecast_study
from hesspec.study.networks import small_cnn
from hesspec.study.study_file import parse_study

STUDY = """\
datasets: digits
networks: small_cnn
samples_per_class: [6, 12, 18]
test_samples_per_class: 1
training: {epochs: 2, learning_rates: [0.01, 0.02], batch_size: 64}
measure: {epochs: [0, end], matrices: [MATRIX], splits: [train], steps: 4, batch_size: 20}
"""


@pytest.mark.parametrize(("name", "matrix"), [("hess", Hessian), ("g", GaussNewton)])
@pytest.mark.few(1)
def test_memory_is_that_of_all_samples_in_batches_of_the_study(name, matrix, tmp_path: Path) -> None:
    forecasts = forecast_study(parse_study(STUDY.replace("MATRIX", name), "study.yaml"), tmp_path)

    def passes(samples: int) -> int:
        data = load_dataset("digits", "train", samples_per_class=samples // 10).batches(20)
        return matrix(small_cnn(1, 10, 8).eval(), nn.CrossEntropyLoss(), data).forecast().peak_bytes

    small, middle, large = (forecast.peak_bytes for forecast in forecasts)
    # What the process has beside the passes is the same in all three.
    assert large - middle == pytest.approx(passes(180) - passes(120), rel=1e-6)
    assert middle - small == pytest.approx(passes(120) - passes(60), rel=1e-6)


def test_what_is_left_is_counted_and_what_cannot_be_run_has_its_reason_and_no_times(tmp_path: Path) -> None:
    study = parse_study(STUDY.replace("MATRIX", "g").replace("18]", "200]"), "study.yaml")
    *_, middle, large = forecast_study(study, tmp_path)

    assert (middle.epochs, middle.measurements, middle.fault) == (4, 2, None)
    assert middle.training_seconds > 0
    assert middle.measuring_seconds > 0
    assert (large.epochs, large.measurements) == (4, 2)
    assert "class '8' has 139 samples" in str(large.fault)
    assert math.isnan(large.training_seconds)


def test_what_does_not_fit_into_memory_is_a_reason_and_no_end(tmp_path: Path) -> None:
    text = STUDY.replace("MATRIX", "g").replace("steps: 4", "steps: 4, memory: 1kB")
    forecasts = forecast_study(parse_study(text, "study.yaml"), tmp_path)

    assert [type(forecast.fault) for forecast in forecasts] == [BudgetError] * 3


def test_class_parts_are_timed_on_samples_of_every_class(tmp_path: Path) -> None:
    text = STUDY.replace("MATRIX", "g-class, g-within").replace("[6, 12, 18]", "[6]")
    (forecast,) = forecast_study(parse_study(text, "study.yaml"), tmp_path)

    assert forecast.fault is None
    assert forecast.peak_bytes > 0
