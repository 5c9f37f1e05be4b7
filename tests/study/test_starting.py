"""Trainings that start from weights: files, pre-training in the study, new heads; effective data of a study."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import hesspec
from hesspec.report import write_report
from hesspec.report.progress import Requested
from hesspec.study import load_dataset, tanh_mlp
from hesspec.study.checkpoints import has_tensors, load_weights, save_checkpoint, tensor_shapes
from hesspec.study.digests import code_of
from hesspec.study.forecasting import forecast_study
from hesspec.study.running import Networks, run_study
from hesspec.study.starting import Start, head_of
from hesspec.study.store import tasks_of
from hesspec.study.study_file import load_study, parse_study

MODULE = """
import torch
from hesspec.study import load_dataset


class Halves(torch.utils.data.Dataset):
    classes = ["low", "middle", "high"]

    def __init__(self, split):
        self.digits = load_dataset("digits", split, samples_per_class=8)

    def __len__(self):
        return len(self.digits)

    def __getitem__(self, index):
        return self.digits.inputs[index], int(self.digits.targets[index]) // 4
"""
STUDY = """
datasets: digits
networks: tanh_mlp
samples_per_class: [3, 5, 8]
test_samples_per_class: 6
start:
  - scratch
  - {name: halves, dataset: "halves_data:Halves", samples_per_class: 8, epochs: 3, learning_rate: 0.2}
  - FILE
seeds: [0, 1]
training: {epochs: 6, learning_rates: 0.2, drops: []}
measure: {epochs: [end], matrices: [hess], splits: [test], steps: 6}
"""


def network(classes: int = 10, seed: int = 5) -> torch.nn.Module:
    torch.manual_seed(seed)
    return tanh_mlp(1, classes, 8)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a study that has run, and the weights that it started from."""
    home = tmp_path_factory.mktemp("starting")
    (home / "halves_data.py").write_text(MODULE)
    save_checkpoint(home / "given-tanh_mlp.safetensors", network(), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.syspath_prepend(home)
        run_study(config(home), home / "out")
    return home


def config(home: Path):
    return parse_study(STUDY.replace("FILE", str(home / "given-{network}.safetensors")), "study.yaml")


def test_pretraining_runs_once_for_each_seed_and_its_head_is_new(home: Path) -> None:
    folders = [path for path in (home / "out" / "runs").iterdir() if path.name.startswith("halves_data")]
    assert len(folders) == 2
    for folder, seed in zip(sorted(folders), (0, 1), strict=True):
        trained = load_file(folder / "epoch-0003.safetensors")
        assert trained["5.weight"].shape == (3, 12)
        tasks = tasks_of(config(home), home / "out")
        task = next(t for t in tasks if t.runs[0].start_name == "halves" and t.runs[0].settings.seed == seed)
        started = task.runs[0].start
        assert started is not None
        assert started.weights == folder / "epoch-0003.safetensors"
        fresh = network(seed=seed)
        head = fresh.state_dict()["5.weight"].clone()
        assert started.load_into(fresh) == ["5.weight"]
        state = fresh.state_dict()
        assert torch.equal(state["5.weight"], head)
        assert torch.equal(state["1.weight"], trained["1.weight"])
        spectrum = hesspec.load(task.runs[0].result(task.measurements[0], task.measure))
        assert spectrum.attributes["start"] == "halves"
        assert spectrum.attributes["newly_initialised"] == "5.weight"


def test_the_first_record_of_a_started_training_is_that_of_the_weights(home: Path) -> None:
    tasks = tasks_of(config(home), home / "out")
    task = next(t for t in tasks if t.runs[0].start_name == "given")
    data = load_dataset("digits", "test", samples_per_class=6)
    loss = torch.nn.functional.cross_entropy(network().eval()(data.inputs), data.targets).item()
    assert task.runs[0].history[0].test_loss == pytest.approx(loss, rel=1e-5)


def test_results_of_scratch_have_the_names_that_they_had(home: Path) -> None:
    alone = parse_study(STUDY.split("start:", maxsplit=1)[0] + "seeds:" + STUDY.split("seeds:")[1], "study.yaml")
    before = {task.runs[0].path for task in tasks_of(alone, home / "out")}
    after = {task.runs[0].path for task in tasks_of(config(home), home / "out") if task.runs[0].start is None}
    assert before == after
    assert all(task.done for task in tasks_of(alone, home / "out"))


def test_other_weights_are_another_study_result(home: Path, tmp_path: Path) -> None:
    code = code_of(config(home))
    assert len([name for name in code if name.startswith("start ")]) == 2
    other = {name: value if not name.startswith("start ") else "0" * 64 for name, value in code.items()}
    changed = tasks_of(config(home), home / "out", other)
    assert sum(task.done for task in changed) == 12
    # Without the file, results are read by the digest that the study noted.
    assert all(task.done for task in tasks_of(config(home), home / "out"))


def test_starts_are_an_axis_of_results_and_of_the_report(home: Path) -> None:
    found = hesspec.study.open(home / "out")
    assert list(found.start.values) == ["scratch", "halves", "given"]
    assert found.trace.sizes["start"] == 3
    assert bool(found.trace.notnull().all())
    assert float(found.loss.sel(start="halves").isel(training_epoch=0).mean()) != pytest.approx(
        float(found.loss.sel(start="scratch").isel(training_epoch=0).mean())
    )
    requested = Requested.read(home / "out" / "requested.json")
    assert (requested.trainings, requested.epochs) == (18, [6])
    write_report(home / "out", home / "page.html")
    page = (home / "page.html").read_text()
    assert "halves" in page
    assert f"All {len(requested.spectra)} requested spectra are here." in page


def test_effective_data_of_a_study(home: Path) -> None:
    found = hesspec.study.open(home / "out").squeeze()
    for statistic in ("loss", "trace", "outlier1", "bulk edge"):
        result = hesspec.study.transfer(found, statistic, start="halves")
        assert result.sizes.tolist() == [3, 5, 8]
        assert result.unit == "samples per class"
        known = np.isfinite(result.effective)
        assert (known == (result.reasons == "")).all()
        assert "none: " in result.summary()["transfer law"]
        assert "network" in repr(result)
    loss = hesspec.study.transfer(found, start="halves")
    table = found.loss.sel(start="halves").min("training_epoch")
    assert loss.values == pytest.approx(np.exp(np.log(table).mean("seed")).values)
    curve = found.loss.sel(start="scratch").min("training_epoch").transpose("samples_per_class", "seed")
    if loss.reasons[0] == "":
        expected = hesspec.effective_data(found.samples_per_class, curve, table.isel(samples_per_class=0))
        assert (loss.effective[0], loss.lower[0], loss.upper[0]) == pytest.approx(expected)


HOSTILE = [
    '=HYPERLINK("http://example.com","x")',
    "../../outside",
    "</script><script>alert(1)</script>$\\frac{",
    "two\nlines\x1b[2J λ \u202e",
    "x" * 300,
]


def hollow(path: Path) -> None:
    """Terabytes that take no room on the disk."""
    with path.open("wb") as file:
        file.truncate(1 << 43)


FILES = {
    "a pipe": (os.mkfifo, "There is no file"),
    "a folder": (Path.mkdir, "has 0 files named"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "There is no file"),
    "a loop": (lambda path: path.symlink_to(path), "There is no file"),
    "terabytes": (hollow, "is not a safetensors file, or is damaged"),
    "a header of exabytes": (lambda path: path.write_bytes(struct.pack("<Q", 1 << 60)), "header too (small|large)"),
}


@pytest.mark.parametrize("kind", FILES)
def test_starts_from_what_is_no_file_of_weights_are_refused(tmp_path: Path, kind: str) -> None:
    make, message = FILES[kind]
    file = tmp_path / "a.safetensors"
    make(file)
    study = parse_study(STUDY.replace("FILE", str(file)), "study.yaml")
    # Neither is read to its end for a digest.
    assert not [name for name in code_of(study) if name.startswith("start a")]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_weights(network(), file)
    assert has_tensors(file) is False


@pytest.mark.long
def test_hostile_names_of_starts_come_back_and_stay_names(tmp_path: Path) -> None:
    weights = tmp_path / "given.safetensors"
    save_checkpoint(weights, network(), {})
    starts = ["scratch", *({"name": name, "weights": str(weights)} for name in HOSTILE)]
    text = (
        STUDY.replace("[3, 5, 8]", "[2, 3, 4]").replace("epochs: 6", "epochs: 1").replace("seeds: [0, 1]", "seeds: [0]")
    )
    study = yaml.safe_load(text.partition("start:")[0] + "seeds:" + text.partition("seeds:")[2]) | {"start": starts}
    folder = tmp_path / "home" / "study"
    run_study(parse_study(yaml.safe_dump(study), "study.yaml"), folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given.safetensors", "home"]
    assert [path.name for path in folder.parent.iterdir()] == ["study"]

    found = hesspec.study.open(folder)
    assert list(found.start.values) == ["scratch", *HOSTILE]
    # The same weights, whatever their start is called.
    assert len(set(found.trace.isel(start=slice(1, None)).values.ravel().tolist())) == 3
    # A curve that falls: one seed does not tell noise from one that does not.
    found["trace"] = 0 * found.trace + 1 / found.samples_per_class
    for name in HOSTILE:
        effective = hesspec.study.transfer(found, "trace", start=name)
        assert effective.start == name
        effective.plot().savefig(io.BytesIO(), format="svg")
        effective.save(folder / "effective.nc")
        assert hesspec.load(folder / "effective.nc").start == name
        assert "<script>alert" not in effective._repr_html_()

    page = write_report(folder, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1))
    cells = {
        cell
        for name, text in data["files"].items()
        if name.endswith(".csv")
        for row in csv.reader(io.StringIO(text, newline=""))
        for cell in row
    }
    assert any(HOSTILE[1] in cell for cell in cells)
    assert not any(cell.lstrip().startswith(("=", "+", "@")) for cell in cells)


def test_a_start_that_is_scratch_transfers_nothing(home: Path) -> None:
    found = hesspec.study.open(home / "out")
    # A curve that falls, of three seeds, under two names.
    values = np.array([[3.0, 3.1], [2.0, 2.2], [1.0, 1.05]]) ** -1
    for index in (0, 1):
        found["trace"][0, 0, 0, index, :, :, 0, 0, 0] = values.T
    result = hesspec.study.transfer(found, "trace", start="halves")
    assert result.transferred == pytest.approx([0, 0, 0], abs=1e-12)
    assert not result.certain.any()
    figure = result.plot()
    assert len(figure.axes) == 2
    assert "3 sizes" not in result.summary()["transfer law"]


def test_what_has_no_effective_data_is_refused(home: Path) -> None:
    found = hesspec.study.open(home / "out")
    for given, message in (
        ({}, "several starts: choose one of halves, given"),
        ({"start": "other"}, "other"),
        ({"statistic": "sharpness"}, "sharpness"),
        ({"start": "halves", "split": "train"}, "no measurements of the split 'train', only of test"),
        ({"start": "halves", "statistic": "trace", "matrix": "GaussNewton"}, "only of Hessian"),
    ):
        with pytest.raises(ValueError, match=message):
            hesspec.study.transfer(found, **given)
    with pytest.raises(ValueError, match="needs 'scratch'"):
        hesspec.study.transfer(found.sel(start=["halves"]))
    with pytest.raises(ValueError, match="axis 'start'"):
        hesspec.study.transfer(found.drop_vars("start"))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("weights.pt", "a file that ends with '.safetensors'"),
        ("{name: scratch, epochs: 3}", "scratch takes no other keys"),
        ("{name: a}", "needs either weights or dataset"),
        ("{name: a, weights: a.safetensors, epochs: 2}", "epochs belongs to pre-training"),
        ("{name: a, dataset: digits}", "lacks samples_per_class and epochs"),
        ("{name: a, dataset: digts, samples_per_class: 2, epochs: 1}", "digits"),
        ("'a{size}.safetensors'", r"it may contain \{network\} and \{seed\} as they are, but has 'size'"),
        ("'a{seed:9999999999}.safetensors'", "as they are, but has 'seed' in braces"),
        ("'a{.safetensors'", "its braces do not match"),
        ("{name: a, weight: a.safetensors}", "did you mean 'weights'"),
        ("[scratch, a.safetensors, b/a.safetensors]", "'a' is among the start twice"),
    ],
)
def test_faults_of_starts_are_sentences(start: str, message: str) -> None:
    text = STUDY[: STUDY.index("start:")] + f"start: {start}\n" + STUDY[STUDY.index("seeds:") :]
    with pytest.raises(ValueError, match=message):
        parse_study(text, "study.yaml")


def test_weights_that_are_missing_or_do_not_fit_are_reported_before_anything_runs(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    text = STUDY[: STUDY.index("start:")] + f"start: [scratch, '{file}']\n" + STUDY[STUDY.index("seeds:") :]
    study = parse_study(text, "study.yaml")
    with pytest.raises(hesspec.study.StudyError, match="There is no file"):
        run_study(study, tmp_path / "out")
    wrong = network().state_dict()
    wrong["1.weight"] = torch.zeros(12, 65)
    save_file({name: value.contiguous() for name, value in wrong.items()}, file)
    with pytest.raises(hesspec.study.StudyError, match=r"'1.weight' of shape \(12, 65\) for \(12, 64\)"):
        run_study(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    faults = [item.fault for item in forecast_study(study, tmp_path / "out")]
    assert sum(fault is not None for fault in faults) == 6


def test_only_the_last_layer_is_new_and_only_if_classes_differ(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    for classes, new_head, anew in ((3, False, ["5.weight"]), (10, False, []), (10, True, ["5.weight"])):
        save_checkpoint(file, network(classes), {})
        mine = network(seed=1)
        head = mine[5].weight.detach().clone()
        assert Start("a", file, "", None, new_head).load_into(mine) == anew
        assert torch.equal(mine[5].weight, head) == bool(anew)
        assert torch.equal(mine[1].weight, network(classes)[1].weight)
    assert tensor_shapes(file)["5.weight"] == (10, 12)
    assert head_of(mine) == ["5.weight"]
    # A last layer of another width is another network.
    state = network().state_dict()
    state["5.weight"] = torch.zeros(10, 13)
    save_file(state, file)
    with pytest.raises(ValueError, match="do not fit"):
        Start("a", file, "", None, new_head=False).load_into(network())


def test_weights_that_are_kept_may_be_missing_in_the_file(tmp_path: Path) -> None:
    state = network(seed=2).state_dict()
    del state["5.weight"]
    save_file(state, tmp_path / "a.safetensors")
    mine = network()
    load_weights(mine, tmp_path / "a.safetensors", keep=["5.weight"])
    assert torch.equal(mine[5].weight, network()[5].weight)
    assert torch.equal(mine[1].weight, network(seed=2)[1].weight)
    with pytest.raises(ValueError, match="lacks"):
        load_weights(mine, tmp_path / "a.safetensors")


def test_the_start_is_logged_with_what_is_new(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = next(t for t in tasks_of(config(home), home / "out") if t.runs[0].start_name == "halves")
    data = load_dataset("digits", "train", samples_per_class=3)
    with caplog.at_level(logging.INFO):
        Networks().problem(task, data, data)
    assert "from halves on digits" in caplog.text
    assert "newly initialised: 5.weight" in caplog.text


def test_images_are_averaged_over_blocks_before_they_are_padded() -> None:
    whole, pooled = load_dataset("digits", "test"), load_dataset("digits", "test", pool=2)
    assert pooled.inputs.shape == (360, 1, 4, 4)
    assert torch.allclose(torch.nn.functional.avg_pool2d(whole.inputs, 2), pooled.inputs, atol=1e-6)
    with pytest.raises(ValueError, match="pool=3 does not divide the images of 'digits', which are 8x8"):
        load_dataset("digits", "test", pool=3)
    with pytest.raises(ValueError, match="pool=2 cannot be applied to 'python-stdlib'"):
        load_dataset("python-stdlib", "test", pool=2)


def test_a_forecast_counts_a_pretraining_once(tmp_path: Path) -> None:
    text = STUDY.replace('"halves_data:Halves"', "digits").replace("  - FILE\n", "")
    study = parse_study(text, "study.yaml")
    forecasts = forecast_study(study, tmp_path / "out")
    # Twelve trainings of six epochs, and for each of two seeds a pre-training of three.
    assert sum(item.training_seconds > 0 for item in forecasts) == 12
    started = [item.training_seconds for item in forecasts if item.task.runs[0].start_name == "halves"]
    scratch = [item.training_seconds for item in forecasts if item.task.runs[0].start_name == "scratch"]
    assert sum(a > b for a, b in zip(started, scratch, strict=True)) == 2


def test_the_preset_is_a_study() -> None:
    study = load_study("transfer-digits")
    assert [start.name for start in study.start] == ["scratch", "fashion"]
