"""Studies: everything is done once, whatever interrupts them, and the result is that of a study that ran through."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sweeps import swept
from torch import nn

from hesspec import Spectrum, load
from hesspec.errors import NonFiniteError
from hesspec.study import Dataset, StudyError, running
from hesspec.study.config import StudyConfig
from hesspec.study.locking import lock
from hesspec.study.running import run_study
from hesspec.study.store import Task, tasks_of
from hesspec.study.study_file import parse_study
from hesspec.study.study_folder import read_study

STUDY = """\
datasets: digits
networks: small_cnn
samples_per_class: [3]
test_samples_per_class: 2
training: {epochs: 5, learning_rates: [0.01, 0.03], batch_size: 8}
measure: {epochs: [0, 2, end], matrices: [hess, g], splits: [train, test], steps: 3}
"""
# For what does not depend on what is measured: the Gauss-Newton matrix at the end alone.
LITTLE = STUDY.replace("[0, 2, end]", "[end]").replace("[hess, g]", "[g]")


def config(text: str = STUDY) -> StudyConfig:
    return parse_study(text, "study.yaml")


class StopHereError(Exception):
    """What a test stops a study with."""


@pytest.fixture(scope="module")
def run_through(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A study that was not interrupted: its folder, and how often it reported its progress."""
    folder, seen = tmp_path_factory.mktemp("whole"), []
    run_study(config(), folder, on_progress=lambda what, _done, _total: seen.append(what))
    return folder, len(seen)


@pytest.fixture(scope="module")
def whole(run_through: tuple[Path, int]) -> Path:
    return run_through[0]


@pytest.fixture(scope="module")
def calls(run_through: tuple[Path, int]) -> int:
    return run_through[1]


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every result."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*.nc")
    }


def task(folder: Path, text: str = STUDY) -> Task:
    (only,) = tasks_of(config(text), folder)
    return only


def assert_same(folder: Path, whole: Path) -> None:
    """All weights, records and spectra are those of the study that was not interrupted, to the bit."""
    best, other = task(folder).best, task(whole).best
    assert best is not None
    assert other is not None
    assert best.history == other.history
    for epoch in (0, 2, 5):
        mine, theirs = load_file(best.weights(epoch)), load_file(other.weights(epoch))
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for measurement in task(folder).measurements:
        a = load(best.result(measurement, task(folder).measure))
        b = load(other.result(measurement, task(whole).measure))
        assert a.eigenvalues.tolist() == b.eigenvalues.tolist()
        assert a.nodes.tolist() == b.nodes.tolist()
    assert not [path for path in folder.rglob(".*") if path.suffix in {".nc", ".safetensors", ".json"}]


def test_every_matrix_is_measured_at_every_epoch_and_split_of_the_best_training(whole: Path) -> None:
    done = task(whole)

    assert done.done
    assert len(files(whole)) == 3 * 2 * 2
    errors = {run.settings.learning_rate: run.history[-1].test_error for run in done.runs}
    assert done.best is not None
    assert errors[done.best.settings.learning_rate] == min(errors.values())
    spectrum = load(next(done.best.path.glob("epoch-0002-test-GaussNewton-*.nc")))
    assert {
        name: spectrum.attributes[name]
        for name in ("matrix", "split", "epoch", "samples_per_class", "train_samples_per_class", "network", "dataset")
    } == {
        "matrix": "GaussNewton",
        "split": "test",
        "epoch": 2,
        "samples_per_class": 2,
        "train_samples_per_class": 3,
        "network": "small_cnn",
        "dataset": "digits",
    }
    assert spectrum.attributes["risk"] == pytest.approx(done.best.history[2].test_loss, rel=1e-5)


def test_weights_of_trainings_that_lost_are_not_kept(whole: Path) -> None:
    done = task(whole)
    (loser,) = [run for run in done.runs if run is not done.best]

    assert [path.name for path in loser.path.iterdir()] == ["training.json"]


def test_a_study_that_is_done_does_nothing(whole: Path) -> None:
    before = files(whole)
    run_study(config(), whole)

    assert files(whole) == before


@pytest.mark.parametrize("share", swept([0.02, 0.2, 0.4, 0.6, 0.98], 0.6))
def test_an_interrupted_study_goes_on_to_the_same_result_and_does_nothing_twice(
    share: float, calls: int, whole: Path, tmp_path: Path
) -> None:
    left = int(share * calls)

    def stop(_what: str, _done: float, _total: float) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise StopHereError

    with pytest.raises(StopHereError):
        run_study(config(), tmp_path, on_progress=stop)
    before = files(tmp_path)
    run_study(config(), tmp_path)

    assert_same(tmp_path, whole)
    assert before.items() <= files(tmp_path).items()


KILLED = """
import os, signal, sys
from hesspec.study.study_file import load_study
from hesspec.study.running import run_study

left = int(sys.argv[3])

def count(*_):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

run_study(load_study(sys.argv[1]), sys.argv[2], on_progress=count)
"""


@pytest.mark.parametrize("share", swept([0.15, 0.5]))
def test_a_killed_study_goes_on_to_the_same_result(share: float, calls: int, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    folder = tmp_path / "results"
    arguments = [str(tmp_path / "study.yaml"), str(folder), str(int(share * calls))]
    killed = subprocess.run(  # noqa: S603 - of this test
        [sys.executable, "-c", KILLED, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL

    run_study(config(), folder)

    assert_same(folder, whole)


@pytest.mark.long
def test_more_of_everything_keeps_what_is_there(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = files(tmp_path)
    more = STUDY.replace("[0, 2, end]", "[0, 1, 2, end]").replace("[hess, g]", "[hess, g, h]")

    run_study(config(more), tmp_path)

    after = files(tmp_path)
    assert before.items() <= after.items()
    assert len(after) == 4 * 2 * 3
    assert read_study(tmp_path) == config(more)
    first, second = task(whole).best, task(tmp_path, more).best
    assert first is not None
    assert second is not None
    assert first.history == second.history


def test_what_another_process_works_on_is_waited_for_and_not_done_again(tmp_path: Path) -> None:
    two = config(LITTLE.replace("[3]", "[3, 4]").replace("[0.01, 0.03]", "[0.01]"))
    small, large = tasks_of(two, tmp_path)
    said: list[str] = []
    held = lock(small)
    assert held.__enter__() is True

    def release(what: str, _done: float, _total: float) -> None:
        said.append(what)
        if what.startswith("waiting"):
            held.__exit__(None, None, None)

    run_study(two, tmp_path, on_progress=release)

    assert small.done
    assert large.done
    first = next(i for i, what in enumerate(said) if what.startswith("waiting"))
    assert not any("n = 3" in what for what in said[:first])
    assert any("n = 4" in what for what in said[:first])


def test_a_diverged_training_is_left_out_and_remembered(tmp_path: Path) -> None:
    text = LITTLE.replace("[0.01, 0.03]", "[0.01, 1e30]")
    run_study(config(text), tmp_path)

    done = task(tmp_path, text)
    assert [bool(run.diverged) for run in done.runs] == [False, True]
    assert "diverged" in done.runs[1].diverged
    assert done.best is done.runs[0]
    assert [path.name for path in done.runs[1].path.glob("*.safetensors")] == []
    assert done.done


def test_a_task_whose_trainings_all_diverge_is_reported_after_the_others_are_done(tmp_path: Path) -> None:
    text = LITTLE.replace("[3]", "[3, 4]").replace("[0.01, 0.03]", "[0.01]")
    first, second = tasks_of(config(text), tmp_path)
    # As if it had diverged, which at a usual rate no training does.
    first.runs[0].path.mkdir(parents=True)
    first.runs[0].write_diverged("The loss is nan.")

    for _ in range(2):  # a second start says it again
        with pytest.raises(StudyError) as raised:
            run_study(config(text), tmp_path)

        assert list(raised.value.failures) == [first.name]
        (sentence,) = raised.value.sentences
        assert sentence == (
            "small_cnn on digits, n = 3, seed 0: All trainings diverged; use lower learning rates than 0.01. "
            "The loss is nan."
        )
        assert second.done


def test_what_fails_is_tried_again_and_keeps_no_other_task_from_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = config(LITTLE.replace("[3]", "[3, 4]").replace("[0.01, 0.03]", "[0.01]"))
    small, large = tasks_of(two, tmp_path)
    measure = running.measure

    def no_memory(network: nn.Module, dataset: Dataset, **how: Any) -> dict[str, Spectrum]:
        if len(dataset) == 30:
            raise MemoryError
        return measure(network, dataset, **how)

    with monkeypatch.context() as patch:
        patch.setattr(running, "measure", no_memory)
        with pytest.raises(StudyError, match="1 of 2 tasks failed.* n = 3, seed 0: MemoryError"):
            run_study(two, tmp_path)
    assert not small.done
    assert large.done

    run_study(two, tmp_path)
    assert small.done


def test_a_fault_of_the_program_ends_a_study_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = config(LITTLE.replace("[3]", "[3, 4]").replace("[0.01, 0.03]", "[0.01]"))

    def broken(*_: object, **__: object) -> None:
        raise IndexError

    monkeypatch.setattr(running, "measure", broken)
    with pytest.raises(IndexError):
        run_study(two, tmp_path)
    assert not tasks_of(two, tmp_path)[1].runs[0].history


def test_class_structures_are_measured_where_they_are_asked_for(tmp_path: Path) -> None:
    text = LITTLE.replace("[0.01, 0.03]", "[0.01]").replace("steps: 3", "steps: 3, structure: true")
    run_study(config(text), tmp_path)

    assert len(list(tmp_path.rglob("epoch-0005-*-ClassStructure-*.nc"))) == 2
    assert task(tmp_path, text).done


def test_class_structures_of_the_end_only(tmp_path: Path) -> None:
    (found,) = tasks_of(config(STUDY.replace("steps: 3", "steps: 3, structure: end")), tmp_path)
    assert len(found.epochs) == 3
    places = {(place.epoch, place.split) for place in found.measurements if place.what == "ClassStructure"}
    assert places == {(found.epochs[-1], split) for split in ("train", "test")}


def test_the_end_of_a_training_need_not_be_measured(tmp_path: Path) -> None:
    text = STUDY.replace("[0, 2, end]", "[0, 1]").replace("[hess, g]", "[g]")
    run_study(config(text), tmp_path)

    done = task(tmp_path, text)
    assert done.done
    assert done.best is not None
    assert len(done.best.history) == 6


def test_a_network_that_is_not_finite_as_it_is_initialised_is_refused(tmp_path: Path) -> None:
    text = STUDY.replace("small_cnn", f"{__name__}:not_finite")
    with pytest.raises(StudyError, match="before any step") as raised:
        run_study(config(text), tmp_path)
    assert isinstance(raised.value.failures[task(tmp_path, text).name], NonFiniteError)


def not_finite(classes: int) -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    nn.init.constant_(network[1].weight, torch.inf)
    return network


def test_results_of_a_network_that_was_changed_are_measured_again_and_can_be_read_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    # Python takes compiled code for that of a source of the same size written in the same second.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    code = tmp_path / "hs_changed.py"
    source = (
        "from torch import nn\n\n"
        "def net(size, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(size**2, 4), nn.Tanh(), nn.Linear(4, classes))\n"
    )
    study = config(LITTLE.replace("small_cnn", "hs_changed:net").replace("[0.01, 0.03]", "[0.01]"))

    def run(text: str) -> int:
        code.write_text(text)
        sys.modules.pop("hs_changed", None)
        importlib.invalidate_caches()
        run_study(study, tmp_path / "study")
        (only,) = tasks_of(study, tmp_path / "study")
        assert only.best is not None
        return load(only.best.result(only.measurements[0], study.measure)).dimension

    assert run(source) == 64 * 4 + 4 + 4 * 10 + 10
    before = files(tmp_path / "study")
    # A comment changes nothing.
    assert run(f"# mine\n{source}") == 310
    assert files(tmp_path / "study") == before
    assert run(source.replace("4", "5")) == 64 * 5 + 5 + 5 * 10 + 10
    assert before.items() < files(tmp_path / "study").items()
    sys.modules.pop("hs_changed")
    code.unlink()
    assert tasks_of(study, tmp_path / "study")[0].done


def test_keys_of_what_hesspec_has_itself_are_those_of_all_versions(tmp_path: Path) -> None:
    (only,) = tasks_of(config(), tmp_path)
    (hess, *_), (run, _) = only.measurements, only.runs

    assert run.path.name == "digits-small_cnn-n3-seed0-lr0.01-f56acd7a0c"
    assert run.result(hess, only.measure).name == "epoch-0000-train-Hessian-b17c01753d.nc"
