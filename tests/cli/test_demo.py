"""`hesspec demo`, shortened: what it writes, what it prints, and that it is resumed when it was stopped."""

import re

import matplotlib as mpl
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hesspec.cli.app import app
from hesspec.cli.demo_study import CHECKPOINTS, PAGE_SHARE, demo, demo_study, read_demo
from hesspec.matrices import DEFAULT_MATRICES
from hesspec.spectra.record import load
from hesspec.study import SPLITS, StudyConfig, load_dataset, load_study, load_weights, read_metadata, small_cnn
from hesspec.study.measuring import measure
from hesspec.study.opening import open_study

STEPS = 6


def short(seed=0, **others):
    """The study of the demo with fewer epochs and steps."""
    study = demo_study(seed).model_dump(mode="json", exclude_none=True)
    study["training"]["epochs"] = 3
    study["measure"] |= {"epochs": [0, 1, "end"], "steps": STEPS}
    return StudyConfig.model_validate(study | others)


def little(seed=0):
    """The same with few samples, on the training set only."""
    study = short(seed, samples_per_class=3, test_samples_per_class=1)
    return study.model_copy(update={"measure": study.measure.model_copy(update={"splits": ["train"]})})


@pytest.fixture(scope="module")
def run(tmp_path_factory, example):
    """The example of the help with fewer epochs and steps: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("hesspec.cli.demo_study.demo_study", short)
        result = CliRunner().invoke(app, example("demo"), prog_name="hesspec")
    assert result.exit_code == 0, result.output
    return folder / "hesspec-demo", result


@pytest.fixture(scope="module")
def folder(run):
    return run[0]


@pytest.fixture(scope="module")
def result(folder):
    return read_demo(folder)


def test_the_study_is_a_preset_with_a_seed():
    preset = load_study("demo")
    assert demo_study() == preset
    other = demo_study(seed=7)
    assert (other.seeds, other.measure.seed) == ([7], 7)
    assert (other.datasets, other.training) == (preset.datasets, preset.training)


@pytest.mark.long
def test_the_files(folder):
    figures = {
        "end-train",
        "end-test",
        "end-train-and-test",
        "end-train-class-structure",
        "training-Hessian",
        "training-GaussNewton",
        "end-train-scree",
        "training-train",
    }
    assert {path.name for path in (folder / "figures").iterdir()} == {f"{figure}.png" for figure in figures}
    assert {path.name for path in folder.iterdir()} == {
        "study.yaml",
        "requested.json",
        "runs",
        "figures",
        "report.html",
    }
    (run,) = (path for path in (folder / "runs").iterdir() if path.is_dir())
    of_results = [path.stem.rpartition("-")[0] for path in run.glob("*.nc")]
    spectra = {f"epoch-{epoch:04}-{s}-{m}" for epoch in (0, 1, 3) for s in SPLITS for m in DEFAULT_MATRICES}
    structures = {f"epoch-0003-{split}-ClassStructure" for split in SPLITS}
    assert set(of_results) == spectra | structures
    assert len(of_results) == len(spectra | structures)
    assert {path.name for path in run.glob("epoch-*.safetensors")} == {f"epoch-{e:04}.safetensors" for e in (0, 1, 3)}


@pytest.mark.long
def test_the_folder_is_readable_as_any_other(folder):
    mine = folder.parent / "mine"
    mine.mkdir()
    for inside in (folder, folder / "runs", folder / "figures"):
        assert inside.stat().st_mode == mine.stat().st_mode


@pytest.mark.long
@pytest.mark.parametrize(("checkpoint", "epoch"), [("initialisation", 0), ("middle", 1), ("end", 3)])
def test_the_spectra_say_what_they_are_of(result, checkpoint, epoch):
    record = result.history[epoch]
    for split, samples, loss in (("train", 710, record.train_loss), ("test", 360, record.test_loss)):
        for matrix in DEFAULT_MATRICES:
            spectrum = result.spectra[checkpoint, split, matrix]
            attributes = spectrum.attributes
            assert spectrum.steps == STEPS
            assert (attributes["matrix"], attributes["split"]) == (matrix, split)
            assert (attributes["epoch"], attributes["samples"], attributes["batches"]) == (epoch, samples, 1)
            assert (attributes["network"], attributes["dataset"]) == ("small_cnn", "digits")
            assert attributes["training_seed"] == 0
            assert attributes["threads"] == 1
            assert attributes["risk"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.long
def test_the_training(result):
    records = result.history
    assert [record.epoch for record in records] == [0, 1, 2, 3]
    assert [record.learning_rate for record in records] == pytest.approx([0, 5e-3, 5e-4, 5e-5])
    assert records[-1].train_loss < records[0].train_loss


@pytest.mark.long
def test_a_checkpoint_is_what_its_spectra_are_of(result):
    network = small_cnn(1, 10, 8)
    file = result.weights["end"]
    load_weights(network, file)
    assert read_metadata(file) == {"network": "small_cnn", "dataset": "digits", "epoch": "3"}
    test_set = load_dataset("digits", "test")
    again = measure(network, test_set, matrices=["g"], steps=STEPS, batch_size=360)["GaussNewton"]
    np.testing.assert_allclose(
        again.ritz_values, result.spectra["end", "test", "GaussNewton"].ritz_values, rtol=1e-4, atol=1e-6
    )


@pytest.mark.long
def test_it_opens_as_any_study(folder, result):
    found = open_study(folder).sel(split="test", matrix="Hessian").squeeze()
    assert found.trace.values == pytest.approx([result.spectra[c, "test", "Hessian"].trace for c in CHECKPOINTS])


@pytest.mark.long
def test_the_figures(folder):
    for path in (folder / "figures").iterdir():
        image = mpl.image.imread(path)
        assert min(image.shape[:2]) > 800
        assert image[..., :3].std() > 0.05


@pytest.mark.long
def test_the_report_knows_its_folder(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "hesspec-demo" in page


@pytest.mark.long
def test_what_is_printed(run, result):
    folder, printed = run
    activities = [line for line in printed.stderr.splitlines() if "..." in line]
    assert any(line.startswith("training small_cnn on digits") for line in activities)
    assert sum(line.startswith("Hess, t") for line in activities) == 6
    assert activities[-1] == "figures and report ..."
    text = printed.stdout
    for line in text.splitlines():
        assert len(line) <= 100
    for checkpoint, epoch in zip(CHECKPOINTS, (0, 1, 3), strict=True):
        section = text.partition(f"{checkpoint} (epoch {epoch}): training loss ")[2].partition("\n\n")[0]
        rows = re.findall(r"^(Hess|G|H), (train|test) +(\d+) ", section, re.MULTILINE)
        assert len(rows) == 6
        for short, split, outliers in rows:
            matrix = {"Hess": "Hessian", "G": "GaussNewton", "H": "Residual"}[short]
            assert int(outliers) == result.spectra[checkpoint, split, matrix].outliers.size
    assert text.splitlines()[-1] == "Report: hesspec-demo/report.html"
    (pattern,) = re.findall(r"hesspec show hesspec-demo/(\S+)", printed.stderr)
    assert len(list(folder.glob(pattern))) == len(SPLITS) * (len(DEFAULT_MATRICES) + 1)


# When it is stopped


class Stop(BaseException):
    """Neither an error nor Ctrl-C, but it passes in the same way."""


def test_a_stopped_demo_is_resumed(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    folder = tmp_path / "deep" / "demo"
    started = []

    def stop(what, *_):
        started.append(what)
        if what.startswith("H, train set, epoch 0"):
            raise Stop

    with pytest.raises(Stop):
        demo(little(), folder, on_progress=stop)
    assert torch.get_num_threads() == threads
    kept = {path: load(path) for path in folder.rglob("*.nc")}
    assert {found.attributes["matrix"] for found in kept.values()} == {"Hessian", "GaussNewton"}
    with pytest.raises(FileExistsError, match="is not empty"):
        demo(little(seed=1), folder)

    again = []
    monkeypatch.setattr("hesspec.cli.demo_study._figures", lambda _: {})
    monkeypatch.setattr("hesspec.cli.demo_study.write_report", lambda _: None)
    demo(little(), folder, on_progress=lambda what, *_: again.append(what))
    assert any(what.startswith("training") for what in started)
    assert not any(what.startswith(("training", "Hess, train set, epoch 0")) for what in again)
    assert all(np.array_equal(load(path).ritz_values, found.ritz_values) for path, found in kept.items())


def test_a_folder_with_anything_in_it_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="is not empty; delete it"):
        demo(little(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_demo_that_is_not_complete_cannot_be_read(tmp_path, monkeypatch):
    def stop(what, *_):
        if what.startswith("training"):
            raise Stop

    with pytest.raises(Stop):
        demo(little(), tmp_path, on_progress=stop)
    with pytest.raises(FileNotFoundError, match="is not complete"):
        read_demo(tmp_path)


def test_the_progress_is_as_far_as_was_said_when_the_page_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("hesspec.cli.demo_study.write_report", lambda _: None)
    monkeypatch.setattr("hesspec.cli.demo_study._figures", lambda _: {})
    calls = []
    demo(little(), tmp_path / "demo", on_progress=lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    assert done == sorted(done)
    (total,) = {call[2] for call in calls}
    assert calls[-1][0] == "figures and report"
    assert done[-1] == pytest.approx((1 - PAGE_SHARE) * total)
