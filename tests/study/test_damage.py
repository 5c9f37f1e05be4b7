"""Damaged, foreign and missing files of a study: named, and what can be had again is had again."""

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hesspec import load
from hesspec.study import StudyError, running
from hesspec.study.config import StudyConfig
from hesspec.study.json_files import read_history
from hesspec.study.opening import open_study
from hesspec.study.running import run_study
from hesspec.study.store import Task, TrainingRun, tasks_of
from hesspec.study.study_file import parse_study

STUDY = """\
datasets: digits
networks: small_cnn
samples_per_class: [2, 3]
test_samples_per_class: 2
training: {epochs: 2, learning_rates: [0.01], batch_size: 8}
measure: {epochs: [0, end], matrices: [g], splits: [train], steps: 3}
"""
CONFIG: StudyConfig = parse_study(STUDY, "study.yaml")


def tasks(folder: Path) -> list[Task]:
    return tasks_of(CONFIG, folder)


def first(folder: Path) -> TrainingRun:
    """The training of the first task."""
    return tasks(folder)[0].runs[0]


def results(folder: Path) -> dict[str, list[float]]:
    return {str(path.relative_to(folder)): load(path).ritz_values.tolist() for path in sorted(folder.rglob("*.nc"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run_study(CONFIG, folder)
    return folder


@pytest.fixture
def study(whole: Path, tmp_path: Path) -> Path:
    """A copy of a study that is done."""
    return Path(shutil.copytree(whole, tmp_path / "study"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.write_text("<html>not found</html>")


DAMAGE: list[Callable[[Path], None]] = [truncate, empty, foreign]


def a_result(folder: Path) -> Path:
    return next(first(folder).path.glob("epoch-0002-*.nc"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_result_is_left_out_named_and_measured_again(study, whole, damage, caplog):
    file = a_result(study)
    damage(file)
    found = open_study(study)
    assert f"left out: {str(file)!r}" in caplog.text
    assert file.name in found.attrs["unread"]
    assert int(np.isnan(found.trace).sum()) == 1
    assert not tasks(study)[0].done
    run_study(CONFIG, study)
    assert f"{file.name}' is damaged, and is measured again" in caplog.text
    assert results(study) == results(whole)


def test_a_result_of_other_values_is_measured_again(study, whole):
    file = a_result(study)
    spectrum = load(file)
    dataset = spectrum.to_dataset()
    dataset["ritz_values"] = dataset["ritz_values"] + 1
    dataset.to_netcdf(file, engine="h5netcdf")
    run_study(CONFIG, study)
    assert results(study) == results(whole)


def test_a_result_of_a_later_version_is_named_and_not_replaced(study):
    file = a_result(study)
    load(file).to_dataset().assign_attrs(hesspec_format=99).to_netcdf(file, engine="h5netcdf")
    before = file.read_bytes()
    run_study(CONFIG, study)
    assert file.read_bytes() == before
    assert "Update hesspec" in open_study(study).attrs["unread"]


@pytest.mark.parametrize("damage", [*DAMAGE, flip, Path.unlink])
@pytest.mark.parametrize("what", ["epoch-0002", "epoch-0000", "optimizer-0002"])
@pytest.mark.few(4)
def test_damaged_weights_are_trained_again(study, whole, damage, what):
    run = first(study)
    damage(run.path / f"{what}.safetensors")
    for file in run.path.glob("*.nc"):
        file.unlink()
    run_study(CONFIG, study)
    assert results(study) == results(whole)
    for epoch in (0, 2):
        ours, theirs = load_file(run.weights(epoch)), load_file(first(whole).weights(epoch))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


RECORD = {"train_loss": 1.0, "train_error": 0.5, "test_loss": 1.0, "test_error": 0.5, "learning_rate": 0.0}
LATER = [{"epoch": 0, **RECORD, "margin": 1.0}]
DAMAGED: dict[str, bytes] = {
    "half": b'[{"epoch": 0, "train_lo',
    "empty": b"",
    "null": b"null",
    "mapping": b"{}",
    "not text": b"\xff\xfe\x00",
    "of others": b'[{"a": 1}]',
    "nested": b"[" * 100_000,
    "too long": json.dumps([{"epoch": epoch, **RECORD} for epoch in range(4)]).encode(),
    "not in order": json.dumps([{"epoch": 1, **RECORD}]).encode(),
    "not a number": json.dumps([{"epoch": 0, **RECORD, "train_loss": None}]).encode(),
    "NaN": json.dumps([{"epoch": 0, **RECORD, "train_loss": float("nan")}]).encode(),
    "beyond 1": json.dumps([{"epoch": 0, **RECORD, "test_error": 1.5}]).encode(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.few(4)
def test_damaged_records_are_named_and_the_other_tasks_are_done(study, content):
    small, large = tasks(study)
    file = small.runs[0].path / "training.json"
    file.write_bytes(content)
    next(large.runs[0].path.glob("*.nc")).unlink()
    with pytest.raises(StudyError, match="1 of 2 tasks failed") as raised:
        run_study(CONFIG, study)
    (sentence,) = raised.value.sentences
    said = (
        "has 'a' in its records, which this version of hesspec does not know" if b'"a"' in content else "is damaged: "
    )
    assert sentence.startswith(f"{small.name}: The file {str(file)!r} {said}")
    assert large.done
    found = open_study(study)
    assert "training.json" in found.attrs["unread"]
    assert np.isfinite(found.trace.sel(samples_per_class=3)).all()


def test_records_of_a_later_version_say_so(study):
    file = first(study).path / "training.json"
    file.write_text(json.dumps(LATER))
    with pytest.raises(ValueError, match=r"training\.json' has 'margin' in its records.* Update hesspec"):
        read_history(file, 2)


def test_a_damaged_reason_of_divergence_is_named(study):
    run = first(study)
    for content in ("{", "{}", "[]", '{"reason": 1}'):
        (run.path / "diverged.json").write_text(content)
        with pytest.raises(StudyError, match=r"diverged\.json' is damaged"):
            run_study(CONFIG, study)


@pytest.mark.parametrize(("content", "sentence"), [("{", "is damaged"), ("[]", "has no digests of code")])
def test_damaged_digests_of_code_are_named(study, content, sentence):
    (study / "code.json").write_text(content)
    with pytest.raises(ValueError, match=rf"code\.json' .*{sentence}"):
        open_study(study)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 3000, b"a: &a [*a]", b"x" * (1 << 21), b"a: [", b""])
def test_a_damaged_study_file_is_named_and_written_again(study, content):
    (study / "study.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"study\.yaml"):
        open_study(study)
    run_study(CONFIG, study)
    open_study(study)


def test_files_of_the_users_own_are_left_alone(study, whole):
    run = first(study)
    mine = [
        "epoch-backup.safetensors",
        "optimizer-old.safetensors",
        "epoch-1.safetensors",
        "epoch-0001.txt",
        "notes.nc.bak",
    ]
    for name in mine:
        (run.path / name).write_bytes(b"mine")
    for file in [*run.path.glob("*.nc"), run.weights(2)]:
        file.unlink()
    run_study(CONFIG, study)
    assert all((run.path / name).read_bytes() == b"mine" for name in mine)
    assert results(study) == results(whole)


def test_what_killed_processes_left_is_removed(study):
    run = first(study)
    result = a_result(study)
    left = [
        run.path / ".epoch-0002-12ab_9xy.safetensors",
        run.path / ".optimizer-0002-abcdefgh.safetensors",
        run.path / ".training-abcdefgh.json",
        run.path / f".{result.stem}-abcdefgh.nc",
        study / ".study-abcdefgh.yaml",
        study / ".code-abcdefgh.json",
    ]
    kept = [run.path / ".epoch-mine-abcdefgh.safetensors", run.path / ".notes", study / ".study.yaml.swp"]
    for file in [*left, *kept]:
        file.write_bytes(b"half")
    result.unlink()
    run_study(CONFIG, study)
    assert not any(file.exists() for file in left)
    assert all(file.exists() for file in kept)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "epoch-0001.safetensors").write_bytes(b"theirs")
    (folder / ".training-abcdefgh.json").write_bytes(b"theirs")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nothing_is_written_or_removed_through_the_link_of_a_training(study, outside):
    run, before = first(study), contents(outside)
    shutil.rmtree(run.path)
    run.path.symlink_to(outside)
    with pytest.raises(StudyError, match="is a symbolic link, but a study writes and removes files only in its own"):
        run_study(CONFIG, study)
    assert contents(outside) == before


def test_nothing_is_written_or_removed_through_the_link_of_all_trainings(study, outside):
    before = contents(outside)
    shutil.rmtree(study / "runs")
    (study / "runs").symlink_to(outside)
    with pytest.raises(NotADirectoryError, match="is a symbolic link"):
        run_study(CONFIG, study)
    assert contents(outside) == before


def test_a_lock_is_not_made_through_a_link(study, outside):
    next(first(study).path.glob("*.nc")).unlink()
    for lock in (study / "runs").glob(".*.lock"):
        lock.unlink()
        lock.symlink_to(outside / lock.name)
    with pytest.raises(OSError, match="is a symbolic link, but a study does not write elsewhere"):
        run_study(CONFIG, study)
    assert not list(outside.glob("*.lock"))


@pytest.mark.parametrize("name", ["training.json", "epoch-0002.safetensors"])
def test_the_link_of_a_file_is_replaced_and_not_followed(study, whole, outside, name):
    run = first(study)
    theirs = outside / name
    shutil.copy(run.path / name, theirs)
    before = theirs.read_bytes()
    (run.path / name).unlink()
    (run.path / name).symlink_to(theirs)
    for file in [*run.path.glob("*.nc"), run.weights(0), run.optimizer(2)]:
        file.unlink()
    run_study(CONFIG, study)
    assert theirs.read_bytes() == before
    assert results(study) == results(whole)


def test_a_study_may_be_in_a_folder_that_is_a_link_itself(tmp_path, whole):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run_study(CONFIG, tmp_path / "link")
    assert results(tmp_path / "real") == results(whole)


def test_a_folder_that_is_removed_while_the_study_runs_is_not_made_again(tmp_path):
    folder = tmp_path / "study"

    def remove(what: str, _done: float, _total: float) -> None:
        if what.startswith("G, train set, epoch 0, small_cnn on digits, n = 3"):
            shutil.rmtree(folder, ignore_errors=True)

    with pytest.raises((FileNotFoundError, StudyError), match="of this study was removed while the study was running"):
        run_study(CONFIG, folder, on_progress=remove)
    assert not list(tmp_path.rglob("*.nc"))


def test_a_result_that_is_removed_while_the_study_runs_is_missed_at_the_end(tmp_path):
    folder = tmp_path / "study"

    def remove(what: str, _done: float, _total: float) -> None:
        if what.startswith("training small_cnn on digits, n = 3"):
            for file in first(folder).path.glob("*.nc"):
                file.unlink()

    with pytest.raises(StudyError, match="1 of 2 tasks failed.* n = 2, seed 0: Some of its results have disappeared"):
        run_study(CONFIG, folder, on_progress=remove)
    run_study(CONFIG, folder)


def test_records_that_are_removed_while_it_is_measured(tmp_path, monkeypatch):
    folder = tmp_path / "study"
    measure = running._measure

    def remove(run: TrainingRun, *rest: object) -> None:
        (run.path / "training.json").unlink(missing_ok=True)
        measure(run, *rest)

    monkeypatch.setattr(running, "_measure", remove)
    with pytest.raises(StudyError, match="The records of the training in .* were removed while it was measured"):
        run_study(CONFIG, folder)


@pytest.mark.parametrize("kind", ["safetensors", "nc", "json"])
def test_a_full_disk_ends_a_study_with_a_sentence_and_with_room_the_results_are_the_same(tmp_path, whole, kind):
    size = min(path.stat().st_size for path in (whole / "runs").rglob(f"*.{kind}"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))
    try:
        with pytest.raises((StudyError, OSError), match="cannot be written to the folder .* exceeds the largest file"):
            run_study(CONFIG, tmp_path / "study")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    left = [path for path in (tmp_path / "study").rglob("*") if path.is_file() and path.stat().st_size >= size]
    assert left == []
    run_study(CONFIG, tmp_path / "study")
    assert results(tmp_path / "study") == results(whole)
    assert {path.name for path in (tmp_path / "study").rglob(".*")} == {path.name for path in whole.rglob(".*")}


def test_names_of_three_hundred_letters_fit_into_the_names_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "n" * 200
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n\n"
        f"def {name}(classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )
    study = parse_study(STUDY.replace("small_cnn", f"{name}:{name}"), "study.yaml")
    run_study(study, tmp_path / "study")
    assert all(len(os.fsencode(path.name)) <= 255 for path in (tmp_path / "study").rglob("*"))
    assert np.isfinite(open_study(tmp_path / "study").trace).all()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried to "
                     "allocate 80000000000 bytes. Error code 12 (Cannot allocate memory)"),
        RuntimeError("std::bad_alloc"),
    ],
)  # fmt: skip
def test_memory_that_runs_out_on_the_cpu_ends_one_task(tmp_path, monkeypatch, error):
    measure = running.measure

    def measured(network, dataset, **how):
        if len(dataset) == 20:
            raise error
        return measure(network, dataset, **how)

    monkeypatch.setattr(running, "measure", measured)
    with pytest.raises(StudyError, match="1 of 2 tasks failed.* n = 2, seed 0: Memory ran out") as raised:
        run_study(CONFIG, tmp_path)
    assert ("80 GB" in str(raised.value)) == ("80000000000" in str(error))
    assert tasks(tmp_path)[1].done


def test_a_study_that_is_whole_warns_of_nothing(study, caplog):
    assert open_study(study).attrs["unread"] == ""
    run_study(CONFIG, study)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
