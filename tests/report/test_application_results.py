"""Section of the page for results of applications."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hesspec.applications.optim.share_run import DominantShareRun
from hesspec.report.application_results import MOST_FIGURES, ApplicationResult, result_sections


def run(measurements: int) -> DominantShareRun:
    shares = np.full((measurements, 1), 0.5)
    return DominantShareRun(
        steps=np.arange(measurements),
        names=np.array(["gradient"]),
        values=shares,
        low=shares,
        high=shares,
        eigenvectors=np.full(measurements, 3),
        dimension=100,
        optimizer="SGD",
        attributes={"dataset": "digits", "learning_rate": 0.25, "train_samples_per_class": 5},
    )


def test_what_is_not_drawn_says_why() -> None:
    many = [ApplicationResult(path=Path(f"{number}.nc"), record=run(2)) for number in range(MOST_FIGURES + 1)]
    *drawn, last = result_sections(many)
    assert all(item["figure"] and not item["without"] for item in drawn)
    assert not last["figure"]
    assert "first 24 results are drawn" in last["without"]

    (empty,) = result_sections([ApplicationResult(path=Path("empty.nc"), record=run(0))])
    assert not empty["figure"]
    assert "no step was measured" in empty["without"]
    assert empty["summary"] == [("measurements", "0")]


def test_a_result_is_named_by_what_it_is_of() -> None:
    (item,) = result_sections([ApplicationResult(path=Path("runs/shares.nc"), record=run(2))])
    assert item["title"] == "Dominant shares through a training · digits · n = 5 · learning rate 0.25"
    assert item["file"] == "runs/shares.nc"
