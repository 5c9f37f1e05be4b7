"""Faults of a study that are found before its first training."""

from pathlib import Path

import pytest
from torch import nn

from hesspec.study.checking import faults_of
from hesspec.study.failures import StudyError
from hesspec.study.running import run_study
from hesspec.study.store import tasks_of
from hesspec.study.study_file import parse_study

STUDY = """\
datasets: digits
networks: [small_cnn]
samples_per_class: [2, 3]
test_samples_per_class: 2
training: {epochs: 1, learning_rates: [0.01], batch_size: 8}
measure: {epochs: [end], matrices: [g], splits: [train], steps: 3}
"""
SMALL, LARGE = (f"small_cnn on digits, n = {count}, seed 0" for count in (2, 3))


def faults(text: str, folder: Path) -> dict[str, str]:
    found = faults_of(tasks_of(parse_study(text, "study.yaml"), folder))
    return {name: str(error) for name, error in found.items()}


def three_outputs(channels: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, 3))


def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path) -> None:
    assert faults(STUDY, tmp_path) == {}


def test_too_many_samples_are_the_fault_of_the_sample_sizes_that_want_them(tmp_path: Path) -> None:
    found = faults(STUDY.replace("[2, 3]", "[2, 140]"), tmp_path)

    assert list(found) == [LARGE.replace("n = 3", "n = 140")]
    assert "class '8' has 139 samples" in next(iter(found.values()))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("test_samples_per_class: 2", "test_samples_per_class: 40", "has 35 samples in the split test"),
        ("steps: 3", "steps: 3, params: [conv*]", "no parameter or pattern 'conv*'"),
        ("digits", "{name: digits, size: 4}", "size=4 is smaller than the images"),
        ("batch_size: 8", "batch_size: 1", "cannot be trained on one sample"),
    ],
)
def test_a_fault_of_all_sample_sizes_is_found_for_all(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    found = faults(STUDY.replace(old, new), tmp_path)

    assert set(found) == {SMALL, LARGE}
    assert all(sentence in said for said in found.values())


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        ("torchvision:resnett", "no torchvision classifier"),
        ("nowhere:network", "no module 'nowhere'"),
        (f"{__name__}:three_outputs", "must be (1, 10)"),
    ],
)
def test_a_network_that_cannot_be_used_keeps_no_other_one_from_being_looked_at(
    tmp_path: Path, network: str, sentence: str
) -> None:
    found = faults(STUDY.replace("small_cnn", f"small_cnn, {network}"), tmp_path)

    assert set(found) == {SMALL.replace("small_cnn", network), LARGE.replace("small_cnn", network)}
    assert all(sentence in said for said in found.values())


def test_a_missing_data_set_is_found_and_the_others_are_looked_at(tmp_path: Path) -> None:
    text = STUDY.replace("digits", f"[{{name: mnist, folder: {tmp_path}}}, {{name: digits, size: 4}}]")
    found = faults(text, tmp_path)

    assert len(found) == 4
    assert "t10k-images-idx3-ubyte" in found[SMALL.replace("digits", "mnist")]
    assert "size=4" in found[SMALL]


def test_a_study_with_a_fault_does_not_begin(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="1 of 2 tasks cannot be run, so nothing was started.* n = 140, seed 0: "):
        run_study(parse_study(STUDY.replace("[2, 3]", "[2, 140]"), "study.yaml"), tmp_path / "new")

    assert not (tmp_path / "new").exists()


def test_a_task_that_is_done_needs_no_data_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = parse_study(STUDY, "study.yaml")
    run_study(study, tmp_path)
    monkeypatch.setattr("hesspec.study.store.load_dataset", None)

    assert faults_of(tasks_of(study, tmp_path)) == {}
