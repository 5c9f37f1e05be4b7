"""`hesspec demo`, shortened: what it writes, what it prints, and what it leaves behind when it is stopped."""

import functools
import json
import re

import matplotlib as mpl
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hesspec.cli.app import app
from hesspec.cli.demonstration import CHECKPOINTS, PAGE_SHARE, demo
from hesspec.matrices import DEFAULT_MATRICES
from hesspec.spectra.record import load
from hesspec.study import SPLITS, load_dataset, load_weights, read_metadata, small_cnn
from hesspec.study.measuring import measure

STEPS, SHORT = 6, 3


@pytest.fixture(scope="module")
def run(tmp_path_factory, example):
    """The example of the help with fewer epochs and steps: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("hesspec.cli.demonstration.demo", functools.partial(demo, epochs=SHORT, steps=STEPS))
        result = CliRunner().invoke(app, example("demo"), prog_name="hesspec")
    assert result.exit_code == 0, result.output
    return folder / "hesspec-demo", result


@pytest.fixture(scope="module")
def folder(run):
    return run[0]


@pytest.mark.long
def test_the_files(folder):
    spectra = {f"spectra/{c}-{s}-{m}.nc" for c in CHECKPOINTS for s in SPLITS for m in DEFAULT_MATRICES}
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
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {
        *spectra,
        *(f"checkpoints/{checkpoint}.safetensors" for checkpoint in CHECKPOINTS),
        "spectra/end-train-ClassStructure.nc",
        *(f"figures/{figure}.png" for figure in figures),
        "training.json",
        "report.html",
    }


@pytest.mark.long
def test_the_folder_is_readable_as_any_other(folder):
    mine = folder.parent / "mine"
    mine.mkdir()
    for inside in (folder, folder / "spectra"):
        assert inside.stat().st_mode == mine.stat().st_mode


@pytest.mark.long
@pytest.mark.parametrize(("checkpoint", "epoch"), [("initialisation", 0), ("middle", 1), ("end", 3)])
def test_the_spectra_say_what_they_are_of(folder, checkpoint, epoch):
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    for split, samples in (("train", 710), ("test", 360)):
        for matrix in DEFAULT_MATRICES:
            spectrum = load(folder / "spectra" / f"{checkpoint}-{split}-{matrix}.nc")
            attributes = spectrum.attributes
            assert spectrum.steps == STEPS
            assert (attributes["matrix"], attributes["split"], attributes["checkpoint"]) == (matrix, split, checkpoint)
            assert (attributes["epoch"], attributes["samples"], attributes["batches"]) == (epoch, samples, 1)
            assert (attributes["network"], attributes["dataset"], attributes["seed"]) == ("small_cnn", "digits", 0)
            assert attributes["threads"] == 1
            assert attributes["risk"] == pytest.approx(training[epoch][f"{split}_loss"], rel=1e-5)


@pytest.mark.long
def test_the_training(folder):
    records = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert [record["epoch"] for record in records] == [0, 1, 2, 3]
    assert [record["learning_rate"] for record in records] == pytest.approx([0, 5e-3, 5e-4, 5e-5])
    assert records[-1]["train_loss"] < records[0]["train_loss"]


@pytest.mark.long
def test_a_checkpoint_is_what_its_spectra_are_of(folder):
    network = small_cnn(1, 10, 8)
    file = folder / "checkpoints" / "end.safetensors"
    load_weights(network, file)
    assert read_metadata(file) == {
        "network": "small_cnn",
        "dataset": "digits",
        "seed": "0",
        "epoch": "3",
        "checkpoint": "end",
    }
    test_set = load_dataset("digits", "test")
    again = measure(network, test_set, matrices=["g"], steps=STEPS, batch_size=360)["GaussNewton"]
    kept = load(folder / "spectra" / "end-test-GaussNewton.nc")
    np.testing.assert_allclose(again.ritz_values, kept.ritz_values, rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_the_figures(folder):
    for path in (folder / "figures").iterdir():
        image = mpl.image.imread(path)
        assert min(image.shape[:2]) > 800
        assert image[..., :3].std() > 0.05


@pytest.mark.long
def test_the_report_knows_its_folder(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Spectra of small_cnn on digits" in page
    assert "hesspec-demo" in page
    assert "unfinished" not in page


@pytest.mark.long
def test_what_is_printed(run):
    folder, result = run
    assert [line for line in result.stderr.splitlines() if "..." in line][:2] == [
        "training ...",
        "Hess, train set, initialisation ...",
    ]
    text = result.stdout
    for line in text.splitlines():
        assert len(line) <= 100
    for checkpoint, epoch in zip(CHECKPOINTS, (0, 1, 3), strict=True):
        section = text.partition(f"{checkpoint} (epoch {epoch}): training loss ")[2].partition("\n\n")[0]
        rows = re.findall(r"^(Hess|G|H), (train|test) +(\d+) ", section, re.MULTILINE)
        assert len(rows) == 6
        for short, split, outliers in rows:
            matrix = {"Hess": "Hessian", "G": "GaussNewton", "H": "Residual"}[short]
            spectrum = load(folder / "spectra" / f"{checkpoint}-{split}-{matrix}.nc")
            assert int(outliers) == spectrum.outliers.size
    assert text.splitlines()[-1] == "Report: hesspec-demo/report.html"


# When it is stopped


class Stop(BaseException):
    """Neither an error nor Ctrl-C, but it passes in the same way."""


def stop(what, done, total):
    if what.startswith("Hess"):
        raise Stop


def test_a_stopped_demo_leaves_no_folder(tmp_path):
    threads = torch.get_num_threads()
    with pytest.raises(Stop):
        demo(tmp_path / "deep" / "demo", on_progress=stop)
    assert not (tmp_path / "deep" / "demo").exists()
    assert torch.get_num_threads() == threads


def test_a_stopped_demo_leaves_an_empty_folder_empty(tmp_path):
    with pytest.raises(Stop):
        demo(tmp_path, on_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_anything_in_it_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="is not empty; delete it"):
        demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_too_few_epochs(tmp_path):
    with pytest.raises(ValueError, match="epochs is 2"):
        demo(tmp_path / "demo", epochs=2)
    assert not (tmp_path / "demo").exists()


def test_the_progress_is_as_far_as_was_said_when_the_page_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("hesspec.cli.demonstration.write_report", lambda folder: (folder / "report.html").touch())
    monkeypatch.setattr("hesspec.cli.demonstration._draw", lambda *_: None)
    monkeypatch.setattr("hesspec.cli.demonstration.measure_structure", lambda *_, **__: None)
    calls = []

    def quick(network, dataset, *, on_progress, **_):
        for done in range(5):
            on_progress("Hessian", done, 4)
        return {}

    monkeypatch.setattr("hesspec.cli.demonstration.measure", quick)
    demo(tmp_path / "demo", epochs=3, on_progress=lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    assert done == sorted(done)
    (total,) = {call[2] for call in calls}
    assert calls[-1][0] == "figures and report"
    assert done[-1] == pytest.approx((1 - PAGE_SHARE) * total)
